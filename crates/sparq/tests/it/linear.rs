//! Linear layers with a norm, an activation and the residual stream, against fp64.

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use sparq::ops::{Activation, Norm, Projection, Projections, Weight};
use sparq::ops::{decode_linear, has_kernels, normalize};

use crate::common::{Noise, devices};

/// One row, all sizes of a kernel for few rows and their neighbours, and many rows.
const ROWS: [usize; 11] = [1, 2, 3, 4, 5, 8, 16, 17, 32, 33, 70];

/// Inputs and outputs; some are no multiple of 8, or fewer than a vector.
const SIZES: [[usize; 2]; 7] = [
    [64, 48],
    [128, 7],
    [5, 3],
    [33, 130],
    [520, 24],
    [96, 1],
    [1030, 65],
];

const EPSILON: f64 = 1e-5;

#[derive(Clone, Copy, Debug, PartialEq)]
enum NormKind {
    None,
    Rms,
    Layer,
}

const NORMS: [NormKind; 3] = [NormKind::None, NormKind::Rms, NormKind::Layer];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Epilogue {
    One,
    Two,
    Three,
    Gated(Activation),
    Activated(Activation),
}

const EPILOGUES: [Epilogue; 11] = [
    Epilogue::One,
    Epilogue::Two,
    Epilogue::Three,
    Epilogue::Gated(Activation::Silu),
    Epilogue::Gated(Activation::Gelu),
    Epilogue::Gated(Activation::GeluTanh),
    Epilogue::Gated(Activation::Relu),
    Epilogue::Activated(Activation::Silu),
    Epilogue::Activated(Activation::Gelu),
    Epilogue::Activated(Activation::GeluTanh),
    Epilogue::Activated(Activation::Relu),
];

/// The layout of a weight in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    /// The weights of one output are contiguous, as in checkpoints.
    Outputs,
    /// The weights of one input are contiguous, as in burn's [`Linear`].
    Inputs,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    rows: usize,
    size: [usize; 2],
    norm: NormKind,
    epilogue: Epilogue,
    bias: bool,
    residual: bool,
    layout: Layout,
    dtype: FloatDType,
}

/// A tensor, and its values after rounding to its type.
struct Values<const D: usize>(Tensor<D>, Vec<f64>);

impl<const D: usize> Values<D> {
    fn new(values: Vec<f32>, shape: [usize; D], dtype: FloatDType, device: &Device) -> Self {
        let data = TensorData::new(values, shape);
        let tensor = Tensor::<D>::from_data(data, (device, DType::F32)).cast(dtype);
        let values = values_of(tensor.clone());
        Self(tensor, values)
    }
}

fn values_of<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    let data = tensor.cast(FloatDType::F32).into_data();
    let values = data.try_to_vec::<f32>().unwrap();
    values.into_iter().map(f64::from).collect()
}

/// The error function, by its power series.
fn erf(x: f64) -> f64 {
    if x.abs() > 4.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / n as f64;
        sum += term / (2 * n + 1) as f64;
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => x * (1.0 + erf(x / std::f64::consts::SQRT_2)) / 2.0,
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            x * (1.0 + inner.tanh()) / 2.0
        }
        Activation::Relu => x.max(0.0),
    }
}

/// A number with a bound on its error in units of the type's rounding error.
#[derive(Clone, Copy)]
struct Bounded(f64, f64);

/// The parameters of a norm as tensors and in fp64.
struct NormCase {
    tensors: Norm,
    kind: NormKind,
    weight: Vec<f64>,
    bias: Vec<f64>,
}

impl NormCase {
    fn new(kind: NormKind, len: usize, dtype: FloatDType, noise: &mut Noise, d: &Device) -> Self {
        let weight: Vec<f32> = noise.values(len).iter().map(|x| 1.0 + 0.2 * x).collect();
        let bias: Vec<f32> = noise.values(len).iter().map(|x| 0.2 * x).collect();
        let Values(weight, weights) = Values::new(weight, [len], dtype, d);
        let Values(bias, biases) = Values::new(bias, [len], dtype, d);
        let epsilon = EPSILON;
        Self {
            kind,
            tensors: match kind {
                NormKind::None => Norm::None,
                NormKind::Rms => Norm::Rms { weight, epsilon },
                NormKind::Layer => Norm::Layer {
                    weight,
                    bias,
                    epsilon,
                },
            },
            weight: weights,
            bias: biases,
        }
    }

