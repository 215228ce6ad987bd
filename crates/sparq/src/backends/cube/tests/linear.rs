//! Linear layers on every path, against sums in fp64 on the host.

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::devices;
use crate::ops::{Activation, Norm, Projection, Projections, Weight, decode_linear, normalize};

const EPSILON: f64 = 1e-5;
/// Outputs of which every layer of a case has a multiple of 32, as `wgmma` needs.
const WHOLE_BLOCKS: usize = 384;

/// Pseudorandom numbers of about -1 to 1.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = (self.0)
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }
}

/// A tensor on the device, and its numbers as the device's type rounds them.
#[derive(Clone)]
struct Both<const D: usize> {
    tensor: Tensor<D>,
    host: Vec<f64>,
}

impl<const D: usize> Both<D> {
    fn new(dims: [usize; D], (device, dtype): (&Device, DType), next: impl FnMut() -> f32) -> Self {
        let mut next = next;
        let values: Vec<f32> = (0..dims.iter().product()).map(|_| next()).collect();
        let tensor = Tensor::<D>::from_data(TensorData::new(values, dims), (device, dtype));
        let host = numbers(tensor.clone());
        Self { tensor, host }
    }
}

fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    let data = tensor.into_data().convert::<f32>();
    data.iter::<f32>().map(f64::from).collect()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Normed {
    None,
    Rms,
    Layer,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// The outputs of so many layers side by side.
    Beside(usize),
    Gated(Activation),
    Activated(Activation),
}

#[derive(Clone, Copy, Debug)]
struct Case {
    dtype: DType,
    rows: usize,
    features: usize,
    outputs: usize,
    norm: Normed,
    kind: Kind,
    bias: bool,
    residual: bool,
    /// The magnitude of x.
    size: f32,
}

impl Case {
    const PLAIN: Case = Case {
        dtype: DType::F32,
        rows: 1,
        features: 96,
        outputs: 48,
        norm: Normed::None,
        kind: Kind::Beside(1),
        bias: false,
        residual: false,
        size: 1.0,
    };

    /// Returns the largest error, relative to numbers above 1.
    fn error(&self, device: &Device) -> f64 {
        let mut random = Random(self.rows as u64 + 7);
        let on = (device, self.dtype);
        let (rows, features) = (self.rows, self.features);
        let x = Both::new([rows, features], on, || self.size * random.next());
        let scale = Both::new([features], on, || 1.0 + 0.5 * random.next());
        let shift = Both::new([features], on, || 0.5 * random.next());
        let small = (3.0 / features as f32).sqrt();
        let outputs = self.outputs_of_layers();
        let layers: Vec<_> = outputs
            .iter()
            .map(|&outputs| {
                let weight = Both::new([outputs, features], on, || small * random.next());
                let bias = Both::new([outputs], on, || random.next());
                (weight, self.bias.then_some(bias))
            })
            .collect();
        let width = match self.kind {
            Kind::Beside(_) => outputs.iter().sum(),
            _ => outputs[0],
        };
        let residual = (self.residual).then(|| Both::new([rows, width], on, || random.next()));
        let layer = |i: usize| {
            let (weight, bias) = layers[i].clone();
            Projection {
                weight: Weight::Float(weight.tensor),
                bias: bias.map(|bias| bias.tensor),
            }
        };
        let projections = match self.kind {
            Kind::Beside(1) => Projections::One(layer(0)),
            Kind::Beside(2) => Projections::Two(layer(0), layer(1)),
            Kind::Beside(_) => Projections::Three(layer(0), layer(1), layer(2)),
            Kind::Gated(activation) => Projections::Gated {
                gate: layer(0),
                up: layer(1),
                activation,
            },
            Kind::Activated(activation) => Projections::Activated {
                up: layer(0),
                activation,
            },
        };
        let norm = self.norm(&scale, &shift);
        let added = residual.clone().map(|residual| residual.tensor);
        let found = numbers(decode_linear(x.tensor.clone(), norm, projections, added));
        assert_eq!(found.len(), rows * width, "{self:?}");
        let mut worst = 0.0f64;
        for row in 0..rows {
            let normed = self.normed(&x.host[row * features..][..features], &scale, &shift);
            // Of many outputs, those at the ends and some between are checked.
            let step = (width / 128).max(1);
            for column in (0..width).step_by(step).chain([width - 1]) {
                let mut expected = self.output(&normed, &layers, column);
                if let Some(residual) = &residual {
                    expected += residual.host[row * width + column];
                }
                let error = (found[row * width + column] - expected).abs();
                let relative = error / expected.abs().max(1.0);
                // The maximum of f64 ignores NaN.
                worst = if relative > worst || relative.is_nan() {
                    relative
                } else {
                    worst
                };
            }
        }
        worst
    }

