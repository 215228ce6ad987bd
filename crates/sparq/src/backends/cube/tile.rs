//! Steps 1 to 4 on a tile of positions, in one cube.
//!
//! The scores of a tile never leave the cube. What leaves it are its *candidates*: at least the k best of the tile, so that the k best of the sequence are among
//! those of all tiles. What is written is a small part of what is read.
//!
//! Where a group's heads are summed as probabilities, the softmax of every head has to be known first; see [`heads`](super::heads).

use cubecl::prelude::*;

use super::best::{BestPlan, empty_histogram, take_best};
use super::common::*;
use super::heads::{
    HEAD_STATS, Softmax, add_probabilities, hide_outside, inside, leave_sums, pass_logits,
    probabilities_of_logits, probabilities_of_parts, softmax_of,
};
use super::logits::{SketchPlan, TilePlace, runs_of, tile_place, unit_logits};
use super::matrix;
use super::query::{Query, query_of};

/// What a tile kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TilePlan {
    /// How the sketch is read.
    pub sketch: SketchPlan,
    /// How candidates are chosen: k - l are needed, and at least 1; `room` is for each tile.
    pub best: BestPlan,
    /// k.
    pub top_k: usize,
    /// l.
    pub window: usize,
    /// Whether alpha is asked for, which takes a sum of exponentials of the scores.
    pub alpha: bool,
    /// Whether the cubes of a row wait for each other's sums of exponentials.
    pub together: bool,
}

impl TilePlan {
    /// Bytes of shared memory.
    pub fn shared_bytes(&self) -> usize {
        let query = &self.sketch.query;
        let planes = (query.units / query.plane) as usize;
        query.shared_bytes()
            + self.best.shared_bytes()
            + self.sketch.head_bytes()
            + self.sketch.stage_bytes()
            + 4 * (3 * planes + 1)
    }
}

/// Numbers that a tile leaves beside its candidates: the largest score, the sum of exponentials relative to it, and the part of that sum that the local
/// window holds.
pub(crate) const TILE_STATS: usize = 3;

