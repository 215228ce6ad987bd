//! Dense causal attention over many queries, in chunks: memory grows with the length, not its
//! square.

use std::ops::Range;

use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, DType, Device, Int, Tensor};

use crate::ops::Spans;

/// Queries per chunk.
///
/// Large enough for efficient matrix products. Backends that store scores need [H, CHUNK, S] of
/// them.
pub(super) const CHUNK: usize = 512;

/// Causal attention of T queries after the positions that a cache held before them.
///
/// q [B, H, T, d] against k and v [B, H_kv, S, d] -> [B, H, T, d]. Sequence b held the positions
/// `spans.start[b] .. spans.end[b]`. Its query t is at position `spans.end[b] + t` and attends from
/// `spans.start[b]` to itself, or to the last `window` positions of these.
///
/// Left padding attends to itself only. Its output is never used, but a softmax over nothing would
/// be NaN on some backends, and a later layer multiplies it by 0.
pub(super) fn causal_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    spans: &Spans,
    window: Option<usize>,
    chunk: usize,
) -> Tensor<4> {
    let len = q.dims()[2];
    let before = spans.longest();
    let shortest = spans.end.iter().copied().min().unwrap_or(0);
    let chunks = (0..len).step_by(chunk).map(|from| {
        let to = (from + chunk).min(len);
        // A window that holds all positions masks nothing.
        let window = window.filter(|&window| before + to > window);
        let first = window.map_or(0, |window| (shortest + from + 1).saturating_sub(window));
        let keys = first..before + to;
        let seen = |t: &Tensor<4>| t.clone().slice_dim(2, keys.clone());
        let q = q.clone().slice_dim(2, from..to);
        attend(q, seen(&k), seen(&v), spans, window, from, keys.clone())
    });
    let mut chunks: Vec<_> = chunks.collect();
    match chunks.len() {
        1 => chunks.remove(0),
        _ => Tensor::cat(chunks, 2),
    }
}

/// Attention of the queries `from ..` of one chunk over the positions `keys`, which hold all that
/// they attend to.
fn attend(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    spans: &Spans,
    window: Option<usize>,
    from: usize,
    keys: Range<usize>,
) -> Tensor<4> {
    let ([batch, heads, len, d], device) = (q.dims(), q.device());
    let [_, kv_heads, seq_len, _] = k.dims();
    let g = heads / kv_heads;
    let mask = || hidden(spans, window, from..from + len, keys.clone(), &device);

    if g == 1 || shares_heads(&device) {
        if spans.is_rectangular() && window.is_none() {
            let options = AttentionModuleOptions {
                is_causal: true,
                ..Default::default()
            };
            return attention(q, k, v, None, None, options);
        }
        let mask = match shares_heads(&device) {
            true => mask(),
            false => mask().expand([batch, heads, len, seq_len]),
        };
        return attention(q, k, v, Some(mask), None, AttentionModuleOptions::default());
    }
    // The queries of a group become one longer query. Repeating K and V for every head would copy
    // them.
    let mask = mask();
    let masked = mask.dims()[0];
    let mask = mask
        .unsqueeze_dim::<5>(2)
        .expand([masked, 1, g, len, seq_len])
        .reshape([masked, 1, g * len, seq_len]);
    let mask = mask.expand([batch, kv_heads, g * len, seq_len]);
    let q = q.reshape([batch, kv_heads, g * len, d]);
    attention(q, k, v, Some(mask), None, AttentionModuleOptions::default())
        .reshape([batch, heads, len, d])
}

/// Returns whether the device's attention accepts fewer KV heads than query heads, and masks of one
/// head.
///
/// Flex does. It is as fast as folded queries with a mask (measured), but uses H instead of H_kv
/// threads and needs no memory for the mask.
fn shares_heads(device: &Device) -> bool {
    #[cfg(feature = "flex")]
    return !device.is_autodiff() && *device == Device::flex();
    #[cfg(not(feature = "flex"))]
    {
        let _ = device;
        false
    }
}

/// A mask that is true where one of the `queries` must not attend to one of the `keys`.
///
/// [B, 1, len, S], or [1, 1, len, S] if it is the same for all sequences.
pub(super) fn hidden(
    spans: &Spans,
    window: Option<usize>,
    queries: Range<usize>,
    keys: Range<usize>,
    device: &Device,
) -> Tensor<4, Bool> {
    let same = spans.is_rectangular();
    let batch = if same { 1 } else { spans.batch() };
    let (len, seq_len) = (queries.len(), keys.len());
    let shape = [batch, 1, len, seq_len];
    let options = (device, DType::I32);
    let range = |range: Range<usize>| {
        Tensor::<1, Int>::arange(range.start as i64..range.end as i64, options)
    };
    let key = range(keys).reshape([1, 1, 1, seq_len]).expand(shape);
    let query = range(queries).reshape([1, 1, len, 1]);
    let outside = |first: Tensor<4, Int>| key.clone().lower(first.expand(shape));
    if same {
        let own = query + spans.longest() as i64;
        let later = key.clone().greater(own.clone().expand(shape));
        return match window {
            Some(window) => later.bool_or(outside(own - (window - 1) as i64)),
            None => later,
        };
    }
    let column = |values: &[usize]| {
        let values: Vec<i32> = values.iter().map(|&value| value as i32).collect();
        Tensor::<1, Int>::from_data(values.as_slice(), options).reshape([batch, 1, 1, 1])
    };
    let own = (query + column(&spans.end)).expand([batch, 1, len, 1]);
    let start = column(&spans.start).expand([batch, 1, len, 1]);
    let first = own.clone().min_pair(start);
    let first = match window {
        Some(window) => first.max_pair(own.clone() - (window - 1) as i64),
        None => first,
    };
    let later = key.clone().greater(own.expand(shape));
    later.bool_or(outside(first))
}

#[cfg(test)]
mod tests;