    fn apply(&self, row: &[f64]) -> Vec<f64> {
        let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / row.len() as f64;
        let scaled = |center: f64, bias: &[f64]| {
            let square = mean(&mut row.iter().map(|x| (x - center).powi(2)));
            let scale = 1.0 / (square + EPSILON).sqrt();
            let shift = |index: usize| bias.get(index).copied().unwrap_or(0.0);
            let values = row.iter().zip(&self.weight).enumerate();
            let values = values.map(|(at, (x, weight))| (x - center) * scale * weight + shift(at));
            values.collect()
        };
        match self.kind {
            NormKind::None => row.to_vec(),
            NormKind::Rms => scaled(0.0, &[]),
            NormKind::Layer => scaled(mean(&mut row.iter().copied()), &self.bias),
        }
    }
}

/// A linear layer as tensors and in fp64.
struct Layer {
    projection: Projection,
    weight: Vec<f64>,
    bias: Vec<f64>,
}

impl Layer {
    fn new(case: &Case, outputs: usize, noise: &mut Noise, device: &Device) -> Self {
        let inputs = case.size[0];
        let scale = 1.0 / (inputs as f32).sqrt();
        let weight: Vec<f32> = noise.values(inputs * outputs);
        let weight = weight.into_iter().map(|x| x * scale).collect();
        let Values(weight, weights) = Values::new(weight, [outputs, inputs], case.dtype, device);
        let Values(bias, biases) =
            Values::new(noise.values(outputs), [outputs], case.dtype, device);
        let weight = match case.layout {
            Layout::Outputs => weight.transpose(),
            // Flattening forces the copy to the other layout.
            Layout::Inputs => {
                let flat = weight.transpose().reshape([inputs * outputs]);
                flat.reshape([inputs, outputs])
            }
        };
        let linear = Linear {
            weight: Param::from_tensor(weight),
            bias: case.bias.then(|| Param::from_tensor(bias)),
        };
        Self {
            projection: (&linear).into(),
            weight: weights,
            bias: if case.bias { biases } else { Vec::new() },
        }
    }

    fn apply(&self, row: &[f64]) -> Vec<Bounded> {
        let outputs = self.weight.chunks_exact(row.len()).enumerate();
        let output = |(at, weights): (usize, &[f64])| {
            let bias = self.bias.get(at).copied().unwrap_or(0.0);
            let terms = || row.iter().zip(weights).map(|(x, weight)| x * weight);
            let sum = terms().sum::<f64>() + bias;
            Bounded(sum, terms().map(f64::abs).sum::<f64>() + bias.abs())
        };
        outputs.map(output).collect()
    }
}

fn expected_row(epilogue: Epilogue, layers: &[Layer], row: &[f64]) -> Vec<Bounded> {
    let activated = |activation, Bounded(x, error): Bounded| {
        // No activation function has a slope above 1.13.
        Bounded(activate(activation, x), 1.2 * error)
    };
    match epilogue {
        Epilogue::One | Epilogue::Two | Epilogue::Three => {
            let outputs = layers.iter().flat_map(|layer| layer.apply(row));
            outputs.collect()
        }
        Epilogue::Gated(activation) => {
            let (gate, up) = (layers[0].apply(row), layers[1].apply(row));
            let product = |(gate, up): (Bounded, Bounded)| {
                let gate = activated(activation, gate);
                let error = gate.1 * (up.0.abs() + 0.01 * up.1) + gate.0.abs() * up.1;
                Bounded(gate.0 * up.0, error)
            };
            gate.into_iter().zip(up).map(product).collect()
        }
        Epilogue::Activated(activation) => {
            let outputs = layers[0].apply(row).into_iter();
            outputs.map(|y| activated(activation, y)).collect()
        }
    }
}

/// The rounding error of a type, several times.
fn unit(case: &Case, device: &Device) -> f64 {
    match case.dtype {
        FloatDType::F16 => 2e-3,
        FloatDType::BF16 => 1.6e-2,
        // CUDA's products with many rows, and burn's, round their operands to TF32.
        _ if has_kernels(device) && (case.rows > 32 || case.layout == Layout::Inputs) => 2e-3,
        _ => 4e-6,
    }
}

