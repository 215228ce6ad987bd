//! SparQ attention in plain tensor operations: the paper's Algorithm 1, on any backend.
//!
//! This file is the specification. The `ndarray` backend runs it, and every faster implementation
//! is tested against it. It is written to be read next to Ribar et al., "SparQ Attention:
//! Bandwidth-Efficient LLM Inference" (ICML 2024), and not to be fast.
//!
//! # Notation
//!
//! B sequences, H query heads, H_kv KV heads, g = H / H_kv, d the head dimension, S positions, r
//! the rank, k the number of selected positions. Under a sliding window of W positions, `spans`
//! holds the spans inside it, max(start, end - W) .. end. Nothing else of a step changes.
//!
//! # Softcap
//!
//! The exact logits of a cache with a softcap are bounded. The approximate ones are not: the bound
//! grows monotonically with the logit, so that each head ranks positions alike with and without it.
//! Where they do matter, in alpha and in the scores that a group sums, they are approximations.
//!
//! # Degenerate input
//!
//! - A query head of zeros, or of zeros in the selected components, scores all positions equally.
//!   The paper's temperature would be 0/0.
//! - An approximate score of NaN ranks last. An infinite one counts as the largest finite number.
//! - NaN and infinities in selected keys or values give the result of dense attention: NaN or
//!   infinity in the output of that head. With the mean value, a NaN in any value reaches every
//!   output.
//! - Among equal scores at the border of the k positions, any may be selected.
//! - A sequence without a valid position gives zeros.

pub mod append;
mod argmax;
mod causal;
mod linear;
mod tensor;

pub use argmax::argmax;
pub use causal::causal_attention;
pub(crate) use causal::{CHUNK, hidden};
pub use linear::{decode_linear, normalize};
pub(crate) use tensor::{LARGEST, bounded, expand_heads, fill_invalid, finite, softmax, take_rows};

use burn::tensor::{Bool, FloatDType, Int, Tensor};

use crate::SparqConfig;
use crate::methods::{Components, GroupScore, Magnitude};
use crate::ops::{CacheTensors, SketchTensors, Spans};
use crate::sketch;

/// Every intermediate result of a SparQ decode step.
#[derive(Clone, Debug)]
pub struct SparqTrace {
    /// i1: the selected components of the query, [B, H_kv, r], in no particular order.
    pub components: Tensor<3, Int>,
    /// The approximate logits, [B, H_kv, g, S]. Undefined at positions that are not valid.
    pub logits: Tensor<4>,
    /// i2: the selected positions, [B, H_kv, k], in no particular order.
    ///
    /// -1 fills up the list of a sequence with fewer than k valid positions.
    pub positions: Tensor<3, Int>,
    /// alpha: the sum of the approximate scores of i2, [B, H]. 1 where all positions are selected.
    pub alpha: Tensor<2>,
    /// v_bar: the mean of V over the valid positions, [B, H_kv, d].
    pub mean_value: Tensor<3>,
    /// The attention output, [B, H, 1, d] in the query's type.
    pub output: Tensor<4>,
}

/// Takes one decode step of SparQ with the query of the current token, q [B, H, 1, d].
///
/// The cache already holds the token's key and value.
///
/// # Panics
/// If the cache does not hold the sketch that `config` names. Callers check it.
pub fn sparq_decode(
    q: Tensor<4>,
    cache: &CacheTensors,
    spans: &Spans,
    config: &SparqConfig,
) -> SparqTrace {
    let dtype = q.dtype();
    let q = group(q, cache.k.dims()[1]);

    // Stage 1, approximate scores.
    // i1 = argtop_r |q|, tau = sqrt(d |q[i1]|_1 / |q|_1): of q, or of q times the keys' ranges.
    let size = component_sizes(&q, &cache.sketch, config);
    let i1 = select_components(&size, config);
    let of_i1 = |t: &Tensor<4>| t.clone().gather(3, expand_heads(i1.clone(), &q));
    let q1 = of_i1(&q);
    let tau = temperature(&size, &of_i1(&size));
    // q[i1] . K[:, i1]^T / tau, the logits of s_hat.
    let score = |q1| approximate_logits(q1, &i1, &cache.sketch, spans.longest());

    // Stages 2 and 3.
    let step = select_and_attend(&q, q1 / tau, score, cache, spans, config);
    let [batch, kv_heads, g, d] = q.dims();
    SparqTrace {
        components: i1,
        logits: step.logits,
        positions: match step.valid {
            Some(valid) => step.positions.mask_fill(valid.bool_not(), -1),
            None => step.positions,
        },
        alpha: step.alpha.reshape([batch, kv_heads * g]),
        mean_value: step.mean_value,
        output: step
            .output
            .reshape([batch, kv_heads * g, 1, d])
            .cast(FloatDType::from(dtype)),
    }
}