/// Scores of a tile and its candidates.
///
/// q [B, H, 1, d]; `sketch` in vectors of N elements: a full copy of K, [B, H_kv, d, S_max], or its codes in words, [B, H_kv, d, S_max / (32/b)], with
/// their `step` [B, H_kv, d]; `components`, `weights` and `arrivals` as [`query_kernel`](super::query::query_kernel) leaves them, where it runs before. `heads`
/// [B, H_kv, tiles, g, [`HEAD_STATS`]], for probabilities: as [`heads_kernel`](super::heads::heads_kernel) leaves it, or for cubes to tell each other.
/// `scores` and `places` [B, H_kv, tiles, room]: the candidates' scores, filled up with negative infinity, and their positions; `stats`
/// [B, H_kv, tiles, [`TILE_STATS`]].
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn tile_kernel<Q: Float, K: Numeric, N: Size>(
    q: &Tensor<Q>,
    sketch: &[Vector<K, N>],
    step: &[f32],
    spans: &[u32],
    components: &[u32],
    weights: &[f32],
    arrivals: &mut [Atomic<u32>],
    heads: &mut [f32],
    scores: &mut [f32],
    places: &mut [u32],
    stats: &mut [f32],
    batch: u32,
    kv_heads: u32,
    capacity: u32,
    tiles: u32,
    #[comptime] plan: TilePlan,
    #[define(Q, K)] _types: [ElemType; 2],
) {
    let query_plan = comptime!(plan.sketch.query);
    let run = comptime!(plan.sketch.run());
    let count = comptime!(plan.sketch.count());
    let units = comptime!(query_plan.units as usize);
    let plane = comptime!(query_plan.plane);
    let planes = comptime!((query_plan.units / query_plan.plane) as usize);
    let unit = UNIT_POS as usize;
    let tiles = tiles as usize;
    let mut cube = CUBE_POS;
    if comptime!(plan.together) {
        cube = in_order_of_start(arrivals);
    }
    let row = cube / tiles;
    let tile = cube % tiles;
    if row >= (batch * kv_heads) as usize {
        terminate!();
    }
    let place = locate(spans, row, batch, kv_heads);
    let (start, end) = (place.start, place.end);
    let tile_len = comptime!(plan.sketch.tile_len());
    let tile_start = tile * tile_len;
    let histogram = empty_histogram(plan.best);
    // Before the span is looked at, so that what both need is asked for at once.
    let query = query_of::<Q>(q, step, components, weights, &place, row, query_plan);
    // A sequence of at most k positions keeps them all.
    if tile_start >= end || end - start <= comptime!(plan.top_k) {
        terminate!();
    }
    let at = tile_place(row, capacity as usize, tile_start, end, plan.sketch);
    let mut own = Array::<f32>::new(count);
    if comptime!(query_plan.heads() == 1) {
        own = single_scores::<K, N>(sketch, &at, &query, plan.sketch);
    } else {
        #[unroll]
        for i in 0..count {
            own[i] = 0.0f32;
        }
        let used = end.div_ceil(tile_len);
        if comptime!(plan.together) {
            let held = comptime!(plan.sketch.held());
            let passes = comptime!(plan.sketch.passes());
            let mut values = Array::<f32>::new(comptime!(passes * held));
            let each = comptime!(plan.sketch.tops());
            let mut tops = Array::<f32>::new(comptime!(passes * each));
            let mut states =
                Shared::<[f32]>::new_slice(comptime!(HEAD_STATS * plan.sketch.pass() * planes));
            let whole = tile_start >= start && tile_start + tile_len <= end;
            let out = (row * tiles + tile) * comptime!(query_plan.heads() * HEAD_STATS);
            #[unroll]
            for p in 0..passes {
                let first = comptime!(p * plan.sketch.pass()).runtime();
                let to = comptime!(p * held);
                pass_logits::<K, N>(&mut values, to, sketch, &at, &query, first, plan.sketch);
                if !whole {
                    let (start, end) = inside(tile_start, start, end);
                    hide_outside(&mut values, to, start, end, plan.sketch);
                }
                leave_sums(
                    &mut values,
                    to,
                    &mut tops,
                    comptime!(p * each),
                    first,
                    out,
                    &mut states,
                    heads,
                    plan.sketch,
                );
            }
            wait_for_row(arrivals, row, used as u32);
            let softmax = softmax(&*heads, row, tiles, used, plan.sketch);
            #[unroll]
            for p in 0..passes {
                let first = comptime!(p * plan.sketch.pass()).runtime();
                let at = comptime!(p * held);
                probabilities_of_parts(
                    &mut values,
                    at,
                    &tops,
                    comptime!(p * each),
                    first,
                    &softmax,
                    plan.sketch,
                );
                add_probabilities(&mut own, &values, at, plan.sketch);
            }
        } else {
            let softmax = softmax(&*heads, row, tiles, used, plan.sketch);
            let mut first = 0usize;
            while first < comptime!(query_plan.heads()) {
                let mut values = Array::<f32>::new(comptime!(plan.sketch.held()));
                pass_logits::<K, N>(&mut values, 0usize, sketch, &at, &query, first, plan.sketch);
                probabilities_of_logits(&mut values, first, &softmax, plan.sketch);
                add_probabilities(&mut own, &values, 0usize, plan.sketch);
                first += comptime!(plan.sketch.pass());
            }
        }
    }

    let from = runs_of(plan.sketch);
    // Most tiles hold neither the first position, nor the last, nor any of the local window.
    let free = end - comptime!(plan.window);
    let inner = tile_start >= start && tile_start + tile_len <= free;
    if !inner {
        #[unroll]
        for i in 0..count {
            let position = tile_start + from[comptime!(i / run)] as usize + comptime!(i % run);
            let valid = position >= start && position < end;
            own[i] = select(valid, own[i], no_score());
        }
    }
    let mut top = no_score();
    #[unroll]
    for i in 0..count {
        top = max(top, own[i]);
    }
    let mut scratch = Shared::<[f32]>::new_slice(planes);
    // At least one position of the tile is valid, or its candidates are all padding.
    let top = max(
        cube_max(top, &mut scratch, query_plan.units, plane),
        -LARGEST,
    );
    let mut parts = Shared::<[f32]>::new_slice(comptime!(2 * planes));
    if comptime!(plan.alpha) {
        let mut all = 0.0f32;
        #[unroll]
        for i in 0..count {
            if comptime!(plan.sketch.matrix) {
                all += matrix::exp(own[i] - top);
            } else {
                all += (own[i] - top).exp();
            }
        }
        let all = sum_in_plane(all, plane);
        if plane_lane(plane) == 0 {
            parts[plane_index(plane) as usize] = all;
        }
    }
    if !inner {
        // The local window is taken without a look at its scores.
        let mut latest = 0.0f32;
        #[unroll]
        for i in 0..count {
            let position = tile_start + from[comptime!(i / run)] as usize + comptime!(i % run);
            if position >= free {
                if comptime!(plan.alpha) {
                    latest += (own[i] - top).exp();
                }
                own[i] = no_score();
            }
        }
        if comptime!(plan.alpha) {
            let latest = sum_in_plane(latest, plane);
            if plane_lane(plane) == 0 {
                parts[planes + plane_index(plane) as usize] = latest;
            }
        }
    }

    let room = comptime!(plan.best.room);
    let best = take_best(&own, top, histogram, plan.best);
    let out = (row * tiles + tile) * room;
    let mut slot = out + best.first as usize;
    #[unroll]
    for i in 0..count {
        if best.is_taken(i) {
            scores[slot] = own[i];
            places[slot] =
                tile_start as u32 + from[comptime!(i / run)] + comptime!((i % run) as u32);
            slot += 1;
        }
    }
    for round in 0..room.div_ceil(units) {
        let slot = round * units + best.total as usize + unit;
        if slot < room {
            scores[out + slot] = no_score();
        }
    }
    if unit == 0 {
        let at = (row * tiles + tile) * TILE_STATS;
        stats[at] = top;
        if comptime!(plan.alpha) {
            let mut all = 0.0f32;
            let mut latest = 0.0f32;
            for i in 0..comptime!(query_plan.units).runtime() / plane_dim(plane) {
                all += parts[i as usize];
                if !inner {
                    latest += parts[planes + i as usize];
                }
            }
            stats[at + 1] = all;
            stats[at + 2] = latest;
        }
    }
}