fn projections(epilogue: Epilogue, layers: &[Layer]) -> Projections {
    let layer = |index: usize| layers[index].projection.clone();
    match epilogue {
        Epilogue::One => Projections::One(layer(0)),
        Epilogue::Two => Projections::Two(layer(0), layer(1)),
        Epilogue::Three => Projections::Three(layer(0), layer(1), layer(2)),
        Epilogue::Gated(activation) => Projections::Gated {
            gate: layer(0),
            up: layer(1),
            activation,
        },
        Epilogue::Activated(activation) => Projections::Activated {
            up: layer(0),
            activation,
        },
    }
}

fn check(case: &Case, noise: &mut Noise, device: &Device) {
    let Case {
        rows, size, dtype, ..
    } = *case;
    let [inputs, outputs] = size;
    let x = Values::new(noise.values(rows * inputs), [rows, inputs], dtype, device);
    let norm = NormCase::new(case.norm, inputs, dtype, noise, device);
    // Outputs side by side have different sizes.
    let sizes = match case.epilogue {
        Epilogue::One | Epilogue::Activated(_) => vec![outputs],
        Epilogue::Two => vec![outputs, outputs + 5],
        Epilogue::Three => vec![outputs, outputs.div_ceil(3), outputs + 8],
        Epilogue::Gated(_) => vec![outputs; 2],
    };
    let layers = sizes
        .iter()
        .map(|&outputs| Layer::new(case, outputs, noise, device));
    let layers: Vec<Layer> = layers.collect();
    let width = match case.epilogue {
        Epilogue::Gated(_) => outputs,
        _ => sizes.iter().sum(),
    };
    let residual = noise.values(rows * width);
    let residual = Values::new(residual, [rows, width], dtype, device);

    let found = decode_linear(
        x.0,
        norm.tensors.clone(),
        projections(case.epilogue, &layers),
        case.residual.then_some(residual.0),
    );
    assert_eq!((found.dims(), found.dtype()), ([rows, width], dtype.into()));
    let (found, unit) = (values_of(found), unit(case, device));
    for (at, row) in x.1.chunks_exact(inputs).enumerate() {
        let expected = expected_row(case.epilogue, &layers, &norm.apply(row));
        for (column, &Bounded(mut expected, mut error)) in expected.iter().enumerate() {
            if case.residual {
                expected += residual.1[at * width + column];
                error += residual.1[at * width + column].abs();
            }
            let (found, allowed) = (found[at * width + column], unit * (error + 0.1));
            assert!(
                (found - expected).abs() <= allowed,
                "{case:?}: {found} instead of {expected} +- {allowed} in row {at}, column {column}"
            );
        }
    }
}

fn types(device: &Device) -> impl Iterator<Item = FloatDType> {
    let types = [FloatDType::F32, FloatDType::F16, FloatDType::BF16];
    let supported = |dtype: &FloatDType| device.supports_dtype(*dtype);
    types.into_iter().filter(supported)
}

#[test]
fn linear_matches_fp64_for_all_rows_and_sizes() {
    for device in devices() {
        for dtype in types(&device) {
            let mut noise = Noise(1);
            // Norms and epilogues take turns, so that each meets many sizes.
            let mut turn = 0;
            for rows in ROWS {
                for size in SIZES {
                    let case = Case {
                        rows,
                        size,
                        norm: NORMS[turn % NORMS.len()],
                        epilogue: EPILOGUES[turn % EPILOGUES.len()],
                        bias: turn % 4 < 2,
                        residual: turn % 5 < 3,
                        layout: Layout::Outputs,
                        dtype,
                    };
                    check(&case, &mut noise, &device);
                    turn += 1;
                }
            }
        }
    }
}

#[test]
fn linear_matches_fp64_for_all_epilogues() {
    for device in devices() {
        for dtype in types(&device) {
            let mut noise = Noise(2);
            for rows in [1, 6, 40] {
                for (norm, epilogue) in NORMS.into_iter().flat_map(|n| EPILOGUES.map(|e| (n, e))) {
                    for bias in [false, true] {
                        let case = Case {
                            rows,
                            size: [40, 24],
                            norm,
                            epilogue,
                            bias,
                            residual: !bias,
                            layout: Layout::Outputs,
                            dtype,
                        };
                        check(&case, &mut noise, &device);
                    }
                }
            }
        }
    }
}

