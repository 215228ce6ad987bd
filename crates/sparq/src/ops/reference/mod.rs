//! SparQ attention in plain tensor operations: the algorithm as the paper states it, on any backend.
//!
//! This file is the specification. It is what the `ndarray` backend runs and what every faster implementation is tested against, so it is
//! written to be read next to Algorithm 1 of Ribar et al., "SparQ Attention: Bandwidth-Efficient LLM Inference" (ICML 2024), not to be fast.
//!
//! Notation: B sequences, H query heads, H_kv key/value heads, g = H / H_kv, d the head dim, S positions, r the rank, k the kept positions.
//!
//! Under a sliding window of W positions, `rows` has the spans inside it, max(start, end - W) .. end: nothing else of a step changes.
//!
//! # Degenerate input
//! - A query head that is all zeros, or zero on the chosen components, scores every position equally (the paper's temperature would be 0/0).
//! - An approximate score that is NaN ranks its position last; an infinite one counts as the largest finite number.
//! - NaN and infinities in keys or values that are *kept* give what dense attention gives: NaN or infinity in the output of that head.
//!   With mean-value reallocation, a NaN in any value reaches every output, since the mean holds it.
//! - Among equal scores at the border of the k kept positions, any may be taken.
//! - A sequence without a valid position gives zeros.

pub mod write;

use burn::tensor::{Bool, FloatDType, Int, Tensor};

use crate::sketch;
use crate::{CacheTensors, Components, GroupScore, RowSpans, SketchTensors, SparqConfig};

/// The largest finite score. Infinite scores are clamped to it, so that infinities are free to mark positions that must or must not be taken.
pub(crate) const LARGEST: f32 = f32::MAX;

/// Every intermediate result of a SparQ decode step.
#[derive(Clone, Debug)]
pub struct SparqTrace {
    /// Step 1: the chosen components i1 of the query, [B, H_kv, r], in no particular order.
    pub components: Tensor<3, Int>,
    /// Step 3 before the softmax: approximate logits, [B, H_kv, g, S]. Meaningless at positions that are not valid.
    pub logits: Tensor<4>,
    /// Step 4: the kept positions i2, [B, H_kv, k], in no particular order; -1 fills up where a sequence has fewer than k valid positions.
    pub positions: Tensor<3, Int>,
    /// Step 5: the approximate probability that the kept positions hold, [B, H]; 1 where everything is kept.
    pub alpha: Tensor<2>,
    /// The mean of V over the valid positions, [B, H_kv, d].
    pub mean_value: Tensor<3>,
    /// The attention output, [B, H, 1, d] in the query's type.
    pub output: Tensor<4>,
}

