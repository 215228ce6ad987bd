//! Operations on plain tensors that the reference and the baselines share.

use burn::tensor::kind::Basic;
use burn::tensor::{Bool, Int, Tensor};

/// The largest finite score.
///
/// Infinite scores are clamped to it, so that infinities can mark positions to be selected or ruled
/// out.
pub(crate) const LARGEST: f32 = f32::MAX;

/// Softmax over the last dimension of [B, H_kv, g, S] within a mask [B, 1 or H_kv, S].
///
/// Zeros where no position is valid.
pub(crate) fn softmax(logits: Tensor<4>, valid: Option<Tensor<3, Bool>>) -> Tensor<4> {
    let logits = match valid {
        Some(valid) => {
            let invalid = valid.bool_not().unsqueeze_dim::<4>(2);
            let shape = logits.dims();
            logits.mask_fill(invalid.expand(shape), f32::NEG_INFINITY)
        }
        None => logits,
    };
    let largest = logits.clone().max_dim(3).clamp_min(-LARGEST);
    let weights = (logits - largest).exp();
    let sum = weights.clone().sum_dim(3).clamp_min(f32::MIN_POSITIVE);
    weights / sum
}

/// Bounds logits x by a softcap c: c tanh(x / c). Without one returns them unchanged.
pub(crate) fn bounded<const D: usize>(logits: Tensor<D>, softcap: Option<f64>) -> Tensor<D> {
    match softcap {
        Some(bound) => (logits / bound).tanh() * bound,
        None => logits,
    }
}

/// Sets K rows or V rows [B, H_kv, S, d] to `value` outside of a mask [B, 1 or H_kv, S].
///
/// Such rows may hold NaN of earlier sequences, which even a weight of 0 would pass on.
pub(crate) fn fill_invalid(
    rows: Tensor<4>,
    valid: Option<Tensor<3, Bool>>,
    value: f32,
) -> Tensor<4> {
    match valid {
        Some(valid) => {
            let invalid = valid.bool_not().unsqueeze_dim::<4>(3);
            let shape = rows.dims();
            rows.mask_fill(invalid.expand(shape), value)
        }
        None => rows,
    }
}

/// Replaces NaN by the lowest finite number, and infinities by the lowest and largest.
pub(crate) fn finite<const D: usize>(scores: Tensor<D>) -> Tensor<D> {
    let nan = scores.clone().is_nan();
    scores.mask_fill(nan, -LARGEST).clamp(-LARGEST, LARGEST)
}

/// Repeats an index list per KV head, [B, H_kv, n], for the query heads of `like` [B, H_kv, g, _].
///
/// The result is [B, H_kv, g, n].
pub(crate) fn expand_heads(index: Tensor<3, Int>, like: &Tensor<4>) -> Tensor<4, Int> {
    let ([batch, kv_heads, n], g) = (index.dims(), like.dims()[2]);
    index.unsqueeze_dim::<4>(2).expand([batch, kv_heads, g, n])
}

/// Takes rows of each batch head's matrix: [B, H_kv, n, m] at `index` [B, H_kv, i] -> [B, H_kv, i,
/// m].
///
/// Selects rows of one long matrix, which copies each as a whole. `gather` needs an index per
/// element.
pub(crate) fn take_rows<K: Basic>(matrix: Tensor<4, K>, index: &Tensor<3, Int>) -> Tensor<4, K> {
    let ([batch, heads, n, m], taken) = (matrix.dims(), index.dims()[2]);
    let first = Tensor::<1, Int>::arange(0..(batch * heads) as i64, &index.device()) * n as i64;
    let index = index.clone() + first.reshape([batch, heads, 1]);
    matrix
        .reshape([batch * heads * n, m])
        .select(0, index.reshape([batch * heads * taken]))
        .reshape([batch, heads, taken, m])
}
