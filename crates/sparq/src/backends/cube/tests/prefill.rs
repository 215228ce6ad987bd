//! Causal attention of many queries against a reference in f64 on the host, and the layout of the
//! fragments of matrix products.

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use burn_cubecl::CubeBackend;

use super::devices;
use crate::backends::cube::launch::Launcher;
use crate::backends::cube::parts::fragments::{
    COLUMNS, DEPTH, ROWS, VECTOR, address_by_columns, address_by_rows, result_column, result_row,
    row_stride,
};
use crate::ops::primitive::{Primitive, lower_rows};
use crate::ops::{Spans, SparqBackend};

/// Elements past the end of a sequence in its buffers.
const SPARE: usize = 70;

/// One call of causal attention.
#[derive(Clone, Debug)]
struct Case {
    kv_heads: usize,
    group: usize,
    len: usize,
    head_dim: usize,
    /// The spans after the append.
    spans: Spans,
    window: Option<usize>,
    /// The types of q, and of k and v.
    types: [FloatDType; 2],
}

/// Numbers in -1 .. 1 that look random, the same in every run.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}

impl Case {
    fn batch(&self) -> usize {
        self.spans.batch()
    }

    fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    fn capacity(&self) -> usize {
        self.spans.longest() + SPARE
    }

    /// Returns q, k and v, rounded to their types, with NaN from the end of each sequence on.
    fn tensors(&self, device: &Device) -> [Tensor<4>; 3] {
        let rows = [self.batch(), self.kv_heads, self.capacity(), self.head_dim];
        // Scaled so that logits have a standard deviation of about 1.
        let q = numbers(self.batch() * self.heads() * self.len * self.head_dim, 1);
        let q: Vec<f32> = q.into_iter().map(|x| 3.0 * x).collect();
        let shape = [self.batch(), self.heads(), self.len, self.head_dim];
        let q = Tensor::<4>::from_data(TensorData::new(q, shape), (device, DType::F32));
        let [k, v] = [2, 3].map(|seed| {
            let mut all = numbers(rows.iter().product(), seed);
            for (i, x) in all.iter_mut().enumerate() {
                let position = i / self.head_dim % self.capacity();
                let sequence = i / (self.kv_heads * self.capacity() * self.head_dim);
                if position >= self.spans.end[sequence] {
                    *x = f32::NAN;
                }
            }
            Tensor::<4>::from_data(TensorData::new(all, rows), (device, DType::F32))
        });
        [
            q.cast(self.types[0]),
            k.cast(self.types[1]),
            v.cast(self.types[1]),
        ]
    }

    /// Returns the positions that query `t` of `sequence` attends to.
    fn positions(&self, sequence: usize, t: usize) -> std::ops::RangeInclusive<usize> {
        let position = self.spans.end[sequence] - self.len + t;
        let first = self.spans.start[sequence].min(position);
        let window = self.window.unwrap_or(usize::MAX);
        first.max((position + 1).saturating_sub(window))..=position
    }

    fn expected(&self, [q, k, v]: [&[f32]; 3]) -> Vec<f64> {
        let d = self.head_dim;
        let mut out = vec![0.0; q.len()];
        for (row, y) in out.chunks_mut(d).enumerate() {
            let (sequence, head) = (row / self.len / self.heads(), row / self.len % self.heads());
            let kv_head = sequence * self.kv_heads + head / self.group;
            let query = &q[row * d..][..d];
            let at = |position: usize| (kv_head * self.capacity() + position) * d;
            let positions = self.positions(sequence, row % self.len);
            let logit = |position: usize| {
                let pairs = query.iter().zip(&k[at(position)..][..d]);
                pairs
                    .map(|(a, b)| f64::from(*a) * f64::from(*b))
                    .sum::<f64>()
                    / (d as f64).sqrt()
            };
            let logits: Vec<f64> = positions.clone().map(logit).collect();
            let top = logits.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = logits.iter().map(|logit| (logit - top).exp()).sum();
            for (position, logit) in positions.zip(&logits) {
                let weight = (logit - top).exp() / sum;
                for (y, v) in y.iter_mut().zip(&v[at(position)..][..d]) {
                    *y += weight * f64::from(*v);
                }
            }
        }
        out
    }