#[test]
fn linear_takes_weights_of_either_layout() {
    for device in devices() {
        for dtype in types(&device) {
            let mut noise = Noise(3);
            for (rows, epilogue) in [
                (1, Epilogue::Three),
                (1, Epilogue::Gated(Activation::Silu)),
                (7, Epilogue::One),
                (50, Epilogue::Two),
            ] {
                let case = Case {
                    rows,
                    size: [72, 40],
                    norm: NormKind::Rms,
                    epilogue,
                    bias: true,
                    residual: true,
                    layout: Layout::Inputs,
                    dtype,
                };
                check(&case, &mut noise, &device);
            }
        }
    }
}

#[test]
fn half_sums_are_in_fp32() {
    const INPUTS: usize = 4096;
    for device in devices() {
        for dtype in types(&device) {
            // In f16, 2048 + 1 is 2048; in bf16, 256 + 1 is 256.
            let ones = vec![1.0; INPUTS];
            // The small addends sum to 256 after a large one.
            let mut small = vec![0.0625; INPUTS + 1];
            small[0] = 2048.0;
            for (weights, expected) in [(ones, 4096.0), (small, 2304.0)] {
                let inputs = weights.len();
                for (rows, outputs) in [(1, 1), (1, 9), (3, 2), (17, 16), (40, 3)] {
                    let weights = weights.repeat(outputs);
                    let weight = Values::new(weights, [outputs, inputs], dtype, &device).0;
                    let x = Tensor::<2>::ones([rows, inputs], (&device, dtype.into()));
                    let layer = Projection {
                        weight: Weight::Float(weight),
                        bias: None,
                    };
                    let y = decode_linear(x, Norm::None, Projections::One(layer), None);
                    for y in values_of(y) {
                        assert_eq!(y, expected, "{rows} rows, {outputs} outputs in {dtype:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn large_values_of_half_types_are_normalized() {
    for device in devices() {
        for dtype in types(&device) {
            // The square of 300 is not finite in f16.
            let x = || Tensor::<2>::full([3, 64], 300.0, (&device, dtype.into()));
            let weight = Tensor::<1>::full([64], 2.0, (&device, dtype.into()));
            let norm = Norm::Rms {
                weight: weight.clone(),
                epsilon: EPSILON,
            };
            let normed = values_of(normalize(x(), norm.clone()));
            let layer = Projection {
                weight: Weight::Float(Tensor::full([8, 64], 0.25, (&device, dtype.into()))),
                bias: None,
            };
            let y = values_of(decode_linear(x(), norm, Projections::One(layer), None));
            assert!(normed.iter().all(|y| (y - 2.0).abs() < 0.02), "{normed:?}");
            assert!(y.iter().all(|y| (y - 32.0).abs() < 0.3), "{y:?}");
        }
    }
}

#[test]
fn norms_match_fp64() {
    for device in devices() {
        for dtype in types(&device) {
            let mut noise = Noise(4);
            for (kind, rows, len) in NORMS.into_iter().flat_map(|kind| {
                [
                    (kind, 1, 64),
                    (kind, 6, 130),
                    (kind, 33, 7),
                    (kind, 70, 513),
                ]
            }) {
                let x = Values::new(noise.values(rows * len), [rows, len], dtype, &device);
                let norm = NormCase::new(kind, len, dtype, &mut noise, &device);
                let found = normalize(x.0, norm.tensors.clone());
                assert_eq!((found.dims(), found.dtype()), ([rows, len], dtype.into()));
                let expected = x.1.chunks_exact(len).flat_map(|row| norm.apply(row));
                let unit = match dtype {
                    FloatDType::F16 => 2e-3,
                    FloatDType::BF16 => 1.6e-2,
                    _ => 4e-6,
                };
                for (found, expected) in values_of(found).into_iter().zip(expected) {
                    let error = (found - expected).abs();
                    assert!(
                        error < unit * (1.0 + expected.abs()),
                        "{kind:?} of {rows} x {len} in {dtype:?}: {found} instead of {expected}"
                    );
                }
            }
        }
    }
}