/// The result of [`select_and_attend`].
pub(crate) struct Attended {
    /// The approximate logits, finite.
    logits: Tensor<4>,
    /// i2, [B, H_kv, k].
    positions: Tensor<3, Int>,
    /// True for the valid ones of i2; `None` if all are valid.
    valid: Option<Tensor<3, Bool>>,
    /// alpha, [B, H_kv, g, 1].
    alpha: Tensor<4>,
    /// v_bar, [B, H_kv, d].
    mean_value: Tensor<3>,
    /// y, [B, H_kv, g, d] in fp32.
    pub output: Tensor<4>,
}

/// The softmax of stage 1, and stages 2 and 3, for q [B, H_kv, g, d].
///
/// `score` returns the approximate logits [B, H_kv, n, S] of queries [B, H_kv, n, _]. `q1` are the
/// queries of the heads.
pub(crate) fn select_and_attend(
    q: &Tensor<4>,
    q1: Tensor<4>,
    score: impl Fn(Tensor<4>) -> Tensor<4>,
    cache: &CacheTensors,
    spans: &Spans,
    config: &SparqConfig,
) -> Attended {
    let (g, device) = (q.dims()[2], q.device());
    let k = config.top_k.min(spans.longest());
    // s_hat = softmax(q[i1] . K[:, i1]^T / tau).
    let logits = finite(score(q1.clone()));
    let s_hat = softmax(logits.clone(), spans.valid(&device));

    // Stage 2, top-k selection.
    // i2 = argtop_k(s_hat + local window), alpha = sum of s_hat over i2.
    let score = group_score(q1, &s_hat, score, config);
    let (i2, valid) = select_positions(score, spans, config, k);
    let alpha = alpha(s_hat, &i2, spans, k);

    // Stage 3, exact attention.
    // y = alpha softmax(q . K[i2]^T / sqrt(d)) . V[i2] + (1 - alpha) v_bar.
    let keys = cache.k.take(&i2);
    let values = cache.v.take(&i2);
    let y = attend(q, [keys, values], valid.clone(), cache.softcap);
    let v_bar = cache.v_sum.clone() / spans.counts(&device).clamp_min(1.0);
    let y = if config.mean_value.applies(g) {
        let mean = v_bar.clone().unsqueeze_dim::<4>(2);
        y * alpha.clone() + mean * (-alpha.clone() + 1.0)
    } else {
        y
    };
    Attended {
        logits,
        positions: i2,
        valid,
        alpha,
        mean_value: v_bar,
        output: y,
    }
}

/// Dense attention for one decode step, q [B, H, 1, d] -> [B, H, 1, d].
pub fn dense_decode(q: Tensor<4>, cache: &CacheTensors, spans: &Spans) -> Tensor<4> {
    let ([batch, heads, _, d], dtype, device) = (q.dims(), q.dtype(), q.device());
    let [_, kv_heads, _, _] = cache.k.dims();
    let seq_len = spans.longest();
    let valid = spans.valid(&device);
    let valid = valid.map(|valid| valid.expand([batch, kv_heads, seq_len]));
    let y = attend(
        &group(q, kv_heads),
        [cache.k.at(0..seq_len), cache.v.at(0..seq_len)],
        valid,
        cache.softcap,
    );
    y.reshape([batch, heads, 1, d])
        .cast(FloatDType::from(dtype))
}

