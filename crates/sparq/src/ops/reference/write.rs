//! Writing a cache in plain tensor operations: what an append, the preparation of a token and a new range of the sketch do, on any backend.
//!
//! Like the [reference](crate::ops::reference) of the attention itself, this is what a native implementation is tested against.

use std::ops::Range;

use burn::tensor::{FloatDType, Int, IntDType, Tensor};

use crate::attention::rotary::RotaryAngles;
use crate::cache::buffers::overwrite;
use crate::{CacheTensors, RowSpans, SketchTensors, sketch};

/// Writes keys and values [B, H_kv, T, d] behind `rows`, the first `counts[b]` of them for sequence b, in place where the buffers are not shared.
///
/// The spans advance by `counts`. The running sum of V takes up what is not left padding. A full sketch gets its columns; a sketch in bits gets codes only if `encode` is set
/// (by the ranges that it has), and is otherwise left to [`range_sketch`].
///
/// # Panics
/// If the buffers have no room.
pub fn append(
    cache: CacheTensors,
    k: Tensor<4>,
    v: Tensor<4>,
    rows: &RowSpans,
    counts: &[usize],
    encode: bool,
) -> CacheTensors {
    let [batch, _, len, _] = k.dims();
    let dtype = FloatDType::from(cache.k.dtype());
    let (k, v) = (k.cast(dtype), v.cast(dtype));
    let uniform = rows.common_end().is_some() && counts.iter().all(|&count| count == len);
    let cache = CacheTensors {
        spans: rows.grown(counts).to_tensor(&k.device()),
        ..cache
    };
    if uniform {
        return append_rows(cache, k, v, rows, 0..batch, len, encode);
    }
    (0..batch)
        .filter(|&row| counts[row] > 0)
        .fold(cache, |cache, row| {
            let new = |t: &Tensor<4>| {
                t.clone()
                    .slice_dim(0, row..row + 1)
                    .slice_dim(2, 0..counts[row])
            };
            append_rows(
                cache,
                new(&k),
                new(&v),
                rows,
                row..row + 1,
                counts[row],
                encode,
            )
        })
}

/// Turns the query and the key of one token, q [B, H, 1, d] and k [B, H_kv, 1, d], to the position behind `rows` and appends the key and the value v
/// [B, H_kv, 1, d] to every sequence; returns the query. `table` is a rotary embedding's [`table`](crate::Rotary::table); without one nothing turns.
///
/// # Panics
/// If the buffers have no room, or the table no row for a position.
pub fn prepare(
    cache: CacheTensors,
    [q, k, v]: [Tensor<4>; 3],
    table: Option<&Tensor<2>>,
    rows: &RowSpans,
    encode: bool,
) -> (Tensor<4>, CacheTensors) {
    let (q, k) = match table {
        Some(table) => {
            let positions: Vec<usize> = (0..rows.batch()).map(|row| rows.count(row)).collect();
            let angles = RotaryAngles::from_table(table, &positions);
            (angles.turn(q), angles.turn(k))
        }
        None => (q, k),
    };
    let counts = vec![1; rows.batch()];
    (q, append(cache, k, v, rows, &counts, encode))
}

/// [`append`] for sequences `batch` that all have the same length and get the same number of positions.
fn append_rows(
    cache: CacheTensors,
    k: Tensor<4>,
    v: Tensor<4>,
    rows: &RowSpans,
    batch: Range<usize>,
    len: usize,
    encode: bool,
) -> CacheTensors {
    let [_, kv_heads, _, d] = k.dims();
    let at = rows.end[batch.start];
    let to = at + len;

    let mut new_values = v.clone().cast(FloatDType::F32);
    if rows.start[batch.clone()].iter().any(|&start| start > at) {
        let hidden = rows.padding(batch.clone(), at..to, &k.device());
        new_values = new_values.mask_fill(hidden.unsqueeze_dim::<4>(3).expand(v.dims()), 0.0);
    }
    let here = [batch.clone(), 0..kv_heads, 0..d];
    let sum = cache.v_sum.clone().slice(here.clone()) + new_values.sum_dim(2).squeeze_dim::<3>(2);

    let sketch = match cache.sketch {
        SketchTensors::Full(kt) => {
            let columns = [batch.clone(), 0..kv_heads, 0..d, at..to];
            SketchTensors::Full(kt.slice_assign(columns, k.clone().swap_dims(2, 3)))
        }
        SketchTensors::Codes {
            bits,
            codes,
            lo,
            step,
        } if encode => {
            let ranges = (
                lo.clone().slice(here.clone()),
                step.clone().slice(here.clone()),
            );
            let new = sketch::encode(k.clone(), ranges.0, ranges.1, bits);
            SketchTensors::Codes {
                bits,
                codes: sketch::write(codes, new, batch.clone(), at, bits),
                lo,
                step,
            }
        }
        other => other,
    };
    let place = [batch, 0..kv_heads, at..to, 0..d];
    CacheTensors {
        k: cache.k.slice_assign(place.clone(), k),
        v: cache.v.slice_assign(place, v),
        v_sum: cache.v_sum.slice_assign(here, sum),
        spans: cache.spans,
        sketch,
    }
}

