//! The native decode steps of the `flex` backend against the same steps in fp64, over random shapes and settings, within what fp32 sums allow.
#![cfg(feature = "flex")]

mod common;

use burn::tensor::kind::Basic;
use burn::tensor::{Device, Element, FloatDType, Int, Tensor};
use common::{Noise, values};
use sparq::methods::{Components, GroupScore, MeanValue};
use sparq::ops::{SketchTensors, Spans, sketch};
use sparq::{KvCache, KvCacheConfig, Method, Sketch, SparqConfig, ops, reference};

const DTYPES: [FloatDType; 3] = [FloatDType::F32, FloatDType::F16, FloatDType::BF16];
const SKETCHES: [Sketch; 3] = [Sketch::Full, Sketch::Bits8, Sketch::Bits4];

/// The rounding of one fp32 operation, doubled.
const EPSILON: f64 = f32::EPSILON as f64;

/// Relative error of an exponential, and of what is scaled by one.
const EXP: f64 = 2e-6;

struct Choice(u64);

impl Choice {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }
    fn within(&mut self, first: usize, last: usize) -> usize {
        first + self.below(last + 1 - first)
    }
    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    batch: usize,
    kv_heads: usize,
    group: usize,
    dim: usize,
    len: usize,
    dtype: FloatDType,
    ragged: bool,
}

/// A cache filled with noise and a query for it.
fn problem(shape: Shape, config: &SparqConfig, choice: &mut Choice) -> (KvCache, Tensor<4>) {
    let device = Device::flex();
    let Shape {
        batch,
        kv_heads,
        group,
        dim,
        len,
        dtype,
        ragged,
    } = shape;
    let config = KvCacheConfig::new(batch, kv_heads, dim)
        .with_capacity(len)
        .with_dtype(dtype)
        .with_sketch(Some(config.sketch));
    let mut cache = config.init(&device).unwrap();
    let mut noise = Noise(choice.0);
    let mut counts = vec![len; batch];
    if ragged {
        for count in &mut counts[1..] {
            *count = choice.within(1, len);
        }
        let padding: Vec<usize> = counts.iter().map(|&count| choice.below(count)).collect();
        cache.set_left_padding(&padding).unwrap();
    }
    let shape = [batch, kv_heads, len, dim];
    cache
        .append_ragged(
            noise.tensor(shape, &device),
            noise.tensor(shape, &device),
            &counts,
        )
        .unwrap();
    let q = noise.tensor([batch, kv_heads * group, 1, dim], &device);
    (cache, q.cast(dtype))
}

fn wide<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    values(&tensor).into_iter().map(f64::from).collect()
}

fn read<const D: usize, K: Basic, E: Element>(tensor: Tensor<D, K>) -> Vec<E> {
    tensor.try_into_vec_as::<E>().unwrap()
}

