//! Step 4 where rows are long and few: the exact choice of [`select`](super::select), divided among many cubes for each row.
//!
//! [`histogram_kernel`] counts, [`emit_kernel`] takes what lies above the border, and only the ranking within the border's bin is left to one cube
//! ([`take_emitted`]).

use cubecl::prelude::*;

use super::common::*;
use super::select::{
    BINS, SelectPlan, bin_of, clear, find_bin, group_scores, merge_stats, score_bound, score_of,
};

/// Words of a row of the state that the cubes of a row share: the histogram, how many positions lie above the border, and how many in its bin.
pub(crate) const STATE: usize = BINS + 2;

/// First pass over a part of a row: its group scores, and its share of the row's histogram in `state` [rows, [`STATE`]], which the score kernel cleared.
///
/// `scores` [rows, S_max] takes the group scores.
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn histogram_kernel(
    logits: &[Vector<f32, Const<4>>],
    stats: &[f32],
    spans: &[u32],
    scores: &mut [Vector<f32, Const<4>>],
    state: &mut [Atomic<u32>],
    batch: u32,
    kv_heads: u32,
    capacity: u32,
    tiles: u32,
    tile_len: u32,
    parts: u32,
    #[comptime] part_len: usize,
    #[comptime] plan: SelectPlan,
) {
    let units = comptime!(plan.units as usize);
    let capacity = capacity as usize;
    let parts = parts as usize;
    let row = CUBE_POS / parts;
    let part = CUBE_POS % parts;
    if row >= (batch * kv_heads) as usize {
        terminate!();
    }
    let place = locate(spans, row, batch, kv_heads);
    let (start, end) = (place.start, place.end);
    let begin = part * part_len;
    if begin >= end || end - start <= comptime!(plan.top_k) {
        terminate!();
    }
    let free = end - comptime!(plan.window);
    let mut top = Shared::<[f32]>::new_slice(comptime!(plan.group));
    let mut lse = Shared::<[f32]>::new_slice(comptime!(plan.group));
    let histogram = Shared::<[Atomic<u32>]>::new_slice(BINS);
    clear(&histogram, BINS, units);
    merge_stats(
        stats,
        row,
        tiles as usize,
        end.div_ceil(tile_len as usize),
        &mut top,
        &mut lse,
        2usize,
        plan,
    );
    let bound = score_bound(&top, plan);
    #[unroll]
    for i in 0..comptime!(part_len / 4 / units) {
        let four = begin / 4 + i * units + UNIT_POS as usize;
        if four * 4 < free {
            let found = group_scores(logits, row, capacity, four, &lse, plan);
            scores[row * (capacity / 4) + four] = found;
            #[unroll]
            for e in 0..4usize {
                let position = four * 4 + e;
                if position >= start && position < free {
                    let bin = bin_of(score_of(found, e, plan), bound, plan);
                    histogram[bin as usize].fetch_add(1u32);
                }
            }
        }
    }
    sync_cube();
    for i in 0..comptime!(BINS / units) {
        let bin = i * units + UNIT_POS as usize;
        let count = histogram[bin].load();
        if count > 0 {
            state[row * STATE + bin].fetch_add(count);
        }
    }
}

