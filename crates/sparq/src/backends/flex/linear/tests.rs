//! Linear layers on each instruction set of this CPU against sums in f64.

use burn::backend::Flex;
use burn::tensor::{Device, Distribution, FloatDType, Tensor, TensorData, bf16, f16};

use super::*;

/// Weights in blocks.
mod blocks;
use crate::ops::primitive::Primitive;
use crate::ops::{
    BiasBuffers, LinearBuffers, NormBuffers, Projection, ProjectionBuffers, Projections,
    ResidualBuffers, Weight, WeightBuffers, decode_linear, reference,
};

const ACTIVATIONS: [Activation; 4] = [
    Activation::Silu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Relu,
];

/// An element type with its rounding.
trait Rounded: Element {
    /// The largest relative error of rounding.
    const UNIT: f64;
    fn round(value: f32) -> Self;
}

impl Rounded for f32 {
    const UNIT: f64 = 6e-8;
    fn round(value: f32) -> Self {
        value
    }
}

impl Rounded for f16 {
    const UNIT: f64 = 4.9e-4;
    fn round(value: f32) -> Self {
        f16::from_f32(value)
    }
}

impl Rounded for bf16 {
    const UNIT: f64 = 3.91e-3;
    fn round(value: f32) -> Self {
        bf16::from_f32(value)
    }
}

/// Returns numbers between -1 and 1 that repeat for the same seed.
fn random<T: Rounded>(seed: usize, len: usize) -> Vec<T> {
    let mut state = seed as u64 * 7919 + 1;
    let next = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        T::round((state >> 40) as f32 / (1 << 23) as f32 - 1.0)
    };
    (0..len).map(next).collect()
}

fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..120 {
        let n = f64::from(n);
        term *= -x * x / n;
        sum += term / (2.0 * n + 1.0);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => x * (1.0 + erf(x / 2f64.sqrt())) / 2.0,
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            x * (1.0 + u.tanh()) / 2.0
        }
        Activation::Relu if x < 0.0 => 0.0,
        Activation::Relu => x,
    }
}

fn normalize(norm: Norm<'_>, x: &[f64]) -> Vec<f64> {
    let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / x.len() as f64;
    let (shift, scale, weight, bias) = match norm {
        Norm::None => return x.to_vec(),
        Norm::Rms { weight, epsilon } => {
            let square = mean(&mut x.iter().map(|x| x * x));
            (0.0, (square + f64::from(epsilon)).sqrt(), weight, None)
        }
        Norm::Layer {
            weight,
            bias,
            epsilon,
        } => {
            let shift = mean(&mut x.iter().copied());
            let variance = mean(&mut x.iter().map(|x| (x - shift).powi(2)));
            let scale = (variance + f64::from(epsilon)).sqrt();
            (shift, scale, weight, Some(bias))
        }
    };
    let value = |(i, x): (usize, &f64)| {
        (x - shift) / scale * f64::from(weight[i]) + bias.map_or(0.0, |bias| f64::from(bias[i]))
    };
    x.iter().enumerate().map(value).collect()
}

/// An output, and the bounds of its error.
#[derive(Clone, Copy)]
struct Bounded {
    y: f64,
    /// The sum of the magnitudes behind it.
    size: f64,
    /// The error of x in bytes.
    rounding: f64,
}

/// The largest slope of an activation.
const SLOPE: f64 = 1.13;

impl Bounded {
    fn activated(self, activation: Activation) -> Self {
        Self {
            y: activate(activation, self.y),
            rounding: SLOPE * self.rounding,
            ..self
        }
    }

    fn times(self, other: Self) -> Self {
        Self {
            y: self.y * other.y,
            size: (self.size + 1.0) * (other.size + 1.0),
            rounding: self.rounding * (other.y.abs() + other.rounding)
                + other.rounding * self.y.abs(),
        }
    }
}

/// Returns the product of a weight row with x. For blocks, each element of x is off by half of its
/// scale, the largest of its run divided by 127.
fn dot(row: &[f64], x: &[f64], bias: f64, is_blocks: bool) -> Bounded {
    let products = row.iter().zip(x).map(|(w, x)| w * x);
    let size: f64 = products.clone().map(f64::abs).sum();
    let runs = row.chunks(32).zip(x.chunks(32));
    let error = |(row, x): (&[f64], &[f64])| {
        let largest = x.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
        row.iter().map(|w| w.abs()).sum::<f64>() * largest / 127.0 * 0.5001
    };
    Bounded {
        y: products.sum::<f64>() + bias,
        size: size + bias.abs(),
        rounding: if is_blocks {
            runs.map(error).sum()
        } else {
            0.0
        },
    }
}