/// One decode step of SparQ: the query of the current token, q [B, H, 1, d], against a cache that already holds the token's key and value.
///
/// # Panics
/// If the cache has no sketch, or one that `config` does not name: the callers check it.
pub fn sparq_decode(
    q: Tensor<4>,
    cache: &CacheTensors,
    rows: &RowSpans,
    config: &SparqConfig,
) -> SparqTrace {
    let dtype = q.dtype();
    let q = group(q, cache.k.dims()[1]);

    // Step 1: i1 = argtop_r of the group's |q|.
    let i1 = choose_components(&q, config);
    // Step 2: tau = sqrt(d |q[i1]|_1 / |q|_1), a temperature per head.
    let q1 = q.clone().gather(3, expand_heads(i1.clone(), &q));
    let tau = temperature(&q, &q1);
    // Step 3 before its softmax: q[i1] . K[:, i1] / tau.
    let score = |q1| approximate_logits(q1, &i1, &cache.sketch, rows.longest());
    let step = attend_to_best(&q, q1 / tau, score, cache, rows, config);
    let [batch, kv_heads, g, d] = q.dims();
    SparqTrace {
        components: i1,
        logits: step.logits,
        positions: match step.taken {
            Some(taken) => step.positions.mask_fill(taken.bool_not(), -1),
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

/// What comes of a step behind its approximate logits; see [`attend_to_best`].
pub(crate) struct AttendedBest {
    /// The logits, finite.
    logits: Tensor<4>,
    /// i2, [B, H_kv, k].
    positions: Tensor<3, Int>,
    /// Which of them hold a token, where some sequence has fewer than k.
    taken: Option<Tensor<3, Bool>>,
    /// [B, H_kv, g, 1].
    alpha: Tensor<4>,
    /// [B, H_kv, d].
    mean_value: Tensor<3>,
    /// y, [B, H_kv, g, d] in fp32.
    pub output: Tensor<4>,
}

/// Steps 3 to 7 for q [B, H_kv, g, d]. The approximate logits [B, H_kv, n, S] are those that `score` finds for queries [B, H_kv, n, _], of which `q1` are the heads'.
pub(crate) fn attend_to_best(
    q: &Tensor<4>,
    q1: Tensor<4>,
    score: impl Fn(Tensor<4>) -> Tensor<4>,
    cache: &CacheTensors,
    rows: &RowSpans,
    config: &SparqConfig,
) -> AttendedBest {
    let (g, device) = (q.dims()[2], q.device());
    let k = config.top_k.min(rows.longest());
    // Step 3: s_hat = softmax of the approximate logits.
    let logits = finite(score(q1.clone()));
    let s_hat = softmax(logits.clone(), rows.valid(&device));
    // Step 4: i2 = argtop_k(group score + local mask).
    let score = group_score(q1, &s_hat, score, config);
    let (i2, taken) = choose_positions(score, rows, config, k);
    // Step 5: alpha = the sum of s_hat over i2.
    let alpha = kept_probability(s_hat, &i2, rows, k);
    // Step 6: y = softmax(q . K[i2] / sqrt(d)) . V[i2], exact.
    let y = attend(
        q,
        take_rows(cache.k.clone(), &i2),
        take_rows(cache.v.clone(), &i2),
        taken.clone(),
    );
    // Step 7: y = alpha y + (1 - alpha) mean(V).
    let mean_value = cache.v_sum.clone() / rows.counts(&device).clamp_min(1.0);
    let y = if config.mean_value.applies(g) {
        let mean = mean_value.clone().unsqueeze_dim::<4>(2);
        y * alpha.clone() + mean * (-alpha.clone() + 1.0)
    } else {
        y
    };
    AttendedBest {
        logits,
        positions: i2,
        taken,
        alpha,
        mean_value,
        output: y,
    }
}

/// Dense attention for one decode step, q [B, H, 1, d] -> [B, H, 1, d]: what every method is measured against.
pub fn dense_decode(q: Tensor<4>, cache: &CacheTensors, rows: &RowSpans) -> Tensor<4> {
    let ([batch, heads, _, d], dtype, device) = (q.dims(), q.dtype(), q.device());
    let [_, kv_heads, _, _] = cache.k.dims();
    let seq_len = rows.longest();
    let valid = rows
        .valid(&device)
        .map(|valid| valid.expand([batch, kv_heads, seq_len]));
    let latest = |rows: &Tensor<4>| rows.clone().slice_dim(2, 0..seq_len);
    let y = attend(
        &group(q, kv_heads),
        latest(&cache.k),
        latest(&cache.v),
        valid,
    );
    y.reshape([batch, heads, 1, d])
        .cast(FloatDType::from(dtype))
}

/// Step 1: the r components of the query that the group of heads finds largest. q [B, H_kv, g, d] -> [B, H_kv, r].
pub fn choose_components(q: &Tensor<4>, config: &SparqConfig) -> Tensor<3, Int> {
    let magnitude = match config.components {
        Components::SumAbs => q.clone().abs().sum_dim(2),
        Components::AbsSum => q.clone().sum_dim(2).abs(),
    };
    magnitude
        .squeeze_dim::<3>(2)
        .topk_with_indices(config.rank, 2)
        .1
}

/// Step 2: the temperature that corrects for the components left out, [B, H_kv, g, 1].
///
/// Where the chosen components hold nothing of the head's query, all scores are 0 for every temperature; the ratio is then set to 1.
pub fn temperature(q: &Tensor<4>, q1: &Tensor<4>) -> Tensor<4> {
    let d = q.dims()[3] as f32;
    let (chosen, whole) = (q1.clone().abs().sum_dim(3), q.clone().abs().sum_dim(3));
    let nothing = chosen.clone().equal_elem(0.0);
    let ratio = (chosen / whole).mask_fill(nothing, 1.0);
    (ratio * d).sqrt()
}

/// Step 3 before the softmax: the scaled query components, q1 / tau [B, H_kv, g, r], against the key sketch: [B, H_kv, g, S].
///
/// For a sketch in bits the key is lo + a n for the code n; the lo term is the same at every position, drops out of the ranking and of the
/// softmax, and is left out.
pub fn approximate_logits(
    q1: Tensor<4>,
    i1: &Tensor<3, Int>,
    sketch: &SketchTensors,
    seq_len: usize,
) -> Tensor<4> {
    match sketch {
        SketchTensors::None => {
            panic!("SparQ reads a key sketch, and this cache was made without one")
        }
        SketchTensors::Full(kt) => {
            let keys = take_rows(kt.clone(), i1)
                .slice_dim(3, 0..seq_len)
                .cast(FloatDType::F32);
            q1.matmul(keys)
        }
        SketchTensors::Codes {
            bits, codes, step, ..
        } => {
            let codes =
                sketch::unpack(take_rows(codes.clone(), i1), *bits).slice_dim(3, 0..seq_len);
            let step = step.clone().gather(2, i1.clone()).unsqueeze_dim::<4>(2);
            (q1 * step).matmul(codes.float().cast(FloatDType::F32))
        }
    }
}

/// What step 4 ranks positions by, [B, H_kv, 1, S]: the sum over the group of s_hat [B, H_kv, g, S], or of the logits, which is the logit of the sum of the queries `q1`.
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

/// Step 4: the k positions with the largest group score [B, H_kv, 1, S], the local window always among them.
///
/// Returns the positions [B, H_kv, k], and, if some sequence has fewer than k valid positions, which of them are valid.
pub fn choose_positions(
    score: Tensor<4>,
    rows: &RowSpans,
    config: &SparqConfig,
    k: usize,
) -> (Tensor<3, Int>, Option<Tensor<3, Bool>>) {
    best_positions(score.squeeze_dim::<3>(2), rows, config.local_window, k)
}

/// The k positions with the largest score [B, H_kv, S], the last `local_window` always among them: [B, H_kv, k], and, if some sequence has fewer than k valid
/// positions, which of them are valid.
pub(crate) fn best_positions(
    mut score: Tensor<3>,
    rows: &RowSpans,
    local_window: usize,
    k: usize,
) -> (Tensor<3, Int>, Option<Tensor<3, Bool>>) {
    let (shape, device) = (score.dims(), score.device());
    if local_window > 0 {
        score = score.mask_fill(
            rows.latest(local_window, &device).expand(shape),
            f32::INFINITY,
        );
    }
    if let Some(valid) = rows.valid(&device) {
        score = score.mask_fill(valid.expand(shape).bool_not(), f32::NEG_INFINITY);
    }
    let (score, positions) = score.topk_with_indices(k, 2);
    let short = (0..rows.batch()).any(|row| rows.count(row) < k);
    (
        positions,
        short.then(|| score.greater_elem(f32::NEG_INFINITY)),
    )
}

/// Step 5: alpha [B, H_kv, g, 1], within [0, 1]; exactly 1 for a sequence of at most k valid positions, where nothing is left out.
pub fn kept_probability(
    s_hat: Tensor<4>,
    i2: &Tensor<3, Int>,
    rows: &RowSpans,
    k: usize,
) -> Tensor<4> {
    let [batch, kv_heads, g, _] = s_hat.dims();
    let complete = rows
        .counts(&s_hat.device())
        .lower_equal_elem(k as f32)
        .reshape([batch, 1, 1, 1]);
    let index = expand_heads(i2.clone(), &s_hat);
    let alpha = s_hat.gather(3, index).sum_dim(3).clamp(0.0, 1.0);
    alpha.mask_fill(complete.expand([batch, kv_heads, g, 1]), 1.0)
}

/// Step 6: exact attention of q [B, H_kv, g, d] over n keys and values [B, H_kv, n, d], in fp32; `taken` [B, H_kv, n] masks the others out.
pub fn attend(
    q: &Tensor<4>,
    keys: Tensor<4>,
    values: Tensor<4>,
    taken: Option<Tensor<3, Bool>>,
) -> Tensor<4> {
    let [batch, kv_heads, n, d] = keys.dims();
    let logits = q.clone().matmul(keys.cast(FloatDType::F32).transpose()) / (d as f32).sqrt();
    let values = values.cast(FloatDType::F32);
    // What lies at masked positions is left over from earlier sequences and may be NaN, which a weight of 0 would not silence.
    let values = match &taken {
        Some(taken) => {
            let hidden = taken
                .clone()
                .bool_not()
                .unsqueeze_dim::<4>(3)
                .expand([batch, kv_heads, n, d]);
            values.mask_fill(hidden, 0.0)
        }
        None => values,
    };
    softmax(logits, taken).matmul(values)
}

/// The query heads in their groups: [B, H, 1, d] -> [B, H_kv, g, d] in fp32. Head j reads key/value head j / g.
pub fn group(q: Tensor<4>, kv_heads: usize) -> Tensor<4> {
    let [batch, heads, _, d] = q.dims();
    q.reshape([batch, kv_heads, heads / kv_heads, d])
        .cast(FloatDType::F32)
}

/// Softmax over the last dimension of [B, H_kv, g, S] within the mask [B, 1 or H_kv, S]; zeros where the mask hides everything.
pub(crate) fn softmax(logits: Tensor<4>, valid: Option<Tensor<3, Bool>>) -> Tensor<4> {
    let logits = match valid {
        Some(valid) => {
            let shape = logits.dims();
            logits.mask_fill(
                valid.bool_not().unsqueeze_dim::<4>(2).expand(shape),
                f32::NEG_INFINITY,
            )
        }
        None => logits,
    };
    let largest = logits.clone().max_dim(3).clamp_min(-LARGEST);
    let weights = (logits - largest).exp();
    let sum = weights.clone().sum_dim(3).clamp_min(f32::MIN_POSITIVE);
    weights / sum
}

/// Scores with NaN replaced by the lowest and infinities by the largest finite numbers.
pub(crate) fn finite<const D: usize>(scores: Tensor<D>) -> Tensor<D> {
    let nan = scores.clone().is_nan();
    scores.mask_fill(nan, -LARGEST).clamp(-LARGEST, LARGEST)
}

/// One index list per key/value head, [B, H_kv, n], repeated for the g query heads of `like` [B, H_kv, g, _]: [B, H_kv, g, n].
pub(crate) fn expand_heads(index: Tensor<3, Int>, like: &Tensor<4>) -> Tensor<4, Int> {
    let ([batch, kv_heads, n], g) = (index.dims(), like.dims()[2]);
    index.unsqueeze_dim::<4>(2).expand([batch, kv_heads, g, n])
}

/// Rows of each head's matrix: `matrix` [B, H_kv, n, m] at `index` [B, H_kv, i] -> [B, H_kv, i, m].
///
/// A selection of rows of one long matrix, so that each is copied whole; `gather` would want an index for every element.
pub(crate) fn take_rows<K>(matrix: Tensor<4, K>, index: &Tensor<3, Int>) -> Tensor<4, K>
where
    K: burn::tensor::kind::Basic,
{
    let ([batch, heads, n, m], taken) = (matrix.dims(), index.dims()[2]);
    let first = Tensor::<1, Int>::arange(0..(batch * heads) as i64, &index.device()) * n as i64;
    let index = index.clone() + first.reshape([batch, heads, 1]);
    matrix
        .reshape([batch * heads * n, m])
        .select(0, index.reshape([batch * heads * taken]))
        .reshape([batch, heads, taken, m])
}