/// Stage 3 for a layer that takes the positions of another one, q [B, H, 1, d] -> [B, H, 1, d].
///
/// `positions` [B, N, k] are the i2 of N KV heads. KV head h attends to those of head `heads[h]`,
/// `[H_kv]`. The step has no approximate scores, and so no alpha and no mean value.
pub fn attend_positions(
    q: Tensor<4>,
    cache: &CacheTensors,
    positions: Tensor<3, Int>,
    heads: Tensor<1, Int>,
    spans: &Spans,
) -> Tensor<4> {
    let (shape, dtype, [_, kv_heads, _, _]) = (q.dims(), q.dtype(), cache.k.dims());
    let i2 = positions.select(1, heads);
    let k = i2.dims()[2];
    // -1 fills up the lists of short sequences.
    let short = (0..spans.batch()).any(|sequence| spans.count(sequence) < k);
    let valid = short.then(|| i2.clone().greater_equal_elem(0));
    let i2 = i2.clamp_min(0).cast(q.device().settings().int_dtype);
    let rows = [cache.k.take(&i2), cache.v.take(&i2)];
    let y = attend(&group(q, kv_heads), rows, valid, cache.softcap);
    y.reshape(shape).cast(FloatDType::from(dtype))
}

/// Groups the query heads by KV head, [B, H, 1, d] -> [B, H_kv, g, d] in fp32.
///
/// Query head j reads KV head j / g.
pub fn group(q: Tensor<4>, kv_heads: usize) -> Tensor<4> {
    let [batch, heads, _, d] = q.dims();
    q.reshape([batch, kv_heads, heads / kv_heads, d])
        .cast(FloatDType::F32)
}

/// Stage 1: q [B, H_kv, g, d], each component times the range of the keys if its contribution
/// counts.
///
/// The scale of the codes is the range over their number, which is the same for all components.
fn component_sizes(q: &Tensor<4>, sketch: &SketchTensors, config: &SparqConfig) -> Tensor<4> {
    match (config.magnitude, sketch) {
        (Magnitude::Contribution, SketchTensors::Codes { scale, .. }) => {
            q.clone() * scale.clone().unsqueeze_dim::<4>(2)
        }
        _ => q.clone(),
    }
}

/// Stage 1: i1, the r components of the group's queries with the largest magnitude.
///
/// q [B, H_kv, g, d] -> [B, H_kv, r].
pub fn select_components(q: &Tensor<4>, config: &SparqConfig) -> Tensor<3, Int> {
    let magnitude = match config.components {
        Components::SumAbs => q.clone().abs().sum_dim(2),
        Components::AbsSum => q.clone().sum_dim(2).abs(),
    };
    magnitude
        .squeeze_dim::<3>(2)
        .topk_with_indices(config.rank, 2)
        .1
}

/// Stage 1: tau, the temperature that corrects for the components left out, [B, H_kv, g, 1].
///
/// If the selected components of a head are all zero, all scores are 0 at any temperature, and the
/// ratio of the norms is set to 1.
pub fn temperature(q: &Tensor<4>, q1: &Tensor<4>) -> Tensor<4> {
    let d = q.dims()[3] as f32;
    let (selected, whole) = (q1.clone().abs().sum_dim(3), q.clone().abs().sum_dim(3));
    let zero = selected.clone().equal_elem(0.0);
    let ratio = (selected / whole).mask_fill(zero, 1.0);
    (ratio * d).sqrt()
}

/// Stage 1: the approximate logits of q1 / tau [B, H_kv, g, r] against the key sketch, [B, H_kv, g,
/// S].
///
/// A code n stands for the key zero_point + scale n. The term of the zero point is the same at all
/// positions and cancels in the softmax and in the ranking, so it is left out.
///
/// # Panics
/// If there is no sketch.
pub fn approximate_logits(
    q1: Tensor<4>,
    i1: &Tensor<3, Int>,
    sketch: &SketchTensors,
    seq_len: usize,
) -> Tensor<4> {
    match sketch {
        SketchTensors::None => panic!("SparQ needs a cache with a key sketch"),
        SketchTensors::Full(kt) => {
            let keys = take_rows(kt.clone(), i1)
                .slice_dim(3, 0..seq_len)
                .cast(FloatDType::F32);
            q1.matmul(keys)
        }
        SketchTensors::Codes {
            bits, codes, scale, ..
        } => {
            let codes =
                sketch::unpack(take_rows(codes.clone(), i1), *bits).slice_dim(3, 0..seq_len);
            let scale = scale.clone().gather(2, i1.clone()).unsqueeze_dim::<4>(2);
            (q1 * scale).matmul(codes.float().cast(FloatDType::F32))
        }
    }
}

