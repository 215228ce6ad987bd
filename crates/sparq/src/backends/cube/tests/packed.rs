//! Packed weights on every path, against sums in fp64 of the weights as the host dequantises them.

use burn::tensor::{Bytes, DType, Device, FloatDType, Int, Tensor, TensorData};

use super::devices;
use crate::ops::{
    Activation, BlockFormat, Norm, PackedWeight, Projection, Projections, Weight, decode_linear,
};

const EPSILON: f64 = 1e-5;

/// Pseudorandom numbers.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u32 {
        self.0 = (self.0)
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 32) as u32
    }

    /// Returns a number of -1 to 1.
    fn next(&mut self) -> f32 {
        self.bits() as f32 / (1u32 << 31) as f32 - 1.0
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next()).collect()
    }

    /// Returns blocks of random codes and scales, with weights of up to about 1.
    fn blocks(&mut self, format: BlockFormat, [outputs, features]: [usize; 2]) -> Vec<u8> {
        let count = outputs * features / format.weights();
        let (places, size): (&[usize], f32) = match format {
            BlockFormat::Q8_0 => (&[0], 0.008),
            BlockFormat::Q4_0 => (&[0], 0.1),
            BlockFormat::Q5_0 => (&[0], 0.06),
            BlockFormat::Q4_1 | BlockFormat::Q5_1 => (&[0, 2], 0.05),
            BlockFormat::Q4_K | BlockFormat::Q5_K => (&[0, 2], 0.001),
            BlockFormat::Q6_K => (&[208], 0.0003),
        };
        let mut bytes = Vec::new();
        for block in 0..count {
            let first = bytes.len();
            bytes.extend((0..format.bytes()).map(|_| self.bits() as u8));
            for &place in places {
                // Every third scale is a subnormal number.
                let scale = match block % 3 {
                    0 => 3e-5 * self.next(),
                    _ => size * self.next(),
                };
                let half = burn::tensor::f16::from_f32(scale).to_le_bytes();
                bytes[first + place..][..2].copy_from_slice(&half);
            }
        }
        bytes
    }
}

/// A tensor on the device, and its numbers as the device's type rounds them.
#[derive(Clone)]
struct Both<const D: usize> {
    tensor: Tensor<D>,
    host: Vec<f64>,
}

impl<const D: usize> Both<D> {
    fn new(values: Vec<f32>, dims: [usize; D], on: (&Device, DType)) -> Self {
        let tensor = Tensor::<D>::from_data(TensorData::new(values, dims), on);
        let host = numbers(tensor.clone());
        Self { tensor, host }
    }
}

fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    let data = tensor.into_data().convert::<f32>();
    data.iter::<f32>().map(f64::from).collect()
}

/// A packed weight and its floats.
#[derive(Clone)]
struct Matrix {
    weight: Weight,
    floats: Vec<f64>,
    outputs: usize,
}