/// Second pass over a part of a row: writes the positions above the border, [rows, k] behind the window, and the first `plan.candidates` in its bin with their
/// keys, [rows, candidates, 2].
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn emit_kernel(
    scores: &[Vector<f32, Const<4>>],
    stats: &[f32],
    spans: &[u32],
    state: &mut [Atomic<u32>],
    above: &mut [u32],
    border: &mut [u32],
    batch: u32,
    kv_heads: u32,
    capacity: u32,
    tiles: u32,
    tile_len: u32,
    parts: u32,
    #[comptime] part_len: usize,
    #[comptime] plan: SelectPlan,
) {
    let units = comptime!(plan.units as usize);
    let capacity = capacity as usize;
    let parts = parts as usize;
    let row = CUBE_POS / parts;
    let part = CUBE_POS % parts;
    if row >= (batch * kv_heads) as usize {
        terminate!();
    }
    let place = locate(spans, row, batch, kv_heads);
    let (start, end) = (place.start, place.end);
    let begin = part * part_len;
    if begin >= end || end - start <= comptime!(plan.top_k) {
        terminate!();
    }
    let free = end - comptime!(plan.window);
    let mut found = Shared::<[u32]>::new_slice(2usize);
    let mut partial = Shared::<[u32]>::new_slice(units);
    let histogram = Shared::<[Atomic<u32>]>::new_slice(BINS);
    let mut top = Shared::<[f32]>::new_slice(comptime!(plan.group));
    let mut lse = Shared::<[f32]>::new_slice(comptime!(plan.group));
    #[unroll]
    for i in 0..comptime!(BINS / units) {
        let bin = i * units + UNIT_POS as usize;
        histogram[bin].store(state[row * STATE + bin].load());
    }
    if UNIT_POS == 0 {
        found[0] = 0u32;
        found[1] = 0u32;
    }
    if comptime!(!plan.probabilities) {
        // Only the bins of logits are relative to the largest.
        merge_stats(
            stats,
            row,
            tiles as usize,
            end.div_ceil(tile_len as usize),
            &mut top,
            &mut lse,
            2usize,
            plan,
        );
    }
    sync_cube();
    let bound = if comptime!(plan.probabilities) {
        0.0f32.runtime()
    } else {
        score_bound(&top, plan)
    };
    let needed = comptime!((plan.top_k - plan.window) as u32);
    find_bin(
        &histogram,
        &mut partial,
        &mut found,
        needed,
        BINS,
        plan.units,
        plan.plane,
    );
    let edge = found[0];
    #[unroll]
    for i in 0..comptime!(part_len / 4 / units) {
        let four = begin / 4 + i * units + UNIT_POS as usize;
        if four * 4 < free {
            let here = scores[row * (capacity / 4) + four];
            #[unroll]
            for e in 0..4usize {
                let position = four * 4 + e;
                if position >= start && position < free {
                    let score = score_of(here, e, plan);
                    let bin = bin_of(score, bound, plan);
                    if bin < edge {
                        let slot = state[row * STATE + BINS].fetch_add(1u32);
                        above[row * comptime!(plan.top_k) + slot as usize] = position as u32;
                    } else if bin == edge {
                        let slot =
                            state[row * STATE + comptime!(BINS + 1)].fetch_add(1u32) as usize;
                        if slot < comptime!(plan.candidates) {
                            let at = (row * comptime!(plan.candidates) + slot) * 2;
                            border[at] = order_key(score);
                            border[at + 1] = position as u32;
                        }
                    }
                }
            }
        }
    }
}

/// Completes the choice of [`emit_kernel`] into `kept`. Returns whether it could: not where more positions share the border's bin than it lists.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(crate) fn take_emitted(
    state: &[u32],
    above: &[u32],
    border: &[u32],
    row: usize,
    end: usize,
    kept: &mut Shared<[u32]>,
    #[comptime] plan: SelectPlan,
) -> bool {
    let units = comptime!(plan.units as usize);
    let window = comptime!(plan.window);
    let top_k = comptime!(plan.top_k);
    let unit = UNIT_POS as usize;
    let taken = state[row * STATE + BINS] as usize;
    let crowd = state[row * STATE + comptime!(BINS + 1)] as usize;
    let complete = crowd <= comptime!(plan.candidates);
    let mut keys = Shared::<[u32]>::new_slice(comptime!(plan.candidates));
    let mut places = Shared::<[u32]>::new_slice(comptime!(plan.candidates));
    if complete {
        let mut i = unit;
        while i < window {
            kept[i] = (end - window + i) as u32;
            i += units;
        }
        let mut i = unit;
        while i < taken {
            kept[window + i] = above[row * top_k + i];
            i += units;
        }
        let mut i = unit;
        while i < crowd {
            let at = (row * comptime!(plan.candidates) + i) * 2;
            keys[i] = border[at];
            places[i] = border[at + 1];
            i += units;
        }
    }
    sync_cube();
    if complete {
        let wanted = top_k - window - taken;
        let mut i = unit;
        while i < crowd {
            let mine = keys[i];
            let place = places[i];
            let mut before = 0usize;
            for other in 0..crowd {
                let theirs = keys[other];
                let first = theirs > mine || (theirs == mine && places[other] < place);
                before += select(first, 1usize, 0usize);
            }
            if before < wanted {
                kept[window + taken + before] = place;
            }
            i += units;
        }
    }
    sync_cube();
    complete
}
