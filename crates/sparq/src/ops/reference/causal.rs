//! Dense causal attention of many queries, in chunks: memory grows with the length, not its
//! square.

use std::ops::Range;

use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, DType, Device, FloatDType, Int, Tensor};

use super::fill_invalid;
use crate::ops::Spans;

/// Queries per chunk.
///
/// Large enough for efficient matrix products. Backends that store scores need [H, CHUNK, S] of
/// them.
pub(crate) const CHUNK: usize = 512;

/// Causal attention of the last T positions of every sequence, q [B, H, T, d] -> [B, H, T, d].
///
/// See [`SparqBackend::causal_attention`](crate::ops::SparqBackend::causal_attention).
/// Differentiable in q, k and v.
pub fn causal_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    spans: &Spans,
    window: Option<usize>,
    softcap: Option<f64>,
) -> Tensor<4> {
    in_chunks(q, k, v, spans, (window, softcap), CHUNK)
}

/// [`causal_attention`], `chunk` queries at a time.
fn in_chunks(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    spans: &Spans,
    (window, softcap): (Option<usize>, Option<f64>),
    chunk: usize,
) -> Tensor<4> {
    let (len, dtype) = (q.dims()[2], FloatDType::from(q.dtype()));
    let filled = |t: Tensor<4>| t.slice_dim(2, 0..spans.longest()).cast(dtype);
    let (k, v) = (filled(k), filled(v));
    // Positions after the end of a shorter sequence may hold NaN of earlier use.
    let ragged = spans.common_end().is_none();
    let valid = ragged.then(|| spans.valid(&v.device())).flatten();
    let v = fill_invalid(v, valid, 0.0);

    let spans = &spans.before(len);
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
        let rows = [seen(&k), seen(&v)];
        attend(q, rows, spans, (window, softcap), from, keys.clone())
    });
    let mut chunks: Vec<_> = chunks.collect();
    match chunks.len() {
        1 => chunks.remove(0),
        _ => Tensor::cat(chunks, 2),
    }
}

/// Attention of the queries `from ..` of one chunk over the positions `keys`, which hold all that
/// they attend to. `spans` are those before the first query.
fn attend(
    q: Tensor<4>,
    [k, v]: [Tensor<4>; 2],
    spans: &Spans,
    (window, softcap): (Option<usize>, Option<f64>),
    from: usize,
    keys: Range<usize>,
) -> Tensor<4> {
    let ([batch, heads, len, d], device) = (q.dims(), q.device());
    let [_, kv_heads, seq_len, _] = k.dims();
    let g = heads / kv_heads;
    let mask = || hidden(spans, window, from..from + len, keys.clone(), &device);
    let options = AttentionModuleOptions {
        softcap,
        ..Default::default()
    };

    if g == 1 || shares_heads(&device) {
        if spans.is_rectangular() && window.is_none() {
            let options = AttentionModuleOptions {
                is_causal: true,
                ..options
            };
            return attention(q, k, v, None, None, options);
        }
        let mask = match shares_heads(&device) {
            true => mask(),
            false => mask().expand([batch, heads, len, seq_len]),
        };
        return attention(q, k, v, Some(mask), None, options);
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
    attention(q, k, v, Some(mask), None, options).reshape([batch, heads, len, d])
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

/// A mask that is true where one of the `queries` must not attend to one of the `keys`. `spans` are
/// those before the first query.
///
/// [B, 1, len, S], or [1, 1, len, S] if it is the same for all sequences.
pub(crate) fn hidden(
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
