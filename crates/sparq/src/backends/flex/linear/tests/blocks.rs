//! Products with weights in blocks, of every format on every level.

use super::*;
use crate::ops::BlockFormat;

/// Returns random blocks of a matrix, whose weights are about 1 at most.
fn random_blocks(format: BlockFormat, seed: usize, [outputs, inputs]: [usize; 2]) -> Vec<u8> {
    let bytes = format.matrix_bytes([outputs, inputs]).unwrap();
    let numbers = random::<f32>(seed, bytes);
    let mut blocks: Vec<u8> = numbers.iter().map(|x| (x * 128.0) as i8 as u8).collect();
    // The largest code times the largest scale, by which the scales of a block are divided.
    let (largest, floats): (f32, &[usize]) = match format {
        BlockFormat::Q8_0 => (128.0, &[0]),
        BlockFormat::Q4_0 => (8.0, &[0]),
        BlockFormat::Q4_1 => (16.0, &[0, 2]),
        BlockFormat::Q5_0 => (16.0, &[0]),
        BlockFormat::Q5_1 => (32.0, &[0, 2]),
        BlockFormat::Q4_K => (16.0 * 64.0, &[0, 2]),
        BlockFormat::Q5_K => (32.0 * 64.0, &[0, 2]),
        BlockFormat::Q6_K => (32.0 * 128.0, &[208]),
    };
    for (block, numbers) in blocks
        .chunks_exact_mut(format.bytes())
        .zip(numbers.chunks(format.bytes()))
    {
        for &at in floats {
            let scale = f16::from_f32(numbers[at] / largest).to_le_bytes();
            block[at..at + 2].copy_from_slice(&scale);
        }
    }
    blocks
}

fn matrix<T>(format: BlockFormat, bytes: &[u8]) -> Matrix<'_, T> {
    Matrix::Blocks(Blocks { format, bytes })
}

fn product<T: Rounded>(format: BlockFormat, rows: usize, inputs: usize, outputs: usize) {
    let x = random::<T>(rows, rows * inputs);
    let blocks = random_blocks(format, 7, [outputs, inputs]);
    for level in Level::all() {
        let layers = [Layer {
            weight: matrix(format, &blocks),
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
        assert_exact(&problem, &format!("{format} {rows} x {inputs} x {outputs}"));
    }
}

#[test]
fn products_of_any_number_of_rows() {
    let rows = [1, 2, 3, 4, 5, 7, 12, 13, 16, 33, 200];
    let outputs = [48, 7, 51, 1, 100];
    for format in BlockFormat::ALL {
        for (case, rows) in rows.into_iter().enumerate() {
            // Partial groups of four blocks, and more than one block of inputs.
            let blocks = [1, 2, 3, 5, 26, 4, 7][case % 7];
            let inputs = match format.weights() {
                32 => 32 * blocks,
                large => large * (blocks % 5 + 1),
            };
            let outputs = outputs[case % outputs.len()];
            product::<f32>(format, rows, inputs, outputs);
            product::<f16>(format, rows, inputs, outputs);
            product::<bf16>(format, rows, inputs, outputs);
        }
    }
}

/// The rows of a verification have the results of decode steps.
#[test]
fn few_rows_have_the_bits_of_single_ones() {
    for format in BlockFormat::ALL {
        for (rows, inputs) in [(2, 256), (5, 1536), (8, 512), (13, 768), (16, 256)] {
            let x = random::<f32>(rows, rows * inputs);
            let blocks = random_blocks(format, 7, [51, inputs]);
            for level in Level::all() {
                let layers = [Layer {
                    weight: matrix(format, &blocks),
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
                assert_rows_alone(&problem, &format!("{format} {rows} x {inputs}"));
            }
        }
    }
}

#[test]
fn kinds_of_weights_mix() {
    let inputs = 256;
    let (scale, bias) = (random::<f32>(1, inputs), random::<f32>(2, 60));
    let floats = random::<f32>(3, 60 * inputs);
    let formats = [BlockFormat::Q4_K, BlockFormat::Q6_K, BlockFormat::Q8_0];
    let blocks = formats.map(|format| random_blocks(format, 4, [60, inputs]));
    let layer = |index: usize| Layer {
        weight: matrix(formats[index], &blocks[index]),
        bias: Some(&bias[..]),
    };
    let plain = Layer {
        weight: Matrix::Floats(&floats[..]),
        bias: None,
    };
    let silu = Activation::Silu;
    let cases = [
        (vec![layer(0), layer(1), plain], Combine::Concatenate),
        (vec![layer(2), plain], Combine::Gated(silu)),
        (vec![layer(0), layer(1)], Combine::Gated(silu)),
        (vec![layer(2)], Combine::Activated(Activation::GeluTanh)),
    ];
    for (case, (layers, combine)) in cases.iter().enumerate() {
        for rows in [1, 6, 40] {
            let x = random::<f32>(rows, rows * inputs);
            for level in Level::all() {
                let mut problem = Problem {
                    level,
                    x: &x,
                    inputs,
                    norm: Norm::Rms {
                        weight: &scale,
                        epsilon: 1e-5,
                    },
                    layers,
                    combine: *combine,
                    residual: None,
                };
                let len = problem.shape().unwrap().iter().product();
                let residual = random::<f32>(rows + 20, len);
                problem.residual = Some(&residual);
                assert_exact(&problem, &format!("case {case}, {rows} rows"));
            }
        }
    }
}

#[test]
fn extreme_inputs_are_not_hidden() {
    let inputs = 64;
    let format = BlockFormat::Q4_0;
    let blocks = random_blocks(format, 5, [3, inputs]);
    let layers = [Layer {
        weight: matrix(format, &blocks),
        bias: None,
    }];
    let run = |level, x: &[f32]| {
        let problem = Problem {
            level,
            x,
            inputs,
            norm: Norm::None,
            layers: &layers,
            combine: Combine::Concatenate,
            residual: None,
        };
        problem.run()
    };
    for level in Level::all() {
        for rows in [1, 20] {
            let zeros = vec![0.0; rows * inputs];
            assert!(run(level, &zeros).iter().all(|y| *y == 0.0));
            for value in [f32::NAN, f32::INFINITY] {
                let mut x = zeros.clone();
                x[inputs - 1] = value;
                let y = run(level, &x);
                assert!(y[..3].iter().all(|y| !y.is_finite()), "{level:?} {value}");
                assert!(y[3..].iter().all(|y| *y == 0.0), "{level:?} {value}");
            }
            // The largest codes of x with the largest sums.
            let large = vec![1e30; rows * inputs];
            assert!(
                run(level, &large).iter().all(|y| y.is_finite()),
                "{level:?}"
            );
        }
    }
}
