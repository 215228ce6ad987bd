//! Dense attention and SparQ in fp64, and bounds on the difference of fp32 kernels.

use burn::tensor::kind::Basic;
use burn::tensor::{Element, FloatDType, Tensor};
use sparq::methods::{Components, GroupScore, Magnitude};
use sparq::ops::SparqOutput;
use sparq::ops::{SketchTensors, sketch};
use sparq::{KvCache, Method, SparqConfig, reference};

use super::Shape;
use crate::common::values;

/// Twice the rounding error of one fp32 operation.
const EPSILON: f64 = f32::EPSILON as f64;

/// The relative error of an exponential, and of anything scaled by one.
const EXP: f64 = 2e-6;

/// Reads a float tensor as f64.
fn wide<const D: usize>(tensor: &Tensor<D>) -> Vec<f64> {
    values(tensor).into_iter().map(f64::from).collect()
}

/// Reads a tensor in any type.
pub fn read<const D: usize, K: Basic, E: Element>(tensor: Tensor<D, K>) -> Vec<E> {
    tensor.try_into_vec_as::<E>().unwrap()
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::MIN, f64::max);
    let weights: Vec<f64> = logits.iter().map(|x| (x - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

fn largest_magnitude<'a>(values: impl Iterator<Item = &'a f64>) -> f64 {
    values.fold(0.0, |largest, value| value.abs().max(largest))
}

/// One batch head of a problem.
struct Head {
    dim: usize,
    /// [g][d]
    q: Vec<Vec<f64>>,
    /// [S][d]
    k: Vec<Vec<f64>>,
    /// [S][d]
    v: Vec<Vec<f64>>,
    /// [d]
    v_sum: Vec<f64>,
    span: (usize, usize),
    /// The rounding error of the output's type.
    rounding: f64,
}

impl Head {
    /// Returns exact attention over the positions, [g][d], and a bound on the error in fp32, [g].
    fn attend(&self, positions: &[usize]) -> (Vec<Vec<f64>>, Vec<f64>) {
        let largest = largest_magnitude(positions.iter().flat_map(|&p| &self.v[p]));
        let root = (self.dim as f64).sqrt();
        let attend = |q: &Vec<f64>| {
            let terms = |p: usize| q.iter().zip(&self.k[p]).map(|(q, k)| q * k);
            let logit = |&p: &usize| terms(p).sum::<f64>() / root;
            let magnitude = |&p: &usize| terms(p).map(f64::abs).sum::<f64>() / root;
            let logits: Vec<f64> = positions.iter().map(logit).collect();
            let worst = positions.iter().map(magnitude).fold(0.0, f64::max);
            let mut y = vec![0.0; self.dim];
            for (weight, &p) in softmax(&logits).iter().zip(positions) {
                for (y, v) in y.iter_mut().zip(&self.v[p]) {
                    *y += weight * v;
                }
            }
            // A logit has an error relative to the sum of its terms. It enters a weight twice, in
            // the numerator and in the denominator. The sums add their own rounding errors.
            let logit = (self.dim + 4) as f64 * EPSILON * worst;
            let sums = (positions.len() as f64).sqrt() * EPSILON;
            (y, largest * (2.0 * logit + EXP + sums + self.rounding))
        };
        self.q.iter().map(attend).unzip()
    }
}

/// Returns the batch heads of a problem.
fn heads(cache: &KvCache, q: &Tensor<4>, dtype: FloatDType) -> Vec<Head> {
    let [batch, kv_heads, capacity, dim] = cache.tensors().k.dims();
    let group = q.dims()[1] / kv_heads;
    let (q, k, v) = (
        wide(q),
        wide(&cache.tensors().k.floats()),
        wide(&cache.tensors().v.floats()),
    );
    let (v_sum, spans) = (wide(&cache.tensors().v_sum), cache.spans());
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
            v_sum: v_sum[head * dim..(head + 1) * dim].to_vec(),
            span: (spans.start[head / kv_heads], spans.end[head / kv_heads]),
            rounding: match dtype {
                FloatDType::F16 => 2f64.powi(-11),
                FloatDType::BF16 => 2f64.powi(-8),
                _ => EPSILON,
            },
        })
        .collect()
}

fn assert_close(found: &[f64], expected: &[f64], bound: f64, case: &str) {
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (found - expected).abs() <= bound,
            "{case}: {found} instead of {expected}, bound {bound}"
        );
    }
}

/// Compares a dense step with fp64.
pub fn check_dense(shape: Shape, cache: &mut KvCache, q: &Tensor<4>) {
    let case = format!("dense {shape:?} {:?}", cache.spans());
    let found = wide(&Method::DENSE.decode(q.clone(), cache).unwrap());
    for (h, head) in heads(cache, q, shape.dtype).iter().enumerate() {
        let all: Vec<usize> = (head.span.0..head.span.1).collect();
        let (expected, bounds) = head.attend(&all);
        for g in 0..shape.group {
            let at = (h * shape.group + g) * shape.dim;
            assert_close(&found[at..at + shape.dim], &expected[g], bounds[g], &case);
        }
    }
}