/// Returns the weights of a matrix, row by row.
fn floats<T: Element>(matrix: &Matrix<'_, T>) -> Vec<f64> {
    match matrix {
        Matrix::Floats(weight) => weight.iter().map(|w| f64::from(w.widen())).collect(),
        Matrix::Blocks(blocks) => {
            let count = blocks.bytes.len() / blocks.format.bytes() * blocks.format.weights();
            let mut weights = vec![0.0; count];
            blocks.format.dequantize(blocks.bytes, &mut weights);
            weights.into_iter().map(f64::from).collect()
        }
    }
}

/// Returns the output of a problem.
fn expected<T: Element>(problem: &Problem<'_, T>) -> Vec<Bounded> {
    let mut output = Vec::new();
    let weights: Vec<_> = problem
        .layers
        .iter()
        .map(|layer| floats(&layer.weight))
        .collect();
    for x in problem.x.chunks(problem.inputs) {
        let wide = |values: &[T]| -> Vec<f64> {
            values
                .iter()
                .map(|value| f64::from(value.widen()))
                .collect()
        };
        let x = normalize(problem.norm, &wide(x));
        let project = |(layer, weight): (&Layer<'_, T>, &Vec<f64>)| -> Vec<Bounded> {
            let rows = weight.chunks(problem.inputs).enumerate();
            rows.map(|(i, row)| {
                let bias = layer.bias.map_or(0.0, |bias| f64::from(bias[i]));
                dot(row, &x, bias, layer.weight.is_blocks())
            })
            .collect()
        };
        let layers: Vec<_> = problem.layers.iter().zip(&weights).map(project).collect();
        output.extend(match problem.combine {
            Combine::Concatenate => layers.concat(),
            Combine::Activated(act) => layers[0].iter().map(|y| y.activated(act)).collect(),
            Combine::Gated(act) => std::iter::zip(&layers[0], &layers[1])
                .map(|(gate, up)| gate.activated(act).times(*up))
                .collect(),
        });
    }
    if let Some(residual) = problem.residual {
        for (found, residual) in output.iter_mut().zip(residual) {
            found.y += f64::from(residual.widen());
            found.size += f64::from(residual.widen().abs());
        }
    }
    output
}

fn assert_exact<T: Rounded>(problem: &Problem<'_, T>, case: &str) {
    let (found, expected) = (problem.run(), expected(problem));
    assert_eq!(found.len(), expected.len(), "{case}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let found = f64::from(found.widen());
        let Bounded { y, size, rounding } = expected;
        let bound = T::UNIT * (y.abs() + rounding) + 1e-6 * size + 1e-7 + rounding;
        assert!(
            (found - y).abs() <= bound,
            "{:?} {case}, output {i}: {found} for {y}, at most {bound} off",
            problem.level
        );
    }
}

/// Asserts that each row has the bits that it has alone.
fn assert_rows_alone<T: Rounded>(problem: &Problem<'_, T>, case: &str) {
    let bits = |values: &[T]| {
        values
            .iter()
            .map(|x| x.widen().to_bits())
            .collect::<Vec<_>>()
    };
    let whole = problem.run();
    let rows = problem.x.chunks_exact(problem.inputs);
    let outputs = whole.len() / rows.len();
    for (row, (x, found)) in rows.zip(whole.chunks_exact(outputs)).enumerate() {
        let alone = Problem { x, ..*problem }.run();
        let alike = bits(found) == bits(&alone);
        assert!(alike, "{:?} {case}, row {row}", problem.level);
    }
}

/// The rows of a verification have the results of decode steps.
#[test]
fn few_rows_have_the_bits_of_single_ones() {
    few_rows_alone::<f32>();
    few_rows_alone::<f16>();
}

fn few_rows_alone<T: Rounded>() {
    for (rows, inputs) in [
        (2, 100),
        (4, 1700),
        (5, 801),
        (6, 768),
        (7, 100),
        (8, 1700),
        (16, 801),
    ] {
        let (x, weight) = (
            random::<T>(rows, rows * inputs),
            random::<T>(7, 51 * inputs),
        );
        let scale = random::<f32>(1, inputs);
        for level in Level::all() {
            let layers = [Layer {
                weight: Matrix::Floats(&weight),
                bias: None,
            }];
            let problem = Problem {
                level,
                x: &x,
                inputs,
                norm: Norm::Rms {
                    weight: &scale,
                    epsilon: 1e-5,
                },
                layers: &layers,
                combine: Combine::Concatenate,
                residual: None,
            };
            assert_rows_alone(&problem, &format!("{rows} x {inputs}"));
        }
    }
}