/// Stage 2: the score by which a group ranks positions, [B, H_kv, 1, S].
///
/// It is the sum of s_hat [B, H_kv, g, S] over the group, or of the logits. The sum of the logits
/// is the logit of the summed queries `q1`.
pub(crate) fn group_score(
    q1: Tensor<4>,
    s_hat: &Tensor<4>,
    score: impl Fn(Tensor<4>) -> Tensor<4>,
    config: &SparqConfig,
) -> Tensor<4> {
    match config.group_score {
        GroupScore::Probabilities => s_hat.clone().sum_dim(2),
        GroupScore::Logits => finite(score(q1.sum_dim(2))),
    }
}

/// Stage 2: i2, the k positions with the largest group score [B, H_kv, 1, S].
///
/// The local window is always among them. Returns the positions [B, H_kv, k], and which of them are
/// valid if some sequence has fewer than k valid positions.
pub fn select_positions(
    score: Tensor<4>,
    spans: &Spans,
    config: &SparqConfig,
    k: usize,
) -> (Tensor<3, Int>, Option<Tensor<3, Bool>>) {
    top_positions(score.squeeze_dim::<3>(2), spans, config.local_window, k)
}

/// Returns the k positions with the largest score [B, H_kv, S], always with the last
/// `local_window`.
///
/// As [`select_positions`].
pub(crate) fn top_positions(
    mut score: Tensor<3>,
    spans: &Spans,
    local_window: usize,
    k: usize,
) -> (Tensor<3, Int>, Option<Tensor<3, Bool>>) {
    let (shape, device) = (score.dims(), score.device());
    if local_window > 0 {
        let local = spans.latest(local_window, &device).expand(shape);
        score = score.mask_fill(local, f32::INFINITY);
    }
    if let Some(valid) = spans.valid(&device) {
        score = score.mask_fill(valid.expand(shape).bool_not(), f32::NEG_INFINITY);
    }
    let (score, positions) = score.topk_with_indices(k, 2);
    let short = (0..spans.batch()).any(|sequence| spans.count(sequence) < k);
    let valid = short.then(|| score.greater_elem(f32::NEG_INFINITY));
    (positions, valid)
}

/// Stage 2: alpha, the sum of s_hat over i2, [B, H_kv, g, 1], in [0, 1].
///
/// Exactly 1 for a sequence of up to k valid positions, which are all selected.
pub fn alpha(s_hat: Tensor<4>, i2: &Tensor<3, Int>, spans: &Spans, k: usize) -> Tensor<4> {
    let [batch, kv_heads, g, _] = s_hat.dims();
    let complete = spans
        .counts(&s_hat.device())
        .lower_equal_elem(k as f32)
        .reshape([batch, 1, 1, 1]);
    let index = expand_heads(i2.clone(), &s_hat);
    let alpha = s_hat.gather(3, index).sum_dim(3).clamp(0.0, 1.0);
    alpha.mask_fill(complete.expand([batch, kv_heads, g, 1]), 1.0)
}

/// Stage 3: exact attention of q [B, H_kv, g, d] over n keys and values [B, H_kv, n, d], in fp32.
///
/// Attends to the `valid` ones [B, H_kv, n], to all if `None`, with logits bounded by `softcap`.
pub fn attend(
    q: &Tensor<4>,
    [keys, values]: [Tensor<4>; 2],
    valid: Option<Tensor<3, Bool>>,
    softcap: Option<f64>,
) -> Tensor<4> {
    let d = keys.dims()[3] as f32;
    let logits = q.clone().matmul(keys.cast(FloatDType::F32).transpose()) / d.sqrt();
    let values = fill_invalid(values.cast(FloatDType::F32), valid.clone(), 0.0);
    softmax(bounded(logits, softcap), valid).matmul(values)
}
