//! Writing a cache in plain tensor operations: append, prepare tokens, and set ranges.
//!
//! Native implementations are tested against these, as against the [reference](super) of attention.

use std::ops::Range;

use burn::tensor::{DType, FloatDType, Int, IntDType, Tensor};

use super::fill_invalid;
use crate::attention::rotary::RotaryAngles;
use crate::cache::buffers::overwrite;
use crate::ops::{CacheTensors, RowTensors, SketchTensors, Spans};
use crate::sketch;

/// Appends keys and values [B, H_kv, T, d], the first `counts[b]` of them to sequence b.
///
/// See [`SparqBackend::append`](crate::ops::SparqBackend::append). Writes in place if the buffers
/// are not shared. Advances the spans on the device by `counts`. The sum of V takes no left
/// padding.
///
/// # Panics
/// If the buffers have no room.
pub fn append(
    cache: CacheTensors,
    k: Tensor<4>,
    v: Tensor<4>,
    spans: &Spans,
    counts: &[usize],
    encode: bool,
) -> CacheTensors {
    let [batch, _, len, _] = k.dims();
    let uniform = spans.common_end().is_some() && counts.iter().all(|&count| count == len);
    let cache = CacheTensors {
        spans: spans.grown(counts).to_tensor(&k.device()),
        ..cache
    };
    if uniform {
        return append_equal(cache, k, v, spans, 0..batch, encode);
    }
    let filled = (0..batch).filter(|&sequence| counts[sequence] > 0);
    filled.fold(cache, |cache, sequence| {
        let one = sequence..sequence + 1;
        let own = |t: &Tensor<4>| t.clone().slice_dim(0, one.clone());
        let new = |t: &Tensor<4>| own(t).slice_dim(2, 0..counts[sequence]);
        append_equal(cache, new(&k), new(&v), spans, one.clone(), encode)
    })
}

/// Prepares attention; see [`SparqBackend::prepare`](crate::ops::SparqBackend::prepare).
///
/// `table` is a rotary embedding's [`table`](crate::ops::Rotary::table); without one nothing is
/// rotated.
///
/// # Panics
/// If the buffers have no room, or the table has no row for a position.
pub fn prepare(
    cache: CacheTensors,
    [q, k, v]: [Tensor<4>; 3],
    table: Option<&Tensor<2>>,
    spans: &Spans,
    encode: bool,
) -> (Tensor<4>, CacheTensors) {
    let len = k.dims()[2];
    let (q, k) = match table {
        Some(table) => {
            let angles = RotaryAngles::from_table(table, spans, len);
            (angles.rotate(q), angles.rotate(k))
        }
        None => (q, k),
    };
    (q, append(cache, k, v, spans, &spans.each(len), encode))
}

/// [`append`] to the sequences `batch`, which all have the same end and get all T positions.
fn append_equal(
    cache: CacheTensors,
    k: Tensor<4>,
    v: Tensor<4>,
    spans: &Spans,
    batch: Range<usize>,
    encode: bool,
) -> CacheTensors {
    let [_, kv_heads, len, d] = k.dims();
    let at = spans.end[batch.start];
    let to = at + len;
    let place = [batch.clone(), 0..kv_heads, at..to, 0..d];
    // From here on, the rows as the cache holds them.
    let (keys, k) = cache.k.write(place.clone(), k);
    let (values, v) = cache.v.write(place, v);

    let mut new_values = v.cast(FloatDType::F32);
    if spans.start[batch.clone()].iter().any(|&start| start > at) {
        let padding = spans.padding(batch.clone(), at..to, &keys.device());
        new_values = fill_invalid(new_values, Some(padding.bool_not()), 0.0);
    }
    let channels = [batch.clone(), 0..kv_heads, 0..d];
    let old_sum = cache.v_sum.clone().slice(channels.clone());
    let sum = old_sum + new_values.sum_dim(2).squeeze_dim::<3>(2);

    let sketch = match cache.sketch {
        SketchTensors::Full(kt) => {
            let columns = [batch.clone(), 0..kv_heads, 0..d, at..to];
            let k = k.cast(FloatDType::from(kt.dtype()));
            SketchTensors::Full(kt.slice_assign(columns, k.swap_dims(2, 3)))
        }
        SketchTensors::Codes {
            bits,
            codes,
            zero_point,
            scale,
        } if encode => {
            let of = |range: &Tensor<3>| range.clone().slice(channels.clone());
            let new = sketch::encode(k, of(&zero_point), of(&scale), bits);
            let codes = sketch::write(codes, new, batch, at, bits);
            SketchTensors::Codes {
                bits,
                codes,
                zero_point,
                scale,
            }
        }
        other => other,
    };
    CacheTensors {
        k: keys,
        v: values,
        v_sum: cache.v_sum.slice_assign(channels, sum),
        spans: cache.spans,
        sketch,
        softcap: cache.softcap,
    }
}