/// Returns the settings with the smallest larger rank that has no tie between magnitudes. 16-bit
/// queries have ties, and either selection is right.
fn without_tie(
    shape: Shape,
    q: &Tensor<4>,
    codes: Option<&Codes>,
    config: SparqConfig,
) -> SparqConfig {
    let q = wide(q);
    let tied = |rank: usize| {
        let mut groups = q.chunks(shape.group * shape.dim).enumerate();
        groups.any(|(h, group)| {
            let column = |i: usize| group.iter().skip(i).step_by(shape.dim);
            let mut magnitude: Vec<f64> = (0..shape.dim)
                .map(|i| match config.components {
                    Components::SumAbs => column(i).map(|q| q.abs()).sum(),
                    Components::AbsSum => column(i).sum::<f64>().abs(),
                })
                .enumerate()
                .map(|(i, sum): (usize, f64)| sum * weight(codes, &config, h * shape.dim + i))
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

/// Returns the number that the size of a channel's component counts times.
fn weight(codes: Option<&Codes>, config: &SparqConfig, channel: usize) -> f64 {
    match (config.magnitude, codes) {
        (Magnitude::Contribution, Some(codes)) => codes.scales[channel],
        _ => 1.0,
    }
}

/// The codes of a key sketch.
struct Codes {
    /// [B, H_kv, d, len]
    codes: Vec<i64>,
    /// [B, H_kv, d]
    scales: Vec<f64>,
    len: usize,
}

impl Codes {
    fn of(cache: &KvCache) -> Option<Self> {
        let SketchTensors::Codes {
            bits, codes, scale, ..
        } = &cache.tensors().sketch
        else {
            return None;
        };
        let codes = sketch::unpack(codes.clone(), *bits);
        Some(Self {
            len: codes.dims()[3],
            codes: read(codes),
            scales: wide(scale),
        })
    }

    /// Returns a key without its zero point, which does not change a softmax.
    fn key(&self, channel: usize, position: usize) -> f64 {
        self.scales[channel] * self.codes[channel * self.len + position] as f64
    }
}

/// The approximate scores of one batch head.
struct Scores {
    /// The first valid position, to which the other fields are relative.
    start: usize,
    /// [g][count]
    logits: Vec<Vec<f64>>,
    /// [g][count]
    probabilities: Vec<Vec<f64>>,
    /// Bounds on the errors of the logits, [g].
    errors: Vec<f64>,
}

impl Scores {
    /// Scores the valid positions of a head from the components i1 of `key(position, component)`.
    /// The size of a component counts times its weight.
    fn new(
        head: &Head,
        i1: &[i64],
        weight: impl Fn(usize) -> f64,
        key: impl Fn(usize, usize) -> f64,
    ) -> Self {
        let (start, end) = head.span;
        let mut scores = Self {
            start,
            logits: vec![],
            probabilities: vec![],
            errors: vec![],
        };
        for q in &head.q {
            let size = |i: usize| q[i].abs() * weight(i);
            let selected: f64 = i1.iter().map(|&i| size(i as usize)).sum();
            let all: f64 = (0..q.len()).map(size).sum();
            let ratio = if selected == 0.0 { 1.0 } else { selected / all };
            let temperature = (head.dim as f64 * ratio).sqrt();
            let terms = |p: usize| {
                let key = &key;
                i1.iter()
                    .map(move |&i| q[i as usize] / temperature * key(p, i as usize))
            };
            let logits: Vec<f64> = (start..end).map(|p| terms(p).sum()).collect();
            let worst = (start..end)
                .map(|p| terms(p).map(f64::abs).sum())
                .fold(0.0, f64::max);
            // The weights q / temperature carry the roundings of two sums of up to d terms.
            let roundings = i1.len() as f64 + head.dim as f64 + 8.0;
            scores.errors.push(roundings * EPSILON * worst);
            scores.probabilities.push(softmax(&logits));
            scores.logits.push(logits);
        }
        scores
    }

    /// Returns the group score of a position and a bound on its error.
    fn group_score(&self, position: usize, config: &SparqConfig) -> (f64, f64) {
        let p = position - self.start;
        match config.group_score {
            GroupScore::Logits => (
                self.logits.iter().map(|x| x[p]).sum(),
                self.errors.iter().sum::<f64>() * 2.0,
            ),
            GroupScore::Probabilities => (
                self.probabilities.iter().map(|s| s[p]).sum(),
                self.probabilities
                    .iter()
                    .zip(&self.errors)
                    .map(|(s, e)| s[p] * (2.0 * e + EXP))
                    .sum(),
            ),
        }
    }
}

/// Compares a SparQ step with fp64. Selections may differ if scores differ by no more than
/// rounding. The remaining stages are checked for the positions that the step selected.
pub fn check_sparq(shape: Shape, cache: &mut KvCache, q: &Tensor<4>, config: &SparqConfig) {
    cache.refresh_sketch();
    let codes = Codes::of(cache);
    let config = &without_tie(shape, q, codes.as_ref(), *config);
    let case = format!("{config:?} {shape:?} {:?}", cache.spans());
    let found = config.decode_traced(q.clone(), cache).unwrap();
    let trace = reference::sparq_decode(q.clone(), cache.tensors(), cache.spans(), config);
    assert_eq!(found.positions.dtype(), trace.positions.dtype(), "{case}");
    assert_eq!(found.positions.dims(), trace.positions.dims(), "{case}");
    assert_eq!(found.output.dtype(), trace.output.dtype(), "{case}");
    assert_eq!(found.output.dims(), trace.output.dims(), "{case}");
    assert_eq!(found.alpha.dims(), trace.alpha.dims(), "{case}");

    let components: Vec<i64> = read(trace.components);
    let step = Step::new(shape, config, found, case);
    for (h, head) in heads(cache, q, shape.dtype).iter().enumerate() {
        let i1 = &components[h * config.rank..(h + 1) * config.rank];
        let weight = |i: usize| weight(codes.as_ref(), config, h * shape.dim + i);
        let scores = Scores::new(head, i1, weight, |position, i| match &codes {
            None => head.k[position][i],
            Some(codes) => codes.key(h * shape.dim + i, position),
        });
        let selected = step.check_selection(h, head, &scores);
        step.check_output(h, head, &scores, &selected);
    }
}

/// The result of a SparQ step.
struct Step<'a> {
    shape: Shape,
    config: &'a SparqConfig,
    k: usize,
    /// [B, H_kv, k]
    positions: Vec<i64>,
    /// [B, H]
    alpha: Vec<f64>,
    /// [B, H, d]
    output: Vec<f64>,
    case: String,
}

impl<'a> Step<'a> {
    fn new(shape: Shape, config: &'a SparqConfig, found: SparqOutput, case: String) -> Self {
        Self {
            shape,
            config,
            k: found.positions.dims()[2],
            positions: read(found.positions),
            alpha: wide(&found.alpha),
            output: wide(&found.output),
            case,
        }
    }

    /// Checks stage 2 for batch head `h` and returns its selected positions, ascending.
    fn check_selection(&self, h: usize, head: &Head, scores: &Scores) -> Vec<usize> {
        let Self {
            config, k, case, ..
        } = self;
        let (start, end) = head.span;
        let count = end - start;
        let found = self.positions[h * k..(h + 1) * k].iter();
        let mut selected: Vec<usize> = found.flat_map(|&p| usize::try_from(p)).collect();
        selected.sort_unstable();
        selected.dedup();
        assert_eq!(selected.len(), *k.min(&count), "{case}: distinct positions");
        let valid = selected.iter().all(|p| (start..end).contains(p));
        assert!(valid, "{case}: selected positions must be valid");
        let is_selected = |p: &usize| selected.binary_search(p).is_ok();
        let window = end - config.local_window.min(count).min(*k);
        let local = (window..end).all(|p| is_selected(&p));
        assert!(local, "{case}: the local window must be selected");
        let score = |p: usize| scores.group_score(p, config);
        let lowest_selected = selected
            .iter()
            .filter(|&&p| p < window)
            .map(|&p| score(p).0 + score(p).1)
            .fold(f64::MAX, f64::min);
        let highest_other = (start..window)
            .filter(|p| !is_selected(p))
            .map(|p| score(p).0 - score(p).1)
            .fold(f64::MIN, f64::max);
        assert!(
            lowest_selected >= highest_other,
            "{case}: a score of {lowest_selected} was selected and {highest_other} was not"
        );
        selected
    }

    /// Checks alpha and the outputs of batch head `h` for its selected positions.
    fn check_output(&self, h: usize, head: &Head, scores: &Scores, selected: &[usize]) {
        let Shape { group, dim, .. } = self.shape;
        let (start, end) = head.span;
        let count = end - start;
        let (mut expected, mut bounds) = head.attend(selected);
        let largest = largest_magnitude(head.v[start..end].iter().flatten());
        for g in 0..group {
            let probabilities = &scores.probabilities[g];
            let alpha: f64 = match count <= self.k {
                true => 1.0,
                false => selected.iter().map(|&p| probabilities[p - start]).sum(),
            };
            let at = h * group + g;
            let bound = 2.0 * scores.errors[g] + EXP + (count as f64).sqrt() * EPSILON;
            assert!(
                (self.alpha[at] - alpha).abs() <= bound,
                "{}: alpha {} instead of {alpha}",
                self.case,
                self.alpha[at]
            );
            if self.config.mean_value.applies(group) {
                for (y, sum) in expected[g].iter_mut().zip(&head.v_sum) {
                    *y = *y * alpha + sum / count as f64 * (1.0 - alpha);
                }
                bounds[g] += 2.0 * bound * largest;
            }
            let found = &self.output[at * dim..(at + 1) * dim];
            assert_close(found, &expected[g], bounds[g], &self.case);
        }
    }
}