/// The scores of one query at all positions of this unit, [count].
#[cube]
fn single_scores<K: Numeric, N: Size>(
    sketch: &[Vector<K, N>],
    place: &TilePlace,
    query: &Query,
    #[comptime] plan: SketchPlan,
) -> Array<f32> {
    if comptime!(plan.matrix) {
        let parts = matrix::fragments(&query.weights, 0usize, plan);
        matrix::scores::<K, N>(sketch, place, &query.selected, &parts, plan)
    } else {
        unit_logits::<K, N>(sketch, place, &query.selected, &query.weights, 0usize, plan)
    }
}

#[cube]
fn softmax(
    heads: &[f32],
    row: usize,
    tiles: usize,
    used: usize,
    #[comptime] plan: SketchPlan,
) -> Softmax {
    let query = comptime!(plan.query);
    softmax_of(
        heads,
        row,
        tiles,
        used,
        comptime!(query.heads()),
        query.units,
        query.plane,
    )
}

/// A number for every cube of a grid, in the order in which they start.
///
/// A cube that waits for others of its row waits only for cubes that run or that will: whatever started before it belongs to its row or to an earlier one.
#[cube]
fn in_order_of_start(arrivals: &mut [Atomic<u32>]) -> usize {
    let mut number = Shared::<[u32]>::new_slice(1usize);
    if UNIT_POS == 0 {
        number[0] = arrivals[0].fetch_add(1u32);
    }
    sync_cube();
    number[0] as usize
}

/// Returns when `used` cubes of the row have come here; what each of them wrote before can then be read.
#[cube]
fn wait_for_row(arrivals: &mut [Atomic<u32>], row: usize, used: u32) {
    sync_storage();
    if UNIT_POS == 0 {
        arrivals[row + 1].fetch_add(1u32);
        let mut here = arrivals[row + 1].load();
        while here < used {
            here = arrivals[row + 1].load();
        }
    }
    sync_storage();
}
