//! Dense decode, with the positions of a sequence split over cubes where rows are few.

use cubecl::prelude::*;

use super::attend::{AttendPlan, Attended, attend, keep_queries, load_queries};
use super::common::*;

/// The largest number of splits of a sequence.
pub(crate) const MOST_SPLITS: usize = 512;

/// Splits whose outputs a unit loads before it uses the first.
const MERGED_AT_ONCE: usize = 8;

/// Attention of one query per sequence over all its positions: `out` [B, H, d] where `splits` is 1.
///
/// Otherwise `states` [B, H_kv, splits, g, 2 + d] takes the maximum, the sum and the output of each split, for [`merge_splits`].
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn dense_kernel<Q: Float, E: Float, N: Size>(
    q: &Tensor<Q>,
    keys: &[Vector<E, N>],
    values: &[Vector<E, N>],
    spans: &[u32],
    out: &mut [Q],
    states: &mut [f32],
    batch: u32,
    kv_heads: u32,
    capacity: u32,
    splits: u32,
    #[comptime] single: bool,
    #[comptime] plan: AttendPlan,
    #[define(Q, E)] _types: [ElemType; 2],
) {
    let d = comptime!(plan.head_dim);
    let group = comptime!(plan.group);
    let units = comptime!(plan.units as usize);
    let splits = splits as usize;
    let row = CUBE_POS / splits;
    let split = CUBE_POS % splits;
    if row >= (batch * kv_heads) as usize {
        terminate!();
    }
    // Asked for before the span is known, so as to wait once.
    let sequence = row / kv_heads as usize;
    let kv_head = row % kv_heads as usize;
    let asked = load_queries::<Q>(q, sequence, kv_head, plan);
    let place = locate(spans, row, batch, kv_heads);
    let mut queries = Shared::<[f32]>::new_slice(comptime!(group * d));
    keep_queries(&mut queries, &asked, plan);
    sync_cube();
    // Whole rounds of the cube, so that no unit idles but in the last split.
    let round = comptime!(plan.steps * units / plan.lanes);
    let share = (place.end - place.start).div_ceil(splits).div_ceil(round) * round;
    let from = min(place.start + split * share, place.end);
    let count = min(share, place.end - from);

    let mut result = Attended::new(plan);
    let kept = Shared::<[u32]>::new_slice(1usize);
    let mut head = 0usize;
    while head < group {
        if count > 0 {
            attend::<E, N>(
                &queries,
                keys,
                values,
                row * capacity as usize,
                head,
                &kept,
                from,
                count,
                &mut result,
                false,
                plan,
            );
        }
        for round in 0..comptime!(plan.heads * plan.head_dim).div_ceil(units) {
            let i = round * units + UNIT_POS as usize;
            if i < comptime!(plan.heads * plan.head_dim) {
                let h = i / d;
                let here = head + h;
                if here < group {
                    if comptime!(single) {
                        let mut value = 0.0f32;
                        if count > 0 {
                            value = result.output[i] / max(result.sum[h], f32::MIN_POSITIVE);
                        }
                        out[(row * group + here) * d + i % d] = Q::cast_from(value);
                    } else {
                        let at = ((row * splits + split) * group + here) * comptime!(d + 2);
                        let mut value = 0.0f32;
                        let mut largest = (-LARGEST).runtime();
                        let mut sum = 0.0f32;
                        if count > 0 {
                            value = result.output[i];
                            largest = result.largest[h];
                            sum = result.sum[h];
                        }
                        states[at + 2 + i % d] = value;
                        if i % d == 0 {
                            states[at] = largest;
                            states[at + 1] = sum;
                        }
                    }
                }
            }
        }
        sync_cube();
        head += comptime!(plan.heads);
    }
}

/// Merges the splits of [`dense_kernel`], one cube for each query head: `states` -> `out` [B, H, d].
#[cube(launch_unchecked, address_type = "dynamic")]
pub(crate) fn merge_splits<Q: Float>(
    states: &[f32],
    out: &mut [Q],
    splits: u32,
    heads: u32,
    #[comptime] group: usize,
    #[comptime] d: usize,
    #[comptime] units: u32,
    #[comptime] plane: u32,
    #[define(Q)] _type: ElemType,
) {
    let head = CUBE_POS;
    if head >= heads as usize {
        terminate!();
    }
    let units = comptime!(units as usize);
    let splits = splits as usize;
    let row = head / group;
    let stride = comptime!(group * (d + 2));
    let base = row * splits * stride + (head % group) * comptime!(d + 2);
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(units / plane as usize));
    // Several units share a component, each with a part of the splits.
    let parts = comptime!(if units > d { units / d } else { 1 });
    let stepped = comptime!(MERGED_AT_ONCE * parts);
    let mut factors = Shared::<[f32]>::new_slice(comptime!(MOST_SPLITS + MERGED_AT_ONCE * parts));
    let mut top = (-LARGEST).runtime();
    let mut split = UNIT_POS as usize;
    while split < splits {
        top = max(top, states[base + split * stride]);
        split += units;
    }
    let top = cube_max(top, &mut scratch, comptime!(units as u32), plane);
    let mut sum = 0.0f32;
    let mut split = UNIT_POS as usize;
    while split < splits {
        let at = base + split * stride;
        let factor = (states[at] - top).exp();
        factors[split] = factor;
        sum += states[at + 1] * factor;
        split += units;
    }
    let sum = cube_sum(sum, &mut scratch, comptime!(units as u32), plane);
    let whole = max(sum, f32::MIN_POSITIVE);
    // What is read once more below for want of another split has no weight.
    let mut split = splits + UNIT_POS as usize;
    while split < splits + stepped {
        factors[split] = 0.0f32;
        split += units;
    }
    sync_cube();
    let mut values = Shared::<[f32]>::new_slice(comptime!(parts * d));
    for round in 0..comptime!(parts * d).div_ceil(units) {
        let i = round * units + UNIT_POS as usize;
        if i < comptime!(parts * d) {
            let mut value = 0.0f32;
            let mut split = i / d;
            while split < splits {
                let mut loaded = Array::<f32>::new(MERGED_AT_ONCE);
                #[unroll]
                for u in 0..MERGED_AT_ONCE {
                    let at = min(split + u * parts, splits - 1);
                    loaded[u] = states[base + at * stride + 2 + i % d];
                }
                #[unroll]
                for u in 0..MERGED_AT_ONCE {
                    value += loaded[u] * factors[split + u * parts];
                }
                split += stepped;
            }
            values[i] = value;
        }
    }
    sync_cube();
    for round in 0..d.div_ceil(units) {
        let c = round * units + UNIT_POS as usize;
        if c < d {
            let mut value = 0.0f32;
            #[unroll]
            for part in 0..parts {
                value += values[part * d + c];
            }
            out[head * d + c] = Q::cast_from(value / whole);
        }
    }
}