    fn outputs_of_layers(&self) -> Vec<usize> {
        match self.kind {
            Kind::Beside(layers) if self.outputs.is_multiple_of(WHOLE_BLOCKS) => {
                [self.outputs, self.outputs / 2, self.outputs / 4][..layers].to_vec()
            }
            // Of different sizes, and those of the second no multiple of a tile.
            Kind::Beside(layers) => {
                [self.outputs, self.outputs / 2 + 5, self.outputs / 4 + 8][..layers].to_vec()
            }
            Kind::Gated(_) => vec![self.outputs; 2],
            Kind::Activated(_) => vec![self.outputs],
        }
    }

    fn norm(&self, scale: &Both<1>, shift: &Both<1>) -> Norm {
        match self.norm {
            Normed::None => Norm::None,
            Normed::Rms => Norm::Rms {
                weight: scale.tensor.clone(),
                epsilon: EPSILON,
            },
            Normed::Layer => Norm::Layer {
                weight: scale.tensor.clone(),
                bias: shift.tensor.clone(),
                epsilon: EPSILON,
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

    /// Returns one output without the residual.
    fn output(&self, x: &[f64], layers: &[(Both<2>, Option<Both<1>>)], column: usize) -> f64 {
        let of_layer = |layer: usize, output: usize| {
            let (weight, bias) = &layers[layer];
            let weights = &weight.host[output * x.len()..][..x.len()];
            let product: f64 = x.iter().zip(weights).map(|(x, w)| x * w).sum();
            product + bias.as_ref().map_or(0.0, |bias| bias.host[output])
        };
        match self.kind {
            Kind::Gated(activation) => {
                activated(of_layer(0, column), activation) * of_layer(1, column)
            }
            Kind::Activated(activation) => activated(of_layer(0, column), activation),
            Kind::Beside(_) => {
                let (mut layer, mut output) = (0, column);
                for count in self.outputs_of_layers() {
                    if output < count {
                        break;
                    }
                    output -= count;
                    layer += 1;
                }
                of_layer(layer, output)
            }
        }
    }

    /// Rounding of the inputs of a product and of its result, of about 3 at most.
    ///
    /// CUDA multiplies many rows of f32 in TF32, which has the significand of f16.
    fn tolerance(&self, device: &Device) -> f64 {
        let is_cuda = format!("{device:?}").contains("Cuda(");
        match self.dtype {
            DType::F32 if is_cuda && self.rows > 32 => 6e-3,
            DType::F32 => 1e-4,
            DType::F16 => 6e-3,
            _ => 4e-2,
        }
    }
}

fn activated(x: f64, activation: Activation) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Relu => x.max(0.0),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / 2.0f64.sqrt())),
    }
}

/// The error function, by its series.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..80 {
        term *= -x * x / n as f64;
        sum += term / (2 * n + 1) as f64;
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

/// Checks the cases in every type that a device has, and shows the worst error of each type.
fn check(name: &str, cases: &[Case]) {
    for device in devices() {
        // Half types only where the device computes with them; see `Device::supports_dtype`.
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            if !device.supports_dtype(dtype) {
                continue;
            }
            let mut worst = 0.0f64;
            for case in cases {
                let case = Case { dtype, ..*case };
                let (error, tolerance) = (case.error(&device), case.tolerance(&device));
                assert!(
                    error <= tolerance,
                    "{device:?} {case:?}: worst error {error:.2e}, expected at most {tolerance:.0e}"
                );
                worst = worst.max(error);
            }
            println!("{name} {device:?} {dtype:?}: worst error {worst:.2e}");
        }
    }
}

#[test]
fn linear_takes_every_number_of_rows() {
    let cases = (1..=33).map(|rows| Case {
        rows,
        norm: Normed::Rms,
        bias: true,
        residual: true,
        ..Case::PLAIN
    });
    check("rows", &cases.collect::<Vec<_>>());
}

#[test]
fn linear_takes_every_size() {
    let mut cases = Vec::new();
    for rows in [1, 3, 8, 17, 32] {
        for features in [64, 96, 576, 4096, 100, 33] {
            for outputs in [8, 48, 100, 4096] {
                cases.push(Case {
                    rows,
                    features,
                    outputs,
                    ..Case::PLAIN
                });
            }
        }
    }
    check("sizes", &cases);
}

/// More rows than one launch without shared memory takes: tiles that are cut off by an end, and
/// tiles that move inwards.
#[test]
fn linear_takes_many_rows() {
    let mut cases = Vec::new();
    for rows in [33, 70, 130] {
        // The outputs of all layers are even, as the tiles need.
        for (features, outputs) in [(96, 50), (128, 298)] {
            for kind in [
                Kind::Beside(1),
                Kind::Beside(3),
                Kind::Gated(Activation::Silu),
            ] {
                cases.push(Case {
                    rows,
                    features,
                    outputs,
                    kind,
                    bias: true,
                    residual: true,
                    ..Case::PLAIN
                });
            }
        }
    }
    check("many rows", &cases);
}

