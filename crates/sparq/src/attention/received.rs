//! The attention that positions receive from the queries of a prefill.

use std::ops::Range;

use burn::tensor::{Bool, DType, Device, FloatDType, Int, Tensor};

use super::causal::hidden;
use crate::ops::Spans;
use crate::ops::reference::LARGEST;

/// Returns the weights that dense causal attention gives to each position, [B, H_kv, S] in fp32.
///
/// They are averaged over the query heads of a group and summed over the queries. q [B, H, T, d]
/// attends to k [B, H_kv, S, d] as in [`causal_attention`](super::causal::causal_attention),
/// `chunk` queries at a time. Queries of left padding count as 0.
pub(super) fn received_attention(
    q: &Tensor<4>,
    k: &Tensor<4>,
    spans: &Spans,
    window: Option<usize>,
    chunk: usize,
) -> Tensor<3> {
    let ([batch, _, len, d], device) = (q.dims(), q.device());
    let [_, kv_heads, _, _] = k.dims();
    let before = spans.longest();
    // Outside autodiff, as the cache.
    let (q, k) = (
        q.clone().inner().cast(FloatDType::F32).reshape([
            batch,
            kv_heads,
            q.dims()[1] / kv_heads,
            len,
            d,
        ]),
        k.clone().inner().cast(FloatDType::F32),
    );
    let g = q.dims()[2];
    let mut sums = Tensor::<3>::zeros([batch, kv_heads, before + len], (&device, DType::F32));
    for from in (0..len).step_by(chunk) {
        let queries = from..(from + chunk).min(len);
        let (count, seen) = (queries.len(), before + queries.end);
        let q = q.clone().slice_dim(3, queries.clone());
        let q = q.reshape([batch, kv_heads, g * count, d]);
        let keys = k.clone().slice_dim(2, 0..seen);
        let logits = q.matmul(keys.transpose()) / (d as f32).sqrt();
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
    let hidden = |b: usize| spans.start[b].saturating_sub(spans.end[b]) as i64;
    let hidden: Vec<i64> = (0..spans.batch()).map(hidden).collect();
    if hidden.iter().all(|&hidden| hidden == 0) {
        return None;
    }
    let shape = [hidden.len(), 1, queries.len(), 1];
    let first = Tensor::<1, Int>::from_ints(hidden.as_slice(), device)
        .reshape([hidden.len(), 1, 1, 1])
        .expand(shape);
    let query = Tensor::<1, Int>::arange(queries.start as i64..queries.end as i64, device);
    Some(
        query
            .reshape([1, 1, shape[2], 1])
            .expand(shape)
            .lower(first),
    )
}