fn packed(random: &mut Random, format: BlockFormat, dims: [usize; 2], device: &Device) -> Matrix {
    let blocks = random.blocks(format, dims);
    let mut floats = vec![0.0; dims[0] * dims[1]];
    format.dequantize(&blocks, &mut floats);
    let weight = PackedWeight::new(Bytes::from_bytes_vec(blocks), format, dims, device).unwrap();
    Matrix {
        weight: Weight::Packed(weight),
        floats: floats.into_iter().map(f64::from).collect(),
        outputs: dims[0],
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// The outputs of the layers side by side.
    Beside,
    /// Of two layers.
    Gated,
    /// Of one layer.
    Activated,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Normed {
    None,
    Rms,
    Layer,
}

#[derive(Clone, Debug)]
struct Case {
    dtype: DType,
    /// A layer each; one without a format is in floats.
    formats: Vec<Option<BlockFormat>>,
    rows: usize,
    features: usize,
    outputs: usize,
    norm: Normed,
    kind: Kind,
    addends: bool,
    /// The magnitude of x.
    size: f32,
}

impl Case {
    fn new(format: BlockFormat) -> Self {
        Self {
            dtype: DType::F32,
            formats: vec![Some(format)],
            rows: 1,
            features: 512,
            outputs: 37,
            norm: Normed::None,
            kind: Kind::Beside,
            addends: false,
            size: 1.0,
        }
    }

    /// Returns the largest error by its bound.
    fn error(&self, device: &Device) -> f64 {
        let mut random = Random(self.rows as u64 + 7);
        let on = (device, self.dtype);
        let (rows, features) = (self.rows, self.features);
        let x = random.floats(rows * features);
        let x = x.into_iter().map(|x| self.size * x * x * x).collect();
        let x = Both::new(x, [rows, features], on);
        let scale = random.floats(features).into_iter().map(|x| 1.0 + 0.5 * x);
        let scale = Both::new(scale.collect(), [features], on);
        let shift = Both::new(random.floats(features), [features], on);
        let mut layers = Vec::new();
        for (i, format) in self.formats.iter().enumerate() {
            // Those of the second layer are no multiple of a tile.
            let outputs = match self.kind {
                Kind::Beside => self.outputs + 11 * i,
                _ => self.outputs,
            };
            let matrix = match format {
                Some(format) => packed(&mut random, *format, [outputs, features], device),
                None => {
                    let weight = random.floats(outputs * features);
                    let weight = Both::new(weight, [outputs, features], on);
                    Matrix {
                        weight: Weight::Float(weight.tensor),
                        floats: weight.host,
                        outputs,
                    }
                }
            };
            let bias = Both::new(random.floats(outputs), [outputs], on);
            layers.push((matrix, self.addends.then_some(bias)));
        }
        let width = match self.kind {
            Kind::Beside => layers.iter().map(|(matrix, _)| matrix.outputs).sum(),
            _ => self.outputs,
        };
        let residual = Both::new(random.floats(rows * width), [rows, width], on);
        let residual = self.addends.then_some(residual);
        let found = numbers(decode_linear(
            x.tensor.clone(),
            self.norm(&scale, &shift),
            self.projections(&layers),
            residual.clone().map(|residual| residual.tensor),
        ));
        assert_eq!(found.len(), rows * width, "{self:?}");
        let mut worst = 0.0f64;
        for row in 0..rows {
            let normed = self.normed(&x.host[row * features..][..features], &scale, &shift);
            let step = (width / 256).max(1);
            for column in (0..width).step_by(step).chain([width - 1]) {
                let (mut expected, mut bound) = self.output(&normed, &layers, column);
                if let Some(residual) = &residual {
                    expected += residual.host[row * width + column];
                }
                bound += self.rounding() * expected.abs() + 1e-7;
                let error = (found[row * width + column] - expected).abs() / bound;
                // The maximum of f64 ignores NaN.
                worst = match error.is_nan() {
                    true => f64::INFINITY,
                    false => worst.max(error),
                };
            }
        }
        worst
    }

    fn projections(&self, layers: &[(Matrix, Option<Both<1>>)]) -> Projections {
        let layer = |i: usize| {
            let (matrix, bias) = layers[i].clone();
            Projection {
                weight: matrix.weight,
                bias: bias.map(|bias| bias.tensor),
            }
        };
        let activation = Activation::Silu;
        match (self.kind, layers.len()) {
            (Kind::Beside, 1) => Projections::One(layer(0)),
            (Kind::Beside, 2) => Projections::Two(layer(0), layer(1)),
            (Kind::Beside, _) => Projections::Three(layer(0), layer(1), layer(2)),
            (Kind::Gated, _) => Projections::Gated {
                gate: layer(0),
                up: layer(1),
                activation,
            },
            (Kind::Activated, _) => Projections::Activated {
                up: layer(0),
                activation,
            },
        }
    }

    fn norm(&self, scale: &Both<1>, shift: &Both<1>) -> Norm {
        let weight = scale.tensor.clone();
        let epsilon = EPSILON;
        match self.norm {
            Normed::None => Norm::None,
            Normed::Rms => Norm::Rms { weight, epsilon },
            Normed::Layer => Norm::Layer {
                weight,
                bias: shift.tensor.clone(),
                epsilon,
            },
        }
    }

    fn normed(&self, x: &[f64], scale: &Both<1>, shift: &Both<1>) -> Vec<f64> {
        let mean_of = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let mean = match self.norm {
            Normed::None => return x.to_vec(),
            Normed::Rms => 0.0,
            Normed::Layer => mean_of(x),
        };
        let squares: Vec<f64> = x.iter().map(|x| (x - mean).powi(2)).collect();
        let factor = 1.0 / (mean_of(&squares) + EPSILON).sqrt();
        let shift = |i: usize| match self.norm {
            Normed::Layer => shift.host[i],
            _ => 0.0,
        };
        let normed = |(i, x): (usize, &f64)| (x - mean) * factor * scale.host[i] + shift(i);
        x.iter().enumerate().map(normed).collect()
    }

    /// Half a unit in the last place of x's type.
    fn rounding(&self) -> f64 {
        match self.dtype {
            DType::F32 => (0.5f64).powi(24),
            DType::F16 => (0.5f64).powi(11),
            _ => (0.5f64).powi(8),
        }
    }

    /// Returns one output without the residual and the rounding of the result, and a bound of its
    /// error.
    fn output(&self, x: &[f64], layers: &[(Matrix, Option<Both<1>>)], column: usize) -> (f64, f64) {
        let of_layer = |layer: usize, output: usize| {
            let (matrix, bias) = &layers[layer];
            let weights = &matrix.floats[output * x.len()..][..x.len()];
            let terms = || x.iter().zip(weights).map(|(x, w)| x * w);
            let product: f64 = terms().sum();
            let magnitude: f64 = terms().map(f64::abs).sum();
            let largest = weights.iter().fold(0.0f64, |most, w| most.max(w.abs()));
            let of_x: f64 = x.iter().map(|x| x.abs()).sum();
            // The codes and the zero points are summed apart: at most four times the largest
            // weight. There are fewer than 2^7 sums in f32 one after the other.
            let mut bound = (0.5f64).powi(16) * 4.0 * largest * of_x;
            // A row that is normed is rounded to f16 or to x's type, one that is not is exact, in
            // f32 to 2^-22. With many rows, the weights and the product are rounded to x's type,
            // and burn multiplies f32 as TF32.
            let many = self.rows > 32 || matrix.is_float();
            bound += match (self.norm, self.dtype) {
                (_, DType::F32) if many => (0.5f64).powi(10) * magnitude,
                (_, _) if many => 3.0 * self.rounding() * (magnitude + product.abs()),
                (_, DType::F32) => (0.5f64).powi(21) * magnitude,
                (Normed::None, _) => (0.5f64).powi(20) * magnitude,
                (Normed::Rms, _) | (Normed::Layer, _) => {
                    self.rounding().max((0.5f64).powi(11)) * magnitude
                }
            };
            let bias = bias.as_ref().map_or(0.0, |bias| bias.host[output]);
            (product + bias, bound)
        };
        // The derivative of SiLU is at most 1.1.
        let activated = |(x, bound): (f64, f64)| (x / (1.0 + (-x).exp()), 1.1 * bound);
        match self.kind {
            Kind::Gated => {
                let (gate, up) = (activated(of_layer(0, column)), of_layer(1, column));
                let mut bound = gate.1 * (up.0.abs() + up.1) + gate.0.abs() * up.1;
                if self.formats[0] != self.formats[1] {
                    bound += 3.0 * self.rounding() * (gate.0 * up.0).abs();
                }
                (gate.0 * up.0, bound)
            }
            Kind::Activated => activated(of_layer(0, column)),
            Kind::Beside => {
                let (mut layer, mut output) = (0, column);
                while output >= layers[layer].0.outputs {
                    output -= layers[layer].0.outputs;
                    layer += 1;
                }
                of_layer(layer, output)
            }
        }
    }
}

impl Matrix {
    fn is_float(&self) -> bool {
        matches!(self.weight, Weight::Float(_))
    }
}

/// Checks the cases in every type that a device has.
fn check(name: &str, cases: &[Case]) {
    for device in devices() {
        // Half types only where the device computes with them; see `Device::supports_dtype`.
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            if !device.supports_dtype(dtype) {
                continue;
            }
            let mut worst = 0.0f64;
            for case in cases {
                let case = Case {
                    dtype,
                    ..case.clone()
                };
                let error = case.error(&device);
                assert!(
                    error <= 1.0,
                    "{device:?} {case:?}: error of {error:.2e} times its bound"
                );
                worst = worst.max(error);
            }
            println!("{name} {device:?} {dtype:?}: at most {worst:.2} of the bound");
        }
    }
}

#[test]
fn stored_blocks_are_restored() {
    let mut random = Random(5);
    for device in devices() {
        for format in BlockFormat::ALL {
            for dims in [[37, 512], [16, 256], [3, 768]] {
                let blocks = random.blocks(format, dims);
                let bytes = Bytes::from_bytes_vec(blocks.clone());
                let weight = PackedWeight::new(bytes, format, dims, &device).unwrap();
                assert!(weight.to_bytes() == blocks, "{device:?} {format} {dims:?}");
            }
        }
        let format = BlockFormat::Q5_0;
        let blocks = random.blocks(format, [18, 96]);
        let bytes = Bytes::from_bytes_vec(blocks.clone());
        let weight = PackedWeight::new(bytes, format, [18, 96], &device).unwrap();
        assert!(weight.to_bytes() == blocks, "{device:?}: a part of a tile");
    }
}

#[test]
fn packed_weights_are_dequantised() {
    let mut random = Random(6);
    let dims = [21, 768];
    for device in devices() {
        for format in BlockFormat::ALL {
            let matrix = packed(&mut random, format, dims, &device);
            let Weight::Packed(weight) = &matrix.weight else {
                unreachable!("it was packed");
            };
            let largest = matrix
                .floats
                .iter()
                .fold(0.0f64, |most, w| most.max(w.abs()));
            let check = |found: Vec<f64>, expected: &[f64], rounding: f64| {
                assert_eq!(found.len(), expected.len());
                for (found, expected) in found.iter().zip(expected) {
                    // A product and a sum in f32, then the rounding to the type.
                    let bound = largest * (0.5f64).powi(21) + rounding * expected.abs() + 3e-8;
                    let error = (found - expected).abs();
                    assert!(error <= bound, "{format}: {found} instead of {expected}");
                }
            };
            let all = numbers(weight.dequantize(FloatDType::F32));
            check(all, &matrix.floats, 0.0);
            if device.supports_dtype(DType::F16) {
                let all = numbers(weight.dequantize(FloatDType::F16));
                check(all, &matrix.floats, (0.5f64).powi(11));
            }
            let rows = [20, 0, 7, 7];
            let indices = Tensor::<1, Int>::from_data(rows, &device);
            let expected: Vec<f64> = rows
                .iter()
                .flat_map(|&row| matrix.floats[row * dims[1]..][..dims[1]].to_vec())
                .collect();
            let rows = numbers(weight.dequantize_rows(indices, FloatDType::F32));
            check(rows, &expected, 0.0);
        }
    }
}

#[test]
fn packed_products_take_every_format() {
    let cases = BlockFormat::ALL.map(|format| {
        [(1, Normed::Rms), (2, Normed::None), (16, Normed::None)].map(|(rows, norm)| Case {
            rows,
            norm,
            ..Case::new(format)
        })
    });
    check("formats", &cases.concat());
}

#[test]
fn packed_products_take_every_number_of_rows() {
    let mut cases = Vec::new();
    for rows in [1, 3, 4, 5, 8, 9, 17, 24, 31, 32, 33] {
        cases.push(Case {
            rows,
            norm: Normed::Rms,
            addends: true,
            ..Case::new(BlockFormat::Q4_K)
        });
    }
    check("rows", &cases);
}

#[test]
fn packed_products_take_every_projection() {
    let (a, b) = (BlockFormat::Q4_K, BlockFormat::Q6_K);
    let kinds = [
        (Kind::Beside, vec![Some(a), Some(a)]),
        (Kind::Beside, vec![Some(a), Some(a), Some(b)]),
        (Kind::Beside, vec![Some(b), Some(a), Some(b)]),
        (Kind::Beside, vec![Some(a), None]),
        (Kind::Gated, vec![Some(a), Some(a)]),
        (Kind::Gated, vec![Some(a), Some(b)]),
        (Kind::Activated, vec![Some(b)]),
    ];
    let mut cases = Vec::new();
    for (kind, formats) in kinds {
        for (rows, norm) in [(1, Normed::Rms), (1, Normed::Layer), (12, Normed::Rms)] {
            cases.push(Case {
                rows,
                norm,
                kind,
                formats: formats.clone(),
                addends: true,
                ..Case::new(a)
            });
        }
    }
    check("projections", &cases);
}

#[test]
fn packed_products_take_other_sizes() {
    let mut cases = Vec::new();
    for (features, outputs) in [(32, 1), (96, 16), (576, 50), (2304, 130)] {
        for rows in [1, 7, 20] {
            cases.push(Case {
                rows,
                features,
                outputs,
                ..Case::new(BlockFormat::Q4_0)
            });
        }
    }
    // More than a cube packs for itself, and numbers at the ends of their types.
    cases.push(Case {
        rows: 4,
        features: 6144,
        ..Case::new(BlockFormat::Q8_0)
    });
    for size in [1e-3, 3e2] {
        cases.push(Case {
            size,
            ..Case::new(BlockFormat::Q5_1)
        });
    }
    check("sizes", &cases);
}
