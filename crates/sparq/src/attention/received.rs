//! The attention that positions receive from the queries of a prefill.

use std::ops::Range;

use burn::tensor::{Bool, DType, Device, FloatDType, Tensor};

use crate::cache::{indices, per_sequence};
use crate::ops::Spans;
use crate::ops::reference::{CHUNK, LARGEST, bounded, hidden};

/// Returns the weights that dense causal attention gives to each position, [B, H_kv, S] in fp32.
///
/// They are averaged over the query heads of a group and summed over the queries. q [B, H, T, d]
/// attends to k [B, H_kv, S, d] as in [`causal_attention`](crate::ops::causal_attention), but
/// `spans` are those before the first query. Queries of left padding count as 0.
pub(super) fn received_attention(
    q: &Tensor<4>,
    k: &Tensor<4>,
    spans: &Spans,
    window: Option<usize>,
    softcap: Option<f64>,
) -> Tensor<3> {
    let ([batch, heads, len, d], device) = (q.dims(), q.device());
    let kv_heads = k.dims()[1];
    let (g, before) = (heads / kv_heads, spans.longest());
    // Outside autodiff, as the cache.
    let [q, k] = [q, k].map(|t| t.clone().inner().cast(FloatDType::F32));
    let q = q.reshape([batch, kv_heads, g, len, d]);
    let mut sums = Tensor::<3>::zeros([batch, kv_heads, before + len], (&device, DType::F32));
    for from in (0..len).step_by(CHUNK) {
        let queries = from..(from + CHUNK).min(len);
        let (count, seen) = (queries.len(), before + queries.end);
        let q = q.clone().slice_dim(3, queries.clone());
        let q = q.reshape([batch, kv_heads, g * count, d]);
        let keys = k.clone().slice_dim(2, 0..seen);
        let logits = bounded(q.matmul(keys.transpose()) / (d as f32).sqrt(), softcap);
        let logits = logits.reshape([batch, kv_heads * g, count, seen]);
        let mask = hidden(spans, window, queries.clone(), 0..seen, &device);
        let logits = logits
            .clone()
            .mask_fill(mask.expand(logits.dims()), f32::NEG_INFINITY);
        let largest = logits.clone().max_dim(3).clamp_min(-LARGEST);
        let weights = (logits - largest).exp();
        let weights = weights.clone() / weights.sum_dim(3);
        let weights = match padding(spans, queries, &device) {
            Some(none) => weights.mask_fill(none.expand([batch, kv_heads * g, count, seen]), 0.0),
            None => weights,
        };
        let weights = weights.reshape([batch, kv_heads, g * count, seen]);
        let received = weights.sum_dim(2).squeeze_dim::<3>(2) / g as f32;
        let here = [0..batch, 0..kv_heads, 0..seen];
        sums = sums
            .clone()
            .slice_assign(here.clone(), sums.slice(here) + received);
    }
    sums
}

/// A mask of the queries that are left padding, [B, 1, T, 1]; `None` if there are none.
fn padding(spans: &Spans, queries: Range<usize>, device: &Device) -> Option<Tensor<4, Bool>> {
    let hidden = |b: usize| spans.start[b].saturating_sub(spans.end[b]);
    let hidden: Vec<usize> = (0..spans.batch()).map(hidden).collect();
    if hidden.iter().all(|&hidden| hidden == 0) {
        return None;
    }
    let shape = [hidden.len(), 1, queries.len()];
    let mask = indices(queries, device).expand(shape);
    Some(
        mask.lower(per_sequence(&hidden, device).expand(shape))
            .unsqueeze_dim(3),
    )
}