    /// Returns the largest error.
    fn error(&self, device: &Device) -> f64 {
        let [q, k, v] = self.tensors(device);
        let host = |tensor: &Tensor<4>| -> Vec<f32> {
            let data = tensor.clone().cast(FloatDType::F32).into_data();
            data.try_to_vec::<f32>().unwrap()
        };
        // A transposed view, as projections give it.
        let view = q.clone().swap_dims(1, 2) + 0.0;
        let (query, keys, values) = (host(&q), host(&k), host(&v));
        let spans = self.spans.to_tensor(device);
        let y = CubeBackend::float(CubeBackend::causal_attention(
            CubeBackend::float_primitive(view.swap_dims(1, 2)),
            lower_rows(k.into()),
            lower_rows(v.into()),
            CubeBackend::int_primitive(spans),
            self.spans.clone(),
            self.window,
            None,
        ));
        assert_eq!(FloatDType::from(y.dtype()), self.types[0], "{self:?}");
        let expected = self.expected([&query, &keys, &values]);
        let errors = host(&y).into_iter().zip(&expected);
        let errors = errors.map(|(y, expected)| (f64::from(y) - expected).abs());
        // A maximum that keeps NaN.
        errors.fold(0.0, |most, error| if error <= most { most } else { error })
    }

    /// Returns the error that the types allow: outputs are at most 1, and weights and outputs are
    /// rounded.
    fn tolerance(&self) -> f64 {
        let of = |dtype| match dtype {
            FloatDType::F16 => 2e-3,
            FloatDType::BF16 => 1.6e-2,
            _ => 2e-5,
        };
        self.types.map(of).into_iter().fold(0.0, f64::max)
    }
}

/// Spans after an append of `len` to `before` positions: whole, with left padding, and ragged.
fn spans(len: usize, before: usize) -> Vec<Spans> {
    let end = before + len;
    vec![
        Spans::full(1, end),
        Spans {
            start: vec![0, end / 3, before + len / 2],
            end: vec![end; 3],
        },
        Spans {
            start: vec![0; 2],
            end: vec![end, len + before / 2],
        },
    ]
}

/// Cases of all sizes. Not all combinations: each size meets several of the others.
fn cases(lens: &[usize], dims: &[usize], types: &[[FloatDType; 2]]) -> Vec<Case> {
    let groups = [(2, 1), (2, 4), (1, 8)];
    let mut all = Vec::new();
    for (i, &len) in lens.iter().enumerate() {
        for (j, &before) in [0, 7, 300].iter().enumerate() {
            for (n, spans) in spans(len, before).into_iter().enumerate() {
                let number = 7 * i + 3 * j + n;
                let (kv_heads, group) = groups[number % groups.len()];
                all.push(Case {
                    kv_heads,
                    group,
                    len,
                    head_dim: dims[(number + i) % dims.len()],
                    spans,
                    window: [None, Some(1), Some(50)][(number / 2) % 3],
                    types: types[(number + j) % types.len()],
                });
            }
        }
    }
    all
}

/// Checks the cases on every device that has their types.
fn check(cases: impl Fn(&[[FloatDType; 2]]) -> Vec<Case>) {
    use FloatDType::{BF16, F16, F32};
    let known = [
        [F16, F16],
        [BF16, BF16],
        [F32, F32],
        [F32, F16],
        [F32, BF16],
        [F16, F32],
    ];
    for device in devices() {
        let has = |types: &[FloatDType; 2]| types.iter().all(|&dtype| device.supports_dtype(dtype));
        let types: Vec<_> = known.into_iter().filter(has).collect();
        let mut worst = (0.0, String::new());
        let cases = cases(&types);
        // A software device compiles each kernel for a minute.
        let step = match is_software(&device) {
            true => cases.len(),
            false => 1,
        };
        for case in cases.into_iter().step_by(step) {
            let (error, tolerance) = (case.error(&device), case.tolerance());
            assert!(
                error <= tolerance,
                "{device:?}: error {error:e} in {case:?}"
            );
            if error / tolerance >= worst.0 {
                worst = (error / tolerance, format!("{error:e} in {case:?}"));
            }
        }
        println!("{device:?}: worst error {}", worst.1);
    }
}