/// Multiplies x [rows, in] with one weight [out, in] on each level.
fn product<T: Rounded>(rows: usize, inputs: usize, outputs: usize) {
    let (x, weight) = (
        random::<T>(rows, rows * inputs),
        random::<T>(7, outputs * inputs),
    );
    for level in Level::all() {
        let layers = [Layer {
            weight: Matrix::Floats(&weight),
            bias: None,
        }];
        let problem = Problem {
            level,
            x: &x,
            inputs,
            norm: Norm::None,
            layers: &layers,
            combine: Combine::Concatenate,
            residual: None,
        };
        let kind = std::any::type_name::<T>();
        assert_exact(&problem, &format!("{kind} {rows} x {inputs} x {outputs}"));
    }
}

#[test]
fn products_of_any_number_of_rows() {
    let sizes = [
        (1, 1),
        (33, 7),
        (16, 48),
        (100, 51),
        (7, 150),
        (801, 13),
        (1700, 10),
    ];
    for rows in 1..=70 {
        for step in 0..2 {
            let (inputs, outputs) = sizes[(rows + 3 * step) % sizes.len()];
            product::<f32>(rows, inputs, outputs);
            product::<f16>(rows, inputs, outputs);
            product::<bf16>(rows, inputs, outputs);
        }
    }
    for (rows, inputs, outputs) in [(193, 70, 50), (450, 20, 97)] {
        product::<f32>(rows, inputs, outputs);
        product::<bf16>(rows, inputs, outputs);
    }
}

#[test]
fn norms_biases_activations_and_residuals() {
    epilogues::<f32>();
    epilogues::<f16>();
    epilogues::<bf16>();
}

fn epilogues<T: Rounded>() {
    let inputs = 75;
    let (scale, shift) = (random::<f32>(1, inputs), random::<f32>(2, inputs));
    let norms = [
        Norm::None,
        Norm::Rms {
            weight: &scale,
            epsilon: 1e-5,
        },
        Norm::Layer {
            weight: &scale,
            bias: &shift,
            epsilon: 1e-3,
        },
    ];
    let sizes = [53, 60, 9];
    let weights = sizes.map(|outputs| random::<T>(outputs, outputs * inputs));
    let biases = sizes.map(|outputs| random::<f32>(outputs + 1, outputs));
    let equal = [random::<T>(3, 53 * inputs), random::<T>(4, 53 * inputs)];
    let mut cases: Vec<(Vec<Layer<'_, T>>, Combine)> = Vec::new();
    let layer = |weight, bias| Layer {
        weight: Matrix::Floats(weight),
        bias,
    };
    for count in 1..=3 {
        let layers = (0..count).map(|i| layer(&weights[i][..], Some(&biases[i][..])));
        cases.push((layers.collect(), Combine::Concatenate));
    }
    for activation in ACTIVATIONS {
        let (gate, up) = (
            layer(&equal[0], Some(&biases[0][..])),
            layer(&equal[1], None),
        );
        cases.push((vec![gate, up], Combine::Gated(activation)));
        cases.push((vec![gate], Combine::Activated(activation)));
    }
    for (case, (layers, combine)) in cases.iter().enumerate() {
        for rows in [1, 3, 6, 21] {
            let x = random::<T>(rows + 10, rows * inputs);
            let residual = random::<T>(rows + 20, rows * sizes.iter().sum::<usize>());
            for (i, norm) in norms.into_iter().enumerate() {
                for level in Level::all() {
                    let mut problem = Problem {
                        level,
                        x: &x,
                        inputs,
                        norm,
                        layers,
                        combine: *combine,
                        residual: None,
                    };
                    let len = problem.shape().unwrap().iter().product::<usize>();
                    problem.residual = (i > 0).then_some(&residual[..len]);
                    assert_exact(&problem, &format!("case {case}, {rows} rows, norm {i}"));
                }
            }
        }
    }
}

#[test]
fn activations_are_exact_at_any_size() {
    let mut x: Vec<f32> = (-4000..=4000).map(|i| i as f32 * 0.005).collect();
    x.extend([
        1e4,
        -1e4,
        1e30,
        -1e30,
        1e-30,
        -1e-30,
        f32::INFINITY,
        f32::NAN,
    ]);
    for level in Level::all() {
        for activation in ACTIVATIONS {
            let layers = [Layer {
                weight: Matrix::Floats(&[1.0]),
                bias: None,
            }];
            let problem = Problem {
                level,
                x: &x,
                inputs: 1,
                norm: Norm::None,
                layers: &layers,
                combine: Combine::Activated(activation),
                residual: None,
            };
            for (x, found) in x.iter().zip(problem.run()) {
                let (expected, found) = (activate(activation, f64::from(*x)), f64::from(found));
                let same = found == expected || (found.is_nan() && expected.is_nan());
                let close = (found - expected).abs()
                    <= 4e-7 * f64::from(x.abs()).min(10.0) + 2e-7 * expected.abs();
                assert!(
                    same || close,
                    "{level:?} {activation:?} {x}: {found} for {expected}"
                );
            }
        }
    }
}

#[test]
fn sums_are_in_fp32() {
    // Sums in f16 would stay at 2048, those in bf16 at 256.
    let inputs = 1 << 14;
    for level in Level::all() {
        for rows in [1, 9] {
            let x = vec![f16::ONE; rows * inputs];
            let layers = [Layer {
                weight: Matrix::Floats(&x[..inputs]),
                bias: None,
            }];
            let mut problem = Problem {
                level,
                x: &x,
                inputs,
                norm: Norm::None,
                layers: &layers,
                combine: Combine::Concatenate,
                residual: None,
            };
            assert_eq!(
                problem.run(),
                vec![f16::from_f32(16384.0); rows],
                "{level:?}"
            );
            let residual = vec![f16::from_f32(-16383.0); rows];
            problem.residual = Some(&residual);
            assert_eq!(problem.run(), vec![f16::from_f32(0.0); rows], "{level:?}");
        }
    }
}

#[test]
fn threads_do_not_change_the_result() {
    let (inputs, outputs) = (300, 700);
    let weight = random::<f32>(1, inputs * outputs);
    for rows in [1, 5, 260] {
        let x = random::<f32>(2, rows * inputs);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let layers = [Layer {
                weight: Matrix::Floats(&weight[..]),
                bias: None,
            }];
            let problem = Problem {
                level: Level::detect(),
                x: &x,
                inputs,
                norm: Norm::None,
                layers: &layers,
                combine: Combine::Gated(Activation::Silu),
                residual: None,
            };
            let problem = Problem {
                layers: &[layers[0], layers[0]],
                ..problem
            };
            pool.build().unwrap().install(|| problem.run())
        };
        let one = run(1);
        for threads in [2, 3, 16] {
            assert!(run(threads) == one, "{rows} rows, {threads} threads");
        }
    }
}