/// Weights of a softmax over logits, and their largest logit's share of a rounding error bound.
fn softmax(logits: &[f64]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::MIN, f64::max);
    let weights: Vec<f64> = logits.iter().map(|x| (x - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

/// One key/value head of a problem in fp64.
struct Head {
    dim: usize,
    /// [g][d]
    q: Vec<Vec<f64>>,
    /// [S][d]
    k: Vec<Vec<f64>>,
    v: Vec<Vec<f64>>,
    span: (usize, usize),
    /// Rounding of the output's type.
    rounding: f64,
}

impl Head {
    /// Exact attention over the positions, and what fp32 may differ by: [g][d], [g].
    fn attend(&self, positions: &[usize]) -> (Vec<Vec<f64>>, Vec<f64>) {
        let largest = positions
            .iter()
            .flat_map(|&p| &self.v[p])
            .fold(0.0, |m: f64, v| m.max(v.abs()));
        let root = (self.dim as f64).sqrt();
        self.q
            .iter()
            .map(|q| {
                let dot = |k: &[f64]| q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() / root;
                let size =
                    |k: &[f64]| q.iter().zip(k).map(|(q, k)| (q * k).abs()).sum::<f64>() / root;
                let logits: Vec<f64> = positions.iter().map(|&p| dot(&self.k[p])).collect();
                let worst = positions
                    .iter()
                    .map(|&p| size(&self.k[p]))
                    .fold(0.0, f64::max);
                let mut y = vec![0.0; self.dim];
                for (weight, &p) in softmax(&logits).iter().zip(positions) {
                    for (y, v) in y.iter_mut().zip(&self.v[p]) {
                        *y += weight * v;
                    }
                }
                // Each logit is off by a share of its terms; each weight by that, up and down; each sum by its roundings.
                let logit = (self.dim + 4) as f64 * EPSILON * worst;
                let sums = (positions.len() as f64).sqrt() * EPSILON;
                (y, largest * (2.0 * logit + EXP + sums + self.rounding))
            })
            .unzip()
    }
}

/// The heads of a problem.
fn heads(cache: &KvCache, q: &Tensor<4>, rounding: f64) -> Vec<Head> {
    let [batch, kv_heads, capacity, dim] = cache.tensors().k.dims();
    let group = q.dims()[1] / kv_heads;
    let (q, k, v) = (
        wide(q.clone()),
        wide(cache.tensors().k.clone()),
        wide(cache.tensors().v.clone()),
    );
    let rows = |all: &[f64], count: usize, head: usize| -> Vec<Vec<f64>> {
        let matrix = &all[head * count * dim..(head + 1) * count * dim];
        matrix.chunks(dim).map(<[f64]>::to_vec).collect()
    };
    (0..batch * kv_heads)
        .map(|head| Head {
            dim,
            q: rows(&q, group, head),
            k: rows(&k, capacity, head),
            v: rows(&v, capacity, head),
            span: (
                cache.spans().start[head / kv_heads],
                cache.spans().end[head / kv_heads],
            ),
            rounding,
        })
        .collect()
}

fn rounding(dtype: FloatDType) -> f64 {
    match dtype {
        FloatDType::F16 => 2f64.powi(-11),
        FloatDType::BF16 => 2f64.powi(-8),
        _ => EPSILON,
    }
}

fn check_close(found: &[f64], expected: &[f64], bound: f64, case: &str) {
    for (found, expected) in found.iter().zip(expected) {
        let difference = (found - expected).abs();
        assert!(
            difference <= bound,
            "{case}: {found} for {expected}, bound {bound}"
        );
    }
}

/// Compares a dense step with fp64.
fn check_dense(shape: Shape, cache: &mut KvCache, q: &Tensor<4>) {
    let case = format!("dense {shape:?} {:?}", cache.spans());
    let found = wide(Method::DENSE.decode(q.clone(), cache).unwrap());
    for (h, head) in heads(cache, q, rounding(shape.dtype)).iter().enumerate() {
        let all: Vec<usize> = (head.span.0..head.span.1).collect();
        let (expected, bounds) = head.attend(&all);
        for g in 0..shape.group {
            let at = (h * shape.group + g) * shape.dim;
            check_close(&found[at..at + shape.dim], &expected[g], bounds[g], &case);
        }
    }
}

/// The settings with the next larger rank that decides between no equal magnitudes: 16-bit queries have such, and either choice is right.
fn without_tie(shape: Shape, q: &Tensor<4>, config: SparqConfig) -> SparqConfig {
    let q = wide(q.clone());
    let tied = |rank: usize| {
        q.chunks(shape.group * shape.dim).any(|group| {
            let column = |i: usize| group.iter().skip(i).step_by(shape.dim);
            let mut magnitude: Vec<f64> = (0..shape.dim)
                .map(|i| match config.components {
                    Components::SumAbs => column(i).map(|q| q.abs()).sum(),
                    Components::AbsSum => column(i).sum::<f64>().abs(),
                })
                .collect();
            magnitude.sort_unstable_by(|a, b| b.total_cmp(a));
            rank < shape.dim && magnitude[rank - 1] - magnitude[rank] < 1e-5
        })
    };
    let rank = (config.rank..=shape.dim).find(|&rank| !tied(rank));
    SparqConfig {
        rank: rank.unwrap_or(shape.dim),
        ..config
    }
}

/// Compares a SparQ step with fp64: the kept positions may differ where scores are as close as rounding, the rest follows from those that were kept.
fn check_sparq(shape: Shape, cache: &mut KvCache, q: &Tensor<4>, config: &SparqConfig) {
    let config = &without_tie(shape, q, *config);
    let case = format!("{config:?} {shape:?} {:?}", cache.spans());
    let found = config.decode_traced(q.clone(), cache).unwrap();
    let trace = reference::sparq_decode(q.clone(), cache.tensors(), cache.spans(), config);
    assert_eq!(found.positions.dtype(), trace.positions.dtype(), "{case}");
    assert_eq!(found.positions.dims(), trace.positions.dims(), "{case}");
    assert_eq!(found.output.dtype(), trace.output.dtype(), "{case}");
    assert_eq!(found.output.dims(), trace.output.dims(), "{case}");
    assert_eq!(found.alpha.dims(), trace.alpha.dims(), "{case}");

    let Shape { group, dim, .. } = shape;
    let k = found.positions.dims()[2];
    let components: Vec<i64> = read(trace.components);
    let positions: Vec<i64> = read(found.positions);
    let (alpha, output) = (wide(found.alpha), wide(found.output));
    let v_sum = wide(cache.tensors().v_sum.clone());
    let sketch = match cache.tensors().sketch.clone() {
        SketchTensors::Codes {
            bits,
            codes,
            scale: step,
            ..
        } => {
            let columns = sketch::unpack(codes, bits);
            let len = columns.dims()[3];
            let codes: Vec<i64> = read(columns);
            Some((codes, wide(step), len))
        }
        _ => None,
    };

    for (h, head) in heads(cache, q, rounding(shape.dtype)).iter().enumerate() {
        let (start, end) = head.span;
        let count = end - start;
        let i1 = &components[h * config.rank..(h + 1) * config.rank];
        // Steps 2 and 3.
        let key = |position: usize, i: usize| match &sketch {
            None => head.k[position][i],
            Some((codes, step, len)) => {
                let channel = h * dim + i;
                step[channel] * codes[channel * len + position] as f64
            }
        };
        let (mut probabilities, mut logits, mut errors) = (vec![], vec![], vec![]);
        for q in &head.q {
            let chosen: f64 = i1.iter().map(|&i| q[i as usize].abs()).sum();
            let whole: f64 = q.iter().map(|q| q.abs()).sum();
            let temperature = (dim as f64 * chosen / whole).sqrt();
            let terms = |p: usize| {
                i1.iter()
                    .map(move |&i| q[i as usize] / temperature * key(p, i as usize))
            };
            let x: Vec<f64> = (start..end).map(|p| terms(p).sum()).collect();
            let worst = (start..end)
                .map(|p| terms(p).map(f64::abs).sum())
                .fold(0.0, f64::max);
            // The weights q / temperature carry the roundings of two sums of up to d terms.
            errors.push((config.rank as f64 + dim as f64 + 8.0) * EPSILON * worst);
            probabilities.push(softmax(&x));
            logits.push(x);
        }
        let kept: Vec<usize> = positions[h * k..(h + 1) * k]
            .iter()
            .filter(|&&p| p >= 0)
            .map(|&p| p as usize)
            .collect();

        // Step 4.
        let mut sorted = kept.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(
            sorted.len(),
            k.min(count),
            "{case}: distinct and as many as there are"
        );
        assert!(
            sorted.iter().all(|p| (start..end).contains(p)),
            "{case}: valid"
        );
        let window = end - config.local_window.min(count).min(k);
        assert!(
            (window..end).all(|p| sorted.binary_search(&p).is_ok()),
            "{case}: the window"
        );
        let score = |p: usize| -> (f64, f64) {
            let p = p - start;
            match config.group_score {
                GroupScore::Logits => (
                    logits.iter().map(|x| x[p]).sum(),
                    errors.iter().sum::<f64>() * 2.0,
                ),
                GroupScore::Probabilities => (
                    probabilities.iter().map(|s| s[p]).sum(),
                    probabilities
                        .iter()
                        .zip(&errors)
                        .map(|(s, e)| s[p] * (2.0 * e + EXP))
                        .sum(),
                ),
            }
        };
        let worst_kept = sorted
            .iter()
            .filter(|&&p| p < window)
            .map(|&p| score(p).0 + score(p).1)
            .fold(f64::MAX, f64::min);
        let best_left = (start..window)
            .filter(|p| sorted.binary_search(p).is_err())
            .map(|p| score(p).0 - score(p).1)
            .fold(f64::MIN, f64::max);
        assert!(
            worst_kept >= best_left,
            "{case}: {worst_kept} was kept for {best_left}"
        );

        // Steps 5 to 7, for the positions that were kept.
        let (y, bounds) = head.attend(&sorted);
        let largest = head.v[start..end]
            .iter()
            .flatten()
            .fold(0.0, |m: f64, v| m.max(v.abs()));
        for g in 0..group {
            let expected: f64 = match count <= k {
                true => 1.0,
                false => sorted.iter().map(|&p| probabilities[g][p - start]).sum(),
            };
            let at = h * group + g;
            let bound = 2.0 * errors[g] + EXP + (count as f64).sqrt() * EPSILON;
            assert!(
                (alpha[at] - expected).abs() <= bound,
                "{case}: alpha {} for {expected}",
                alpha[at]
            );
            let mut y = y[g].clone();
            let mut y_bound = bounds[g];
            if config.mean_value.applies(group) {
                for (y, sum) in y.iter_mut().zip(&v_sum[h * dim..]) {
                    *y = *y * expected + sum / count as f64 * (1.0 - expected);
                }
                y_bound += 2.0 * bound * largest;
            }
            check_close(&output[at * dim..(at + 1) * dim], &y, y_bound, &case);
        }
    }
}

fn random_config(choice: &mut Choice, dim: usize, len: usize) -> SparqConfig {
    let top_k = choice.within(1, len);
    SparqConfig {
        rank: choice.within(1, dim),
        top_k,
        local_window: choice.of(&[0, 1, top_k / 4, top_k]),
        sketch: choice.of(&SKETCHES),
        mean_value: choice.of(&[MeanValue::Always, MeanValue::Never, MeanValue::Paper]),
        group_score: choice.of(&[GroupScore::Probabilities, GroupScore::Logits]),
        components: choice.of(&[Components::SumAbs, Components::AbsSum]),
    }
}

/// Random problems with at most `longest` positions.
fn random_problems(cases: u64, longest: usize, dims: &[usize]) {
    for case in 0..cases {
        let mut choice = Choice((case + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let shape = Shape {
            batch: choice.within(1, 3),
            kv_heads: choice.within(1, 3),
            group: choice.of(&[1, 2, 3, 4, 5, 8]),
            dim: choice.of(dims),
            len: choice.within(1, longest),
            dtype: choice.of(&DTYPES),
            ragged: choice.below(2) == 0,
        };
        let config = random_config(&mut choice, shape.dim, shape.len);
        let (mut cache, q) = problem(shape, &config, &mut choice);
        check_dense(shape, &mut cache, &q);
        check_sparq(shape, &mut cache, &q, &config);
    }
}

#[test]
fn short_caches_of_any_shape_are_as_in_fp64() {
    random_problems(300, 200, &[32, 64, 80, 96, 128, 256]);
}

#[test]
fn head_dims_that_are_no_multiple_of_a_vector_are_as_in_fp64() {
    random_problems(100, 150, &[1, 2, 3, 7, 20, 33, 100]);
}

#[test]
fn long_caches_of_any_shape_are_as_in_fp64() {
    random_problems(24, 4000, &[32, 64, 80, 96, 128]);
}

#[test]
fn one_head_of_many_positions_is_divided_among_threads_and_as_in_fp64() {
    for (case, sketch) in SKETCHES.into_iter().enumerate() {
        for (group, group_score) in [
            (1, GroupScore::Probabilities),
            (4, GroupScore::Probabilities),
            (4, GroupScore::Logits),
        ] {
            let mut choice = Choice(77 + case as u64);
            let shape = Shape {
                batch: 1,
                kv_heads: 1,
                group,
                dim: 64,
                len: 9001,
                dtype: DTYPES[case],
                ragged: true,
            };
            let config = SparqConfig::new(16, 1500)
                .with_sketch(sketch)
                .with_group_score(group_score)
                .with_mean_value(MeanValue::Always);
            let (mut cache, q) = problem(shape, &config, &mut choice);
            check_dense(shape, &mut cache, &q);
            check_sparq(shape, &mut cache, &q, &config);
        }
    }
}

#[test]
fn a_step_gives_the_same_bits_every_time() {
    let mut choice = Choice(5);
    let shape = Shape {
        batch: 1,
        kv_heads: 2,
        group: 4,
        dim: 64,
        len: 6000,
        dtype: FloatDType::F16,
        ragged: false,
    };
    let config = SparqConfig::new(16, 900).with_sketch(Sketch::Bits4);
    let (mut cache, q) = problem(shape, &config, &mut choice);
    let dense = values(&Method::DENSE.decode(q.clone(), &mut cache).unwrap());
    let sparq = config.decode_traced(q.clone(), &mut cache).unwrap();
    for _ in 0..20 {
        assert_eq!(
            values(&Method::DENSE.decode(q.clone(), &mut cache).unwrap()),
            dense
        );
        let again = config.decode_traced(q.clone(), &mut cache).unwrap();
        assert_eq!(values(&again.output), values(&sparq.output));
        assert_eq!(
            read::<3, Int, i64>(again.positions),
            read::<3, Int, i64>(sparq.positions.clone())
        );
    }
}

#[test]
fn fp64_caches_take_the_reference() {
    let mut choice = Choice(6);
    let shape = Shape {
        batch: 2,
        kv_heads: 2,
        group: 2,
        dim: 32,
        len: 100,
        dtype: FloatDType::F64,
        ragged: true,
    };
    for sketch in SKETCHES {
        let config = SparqConfig::new(8, 20).with_sketch(sketch);
        let (mut cache, q) = problem(shape, &config, &mut choice);
        check_dense(shape, &mut cache, &q);
        check_sparq(shape, &mut cache, &q, &config);
    }
}

#[test]
fn queries_of_another_type_than_the_cache_keep_theirs() {
    let mut choice = Choice(8);
    let shape = Shape {
        batch: 1,
        kv_heads: 2,
        group: 2,
        dim: 64,
        len: 300,
        dtype: FloatDType::F16,
        ragged: false,
    };
    let config = SparqConfig::new(16, 40).with_sketch(Sketch::Bits8);
    let (mut cache, q) = problem(shape, &config, &mut choice);
    let shape = Shape {
        dtype: FloatDType::F32,
        ..shape
    };
    let q = q.cast(FloatDType::F32);
    check_dense(shape, &mut cache, &q);
    check_sparq(shape, &mut cache, &q, &config);
}

/// The bits of every buffer of a cache.
fn contents(tensors: &sparq::ops::CacheTensors) -> Vec<Vec<u32>> {
    let floats =
        |tensor: Tensor<1>| -> Vec<u32> { values(&tensor).into_iter().map(f32::to_bits).collect() };
    let mut all = vec![
        floats(tensors.k.clone().flatten(0, 3)),
        floats(tensors.v.clone().flatten(0, 3)),
        floats(tensors.v_sum.clone().flatten(0, 2)),
        read(tensors.spans.clone()),
    ];
    match tensors.sketch.clone() {
        SketchTensors::None => {}
        SketchTensors::Full(kt) => all.push(floats(kt.flatten(0, 3))),
        SketchTensors::Codes {
            codes,
            zero_point: lo,
            scale: step,
            ..
        } => {
            all.push(read(codes));
            all.push(floats(lo.flatten(0, 2)));
            all.push(floats(step.flatten(0, 2)));
        }
    }
    all
}

#[test]
fn a_token_is_appended_as_by_tensor_operations() {
    let device = Device::flex();
    for dtype in DTYPES {
        for sketch in [
            None,
            Some(Sketch::Full),
            Some(Sketch::Bits8),
            Some(Sketch::Bits4),
        ] {
            for encode in [false, true] {
                let config = KvCacheConfig::new(3, 2, 20)
                    .with_capacity(64)
                    .with_dtype(dtype)
                    .with_sketch(sketch);
                let mut noise = Noise(3);
                let mut cache = config.init(&device).unwrap();
                // The third sequence is still within its padding, and the token there is not of its sum.
                cache.set_left_padding(&[0, 2, 30]).unwrap();
                let prefill = noise.tensor([3, 2, 21, 20], &device);
                cache
                    .append_ragged(prefill.clone(), prefill, &[21, 13, 20])
                    .unwrap();
                cache.refresh_sketch();
                let mut native = cache.tensors().clone();
                let mut plain = native.clone();
                let mut rows: Spans = cache.spans().clone();
                for counts in [[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1, 1]] {
                    let mut token = noise.values(3 * 2 * 20);
                    token[3] = f32::NAN;
                    token[44] = f32::INFINITY;
                    token[85] = -1e4;
                    let token =
                        Tensor::<1>::from_floats(token.as_slice(), &device).reshape([3, 2, 1, 20]);
                    // As a projection leaves it: positions before heads.
                    let k = token.clone().reshape([3, 1, 2, 20]).swap_dims(1, 2);
                    let v = token * 0.5;
                    native = ops::append(native, k.clone(), v.clone(), &rows, &counts, encode);
                    plain = reference::append::append(plain, k, v, &rows, &counts, encode);
                    rows = rows.grown(&counts);
                    assert_eq!(
                        contents(&native),
                        contents(&plain),
                        "{dtype:?} {sketch:?} {encode}"
                    );
                }
            }
        }
    }
}