#[test]
fn causal_attention_of_short_prompts() {
    check(|types| cases(&[1, 2, 5, 17], &[32, 64, 80], types));
}

#[test]
fn causal_attention_of_long_prompts() {
    check(|types| cases(&[16, 64, 130, 300], &[32, 64, 80, 96, 128, 256], types));
}

/// A tile of rows for each processor of a large device.
#[test]
fn causal_attention_of_many_tiles() {
    check(|types| {
        let case =
            |(number, (kv_heads, group, len, head_dim)): (usize, (usize, _, usize, _))| Case {
                kv_heads,
                group,
                len,
                head_dim,
                spans: Spans {
                    start: vec![0, 3],
                    end: vec![len + 90, len],
                },
                window: [None, Some(70)][number % 2],
                types: types[number % types.len()],
            };
        let sizes = [
            (4, 4, 520, 128),
            (8, 1, 1060, 64),
            (8, 1, 1060, 128),
            (8, 2, 530, 256),
        ];
        sizes.into_iter().enumerate().map(case).collect()
    });
}

/// Splits of few queries at the end of a long cache.
#[test]
fn causal_attention_of_few_queries() {
    check(|types| {
        let case = |(number, len): (usize, usize)| Case {
            kv_heads: 1,
            group: [1, 4, 8][number % 3],
            len,
            head_dim: [128, 64][number % 2],
            spans: Spans {
                start: vec![0, 11],
                end: vec![2100, 1300],
            },
            window: [None, Some(1500)][number % 2],
            types: types[number % types.len()],
        };
        [1, 2, 5, 16].into_iter().enumerate().map(case).collect()
    });
}

/// Returns whether the device is one of those that do not report their processors. Real ones on
/// CUDA and HIP do.
fn is_software(device: &Device) -> bool {
    let tensor = CubeBackend::float_primitive(Tensor::<1>::zeros([1], device));
    !Launcher::new(&tensor).info.concurrent_cubes
}

/// The registers of 32 lanes, each with two neighbouring elements.
type Registers = Vec<[f64; 2]>;

/// `ldmatrix` of matrix `number`: lane l receives columns 2 (l % 4) and its neighbour of row l / 4,
/// or of the transposed matrix. `address` gives the vector of each lane.
fn load(tile: &[f64], address: impl Fn(u32) -> usize, number: u32, transposed: bool) -> Registers {
    let element =
        |row: u32, column: u32| tile[address(8 * number + row) * VECTOR + column as usize];
    let of_lane = |lane: u32| {
        [0, 1].map(|e| match (lane / 4, 2 * (lane % 4) + e) {
            (row, column) if transposed => element(column, row),
            (row, column) => element(row, column),
        })
    };
    (0..32).map(of_lane).collect()
}

/// `mma.m16n8k16` on the registers of all lanes, as its specification lays them out.
fn product(a: &[Registers], b: &[Registers]) -> Vec<f64> {
    let (mut left, mut right) = (vec![0.0; ROWS * DEPTH], vec![0.0; DEPTH * COLUMNS]);
    for lane in 0..32 {
        let (quad, member) = (lane / 4, lane % 4);
        for e in 0..2 {
            for (x, a) in a.iter().enumerate() {
                let (row, column) = (quad + x % 2 * 8, 2 * member + e + x / 2 * 8);
                left[row * DEPTH + column] = a[lane][e];
            }
            for (x, b) in b.iter().enumerate() {
                right[(2 * member + e + 8 * x) * COLUMNS + quad] = b[lane][e];
            }
        }
    }
    let of = |i: usize| {
        let (row, column) = (i / COLUMNS, i % COLUMNS);
        let products = (0..DEPTH).map(|k| left[row * DEPTH + k] * right[k * COLUMNS + column]);
        products.sum()
    };
    (0..ROWS * COLUMNS).map(of).collect()
}