/// Sets the ranges of the codes of sequence `row` from its valid positions and writes its codes anew. Other sketches are left as they are.
pub fn range_sketch(cache: CacheTensors, rows: &RowSpans, row: usize) -> CacheTensors {
    let CacheTensors {
        k,
        v,
        v_sum,
        spans,
        sketch:
            SketchTensors::Codes {
                bits,
                codes,
                lo,
                step,
            },
    } = cache
    else {
        return cache;
    };
    let [_, kv_heads, _, d] = k.dims();
    let span = rows.select(row..row + 1);
    let keys = k
        .clone()
        .slice([row..row + 1, 0..kv_heads, 0..span.end[0], 0..d]);
    let (new_lo, new_step) = sketch::range(keys.clone(), span.valid(&keys.device()), bits);
    let new = sketch::encode(keys, new_lo.clone(), new_step.clone(), bits);
    let here = [row..row + 1, 0..kv_heads, 0..d];
    let sketch = SketchTensors::Codes {
        bits,
        codes: sketch::write(codes, new, row..row + 1, 0, bits),
        lo: lo.slice_assign(here.clone(), new_lo),
        step: step.slice_assign(here, new_step),
    };
    CacheTensors {
        k,
        v,
        v_sum,
        spans,
        sketch,
    }
}

/// The running sum of V [B, H_kv, d] without the value that the last token, appended to every sequence, pushed out of a window of `window` positions. V
/// [B, H_kv, S_max, d] and the `spans` behind the append, as [`CacheTensors`] holds them; in place where the sum is not shared.
///
/// Nothing comes from the host: the position that leaves is computed on the device.
pub fn slide_sum(
    sum: Tensor<3>,
    v: &Tensor<4>,
    spans: &Tensor<2, Int>,
    window: usize,
) -> Tensor<3> {
    let [batch, kv_heads, d] = sum.dims();
    let behind = window as u32 + 1;
    let [start, end] = [0, 1].map(|part| spans.clone().slice_dim(0, part..part + 1));
    let stays = end.clone().lower(start.add_scalar(behind));
    let leaving = (end.clamp_min(behind) - behind).cast(IntDType::I32);
    let shape = [batch, kv_heads, 1, d];
    let gone = v
        .clone()
        .gather(2, leaving.reshape([batch, 1, 1, 1]).expand(shape))
        .cast(FloatDType::F32)
        // Also where another position's value was read for want of a leaving one.
        .mask_fill(stays.reshape([batch, 1, 1, 1]).expand(shape), 0.0);
    let new = sum.clone() - gone.reshape([batch, kv_heads, d]);
    overwrite(sum, new)
}

/// The `spans` [3, B] of [`CacheTensors`] with only the last `window` positions of each sequence, computed on the device; see [`RowSpans::last`].
pub fn last_spans(spans: Tensor<2, Int>, window: usize) -> Tensor<2, Int> {
    let start = spans.clone().slice_dim(0, 0..1);
    let rest = spans.slice_dim(0, 1..3);
    let window = window as u32;
    let first = rest.clone().slice_dim(0, 0..1).clamp_min(window) - window;
    Tensor::cat(vec![start.max_pair(first), rest], 0)
}

/// The sum of V over the valid positions, [B, H_kv, d]: what the running sum holds, computed anew.
pub fn sum_values(v: &Tensor<4>, rows: &RowSpans) -> Tensor<3> {
    let values = v
        .clone()
        .slice_dim(2, 0..rows.longest())
        .cast(FloatDType::F32);
    let shape = values.dims();
    let values = match rows.valid(&v.device()) {
        Some(valid) => values.mask_fill(valid.bool_not().unsqueeze_dim::<4>(3).expand(shape), 0.0),
        None => values,
    };
    values.sum_dim(2).squeeze_dim::<3>(2)
}