#[test]
fn linear_norms_before_its_product() {
    let mut cases = Vec::new();
    for norm in [Normed::Rms, Normed::Layer] {
        for (rows, size) in [
            (1, 30.0),
            (2, 0.02),
            (4, 1.0),
            (5, 200.0),
            (16, 0.005),
            (33, 1.0),
        ] {
            for (features, kind) in [(576, Kind::Beside(1)), (96, Kind::Beside(3))] {
                cases.push(Case {
                    rows,
                    features,
                    outputs: 100,
                    norm,
                    kind,
                    size,
                    ..Case::PLAIN
                });
            }
        }
    }
    check("norms", &cases);
}

#[test]
fn linear_has_every_epilogue() {
    let mut cases = Vec::new();
    let kinds = [
        Kind::Beside(2),
        Kind::Beside(3),
        Kind::Gated(Activation::Silu),
        Kind::Gated(Activation::GeluTanh),
        Kind::Activated(Activation::Gelu),
        Kind::Activated(Activation::Relu),
    ];
    for rows in [1, 4, 9, 32, 33] {
        for kind in kinds {
            cases.push(Case {
                rows,
                outputs: 72,
                kind,
                bias: true,
                residual: kind == Kind::Beside(3),
                ..Case::PLAIN
            });
        }
    }
    check("epilogues", &cases);
}

/// Tiles of rows and of outputs that are cut off by an end, and more features than all stages hold.
#[test]
fn linear_takes_whole_blocks_of_outputs() {
    let kinds = [
        Kind::Beside(1),
        Kind::Beside(3),
        Kind::Gated(Activation::Silu),
        Kind::Activated(Activation::Gelu),
    ];
    let mut cases = Vec::new();
    for (rows, features) in [(33, 64), (130, 520), (300, 72)] {
        for (i, kind) in kinds.into_iter().enumerate() {
            cases.push(Case {
                rows,
                features,
                outputs: WHOLE_BLOCKS,
                norm: [Normed::None, Normed::Rms][i % 2],
                kind,
                bias: i < 2,
                residual: i > 0,
                ..Case::PLAIN
            });
        }
    }
    check("whole blocks", &cases);
}

#[test]
fn linear_tiles_are_large_for_many_outputs() {
    let cases = [(1, 4096), (4, 4096), (9, 9000), (32, 9000)].map(|(rows, outputs)| Case {
        rows,
        outputs,
        features: 64,
        kind: if rows == 32 {
            Kind::Gated(Activation::Silu)
        } else {
            Kind::Beside(3)
        },
        norm: Normed::Rms,
        ..Case::PLAIN
    });
    check("tiles", &cases);
}

#[test]
fn linear_reads_views_by_the_reference() {
    for device in devices() {
        let mut random = Random(1);
        let mut next = || random.next();
        let on = (&device, DType::F32);
        let x = Both::new([2, 24], on, &mut next);
        let stored = Both::new([24, 8], on, &mut next);
        let projection = Projection {
            weight: Weight::Float(stored.tensor.clone().transpose()),
            bias: None,
        };
        let y = decode_linear(x.tensor, Norm::None, Projections::One(projection), None);
        for (i, found) in numbers(y).into_iter().enumerate() {
            let (row, output) = (i / 8, i % 8);
            let terms = (0..24).map(|j| x.host[row * 24 + j] * stored.host[j * 8 + output]);
            assert!((found - terms.sum::<f64>()).abs() < 1e-2, "{device:?}");
        }
    }
}

#[test]
fn rows_are_normed_alone() {
    for device in devices() {
        for (norm, features) in [
            (Normed::Rms, 576),
            (Normed::Layer, 100),
            (Normed::Layer, 33),
        ] {
            let case = Case {
                norm,
                features,
                ..Case::PLAIN
            };
            let mut random = Random(1);
            let mut next = || random.next();
            let on = (&device, DType::F32);
            let x = Both::new([3, features], on, &mut next);
            let [scale, shift] = [0, 1].map(|_| Both::new([features], on, &mut next));
            let found = numbers(normalize(x.tensor, case.norm(&scale, &shift)));
            for (row, found) in x.host.chunks(features).zip(found.chunks(features)) {
                let expected = case.normed(row, &scale, &shift);
                let errors = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
                let worst = errors.fold(0.0, f64::max);
                assert!(worst < 1e-4, "{device:?} {norm:?} {features}: {worst:.2e}");
            }
        }
    }
}