/// A tile of `rows` rows of `width` numbers, with the gaps of shared memory.
fn tile(rows: usize, width: usize, seed: u32) -> (Vec<f64>, impl Fn(usize, usize) -> f64) {
    let stride = row_stride(width) * VECTOR;
    let all: Vec<f64> = numbers(rows * stride, seed)
        .into_iter()
        .map(f64::from)
        .collect();
    let copy = all.clone();
    (all, move |row, column| copy[row * stride + column])
}

fn address(
    of: fn(u32) -> (u32, u32),
    width: usize,
    row: usize,
    vector: usize,
) -> impl Fn(u32) -> usize {
    move |lane| {
        let own = of(lane);
        (row + own.0 as usize) * row_stride(width) + vector + own.1 as usize
    }
}

#[test]
fn fragments_are_blocks_of_tiles() {
    for width in [32, 64, 80, 96, 128, 256] {
        let (q, q_at) = tile(32, width, 1);
        let (k, k_at) = tile(64, width, 2);
        for step in 0..width / DEPTH {
            // Block 1 of Q and keys 32 .. 48 of K.
            let rows = address(address_by_rows, width, 16, 2 * step);
            let columns = address(address_by_columns, width, 32, 2 * step);
            let a = [0, 1, 2, 3].map(|x| load(&q, &rows, x, false));
            let b = [0, 1, 2, 3].map(|x| load(&k, &columns, x, false));
            for half in 0..2 {
                let found = product(&a, &b[2 * half..2 * half + 2]);
                for (i, found) in found.iter().enumerate() {
                    let (row, key) = (16 + i / COLUMNS, 32 + half * COLUMNS + i % COLUMNS);
                    let pairs = (0..DEPTH).map(|x| step * DEPTH + x);
                    let expected: f64 = pairs.map(|x| q_at(row, x) * k_at(key, x)).sum();
                    assert!(
                        (found - expected).abs() < 1e-12,
                        "{width} {step} {half} {i}"
                    );
                }
            }
        }
    }
}

#[test]
fn results_are_blocks_of_the_next_product() {
    let width = 80;
    let (v, v_at) = tile(64, width, 3);
    let weights: Vec<f64> = numbers(ROWS * 64, 4).into_iter().map(f64::from).collect();
    for step in 0..64 / DEPTH {
        // Numbers n % 2 * 2 + half of the two results of a step, as the kernel orders them.
        let a = [0, 1, 2, 3].map(|x| -> Registers {
            let (n, half) = (2 * step + x / 2, x % 2);
            let of_lane = |lane: u32| {
                let row = result_row(lane) as usize + 8 * half;
                let column = n * COLUMNS + result_column(lane) as usize;
                [0, 1].map(|e| weights[row * 64 + column + e])
            };
            (0..32).map(of_lane).collect()
        });
        for pair in 0..width / 16 {
            let rows = address(address_by_rows, width, step * DEPTH, 2 * pair);
            let b = [0, 1, 2, 3].map(|x| load(&v, &rows, x, true));
            for half in 0..2 {
                let found = product(&a, &b[2 * half..2 * half + 2]);
                for (i, found) in found.iter().enumerate() {
                    let (row, column) = (i / COLUMNS, pair * 16 + half * COLUMNS + i % COLUMNS);
                    let keys = (0..DEPTH).map(|x| step * DEPTH + x);
                    let expected: f64 = keys.map(|x| weights[row * 64 + x] * v_at(x, column)).sum();
                    assert!((found - expected).abs() < 1e-12, "{step} {pair} {half} {i}");
                }
            }
        }
    }
}