/// Takes back appends since a mark, and keeps the first of them; see
/// [`SparqBackend::roll_back`](crate::ops::SparqBackend::roll_back).
pub fn roll_back(
    cache: CacheTensors,
    mut sum: Tensor<3>,
    mark: &Spans,
    spans: &Spans,
) -> (CacheTensors, Tensor<3>) {
    let (batch, device) = (mark.batch(), sum.device());
    let kept = |sequence: usize| spans.end[sequence] - mark.end[sequence];
    for step in 0..(0..batch).map(kept).max().unwrap_or(0) {
        for sequence in (0..batch).filter(|&sequence| step < kept(sequence)) {
            let at = mark.end[sequence] + step;
            if at >= mark.start[sequence] {
                let one = sequence..sequence + 1;
                let [_, kv_heads, d] = sum.dims();
                let place = [one.clone(), 0..kv_heads, at..at + 1, 0..d];
                let value = cache.v.slice(place).cast(FloatDType::F32);
                let new = sum.clone().slice_dim(0, one.clone()) + value.squeeze_dim::<3>(2);
                sum = sum.slice_assign([one, 0..kv_heads, 0..d], new);
            }
        }
    }
    let cache = CacheTensors {
        v_sum: overwrite(cache.v_sum, sum.clone()),
        spans: overwrite(cache.spans, spans.to_tensor(&device)),
        ..cache
    };
    (cache, sum)
}

/// Sets the ranges of one sequence from its valid positions, and writes all its codes.
///
/// Other sketches stay as they are.
pub fn range_sketch(mut cache: CacheTensors, spans: &Spans, sequence: usize) -> CacheTensors {
    let SketchTensors::Codes {
        bits,
        codes,
        zero_point,
        scale,
    } = cache.sketch
    else {
        return cache;
    };
    let [_, kv_heads, _, d] = cache.k.dims();
    let one = sequence..sequence + 1;
    let span = spans.select(one.clone());
    let filled = [one.clone(), 0..kv_heads, 0..span.end[0], 0..d];
    let keys = cache.k.slice(filled);
    let range = sketch::range(keys.clone(), span.valid(&keys.device()), bits);
    let new = sketch::encode(keys, range.0.clone(), range.1.clone(), bits);
    let channels = [one.clone(), 0..kv_heads, 0..d];
    cache.sketch = SketchTensors::Codes {
        bits,
        codes: sketch::write(codes, new, one, 0, bits),
        zero_point: zero_point.slice_assign(channels.clone(), range.0),
        scale: scale.slice_assign(channels, range.1),
    };
    cache
}

/// Subtracts from the sum of V [B, H_kv, d] the value that the last token pushed out of a window.
///
/// The token was appended to every sequence. Takes V and the `spans` after the
/// append, as [`CacheTensors`] holds them. Writes in place if the sum is not shared. The device
/// computes the position that leaves, so a captured step can contain this.
pub fn slide_sum(
    sum: Tensor<3>,
    v: &RowTensors,
    spans: &Tensor<2, Int>,
    window: usize,
) -> Tensor<3> {
    let [batch, kv_heads, d] = sum.dims();
    let behind = window as u32 + 1;
    let [start, end] = [0, 1].map(|part| spans.clone().slice_dim(0, part..part + 1));
    let stays = end.clone().lower(start.add_scalar(behind));
    // Also in the cache for an idle sequence, whose end lies beyond it.
    let most = behind.max(v.dims()[2] as u32);
    let leaving = (end.clamp(behind, most) - behind).cast(IntDType::I32);
    let shape = [batch, kv_heads, 1, d];
    let index = leaving.reshape([batch, 1, 1]).expand([batch, kv_heads, 1]);
    let gone = v
        .gather(&index)
        .cast(FloatDType::F32)
        // Where no position leaves, another one was read instead.
        .mask_fill(stays.reshape([batch, 1, 1, 1]).expand(shape), 0.0);
    let new = sum.clone() - gone.reshape([batch, kv_heads, d]);
    overwrite(sum, new)
}

/// Restricts the `spans` [3, B] of [`CacheTensors`] to the last `window` positions of each
/// sequence.
///
/// The device computes it; see [`Spans::last`].
pub fn last_spans(spans: Tensor<2, Int>, window: usize) -> Tensor<2, Int> {
    let start = spans.clone().slice_dim(0, 0..1);
    let rest = spans.slice_dim(0, 1..3);
    let window = window as u32;
    let first = rest.clone().slice_dim(0, 0..1).clamp_min(window) - window;
    Tensor::cat(vec![start.max_pair(first), rest], 0)
}

/// Computes the sum of V over the valid positions, [B, H_kv, d].
pub fn sum_values(v: &RowTensors, spans: &Spans) -> Tensor<3> {
    // The positions before a window may be many.
    let first = spans.start.iter().copied().min().unwrap_or(0);
    let within = |positions: &[usize]| -> Vec<usize> {
        let shifted = positions.iter().map(|at| at.saturating_sub(first));
        shifted.collect()
    };
    let spans = Spans {
        start: within(&spans.start),
        end: within(&spans.end),
    };
    if spans.longest() == 0 {
        let [batch, kv_heads, _, d] = v.dims();
        return Tensor::zeros([batch, kv_heads, d], (&v.device(), DType::F32));
    }
    let values = v.at(first..first + spans.longest());
    let values = values.cast(FloatDType::F32);
    let values = fill_invalid(values, spans.valid(&v.device()), 0.0);
    values.sum_dim(2).squeeze_dim::<3>(2)
}