#[test]
fn many_outputs_are_computed_in_bands() {
    // The sums of all rows would need twice the memory that is kept.
    let (rows, inputs, outputs) = (420, 2, 40_000);
    let (x, weight) = (
        random::<f32>(1, rows * inputs),
        random::<f32>(2, outputs * inputs),
    );
    let residual = random::<f32>(3, rows * outputs);
    let layers = [Layer {
        weight: Matrix::Floats(&weight[..]),
        bias: None,
    }];
    let problem = Problem {
        level: Level::detect(),
        x: &x,
        inputs,
        norm: Norm::None,
        layers: &layers,
        combine: Combine::Concatenate,
        residual: Some(&residual),
    };
    assert_exact(&problem, "bands");
}

#[test]
fn the_operation_takes_slices_of_weights_only() {
    let device = Device::flex();
    let random =
        |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), &device);
    for dtype in [FloatDType::F32, FloatDType::F16, FloatDType::BF16] {
        let (x, weight) = (random([5, 40]).cast(dtype), random([24, 40]).cast(dtype));
        let stored = weight
            .clone()
            .transpose()
            .reshape([40 * 24])
            .reshape([40, 24]);
        let linear = |weight: Tensor<2>| LinearBuffers {
            weight: WeightBuffers::Float(Flex::float_primitive(weight)),
            bias: BiasBuffers::None,
        };
        let native = |weight: Tensor<2>| {
            let x = Flex::float_primitive(x.clone());
            let projections = ProjectionBuffers::One(linear(weight));
            let (norm, residual) = (NormBuffers::None, ResidualBuffers::None);
            let level = Level::detect();
            match dtype {
                FloatDType::F16 => {
                    buffers::decode_linear::<f16>(level, &x, &norm, &projections, &residual)
                }
                FloatDType::BF16 => {
                    buffers::decode_linear::<bf16>(level, &x, &norm, &projections, &residual)
                }
                _ => buffers::decode_linear::<f32>(level, &x, &norm, &projections, &residual),
            }
        };
        assert!(native(weight.clone()).is_some());
        assert!(native(weight.clone().transpose().transpose()).is_some());
        assert!(native(stored.clone().transpose()).is_none());
        assert!(native(random([24, 41]).cast(dtype)).is_none());

        let run = |weight: &Tensor<2>| {
            let projection = Projections::One(Projection {
                weight: Weight::Float(weight.clone()),
                bias: None,
            });
            let norm = crate::ops::Norm::None;
            let expected = reference::decode_linear(x.clone(), &norm, &projection, None);
            let found = decode_linear(x.clone(), norm, projection, None);
            assert_eq!(found.dtype(), x.dtype());
            [found, expected].map(|y| -> TensorData { y.cast(FloatDType::F32).into_data() })
        };
        for weight in [weight, stored.transpose()] {
            let [found, expected] = run(&weight);
            let tolerance = burn::tensor::Tolerance::<f32>::rel_abs(1e-2, 1e-2);
            found.assert_approx_eq(&expected, tolerance);
        }
    }
}
