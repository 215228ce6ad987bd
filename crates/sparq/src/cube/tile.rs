//! Steps 1 to 4 on a tile of positions, in one cube.
//!
//! The scores of a tile never leave the cube. What leaves it are its *candidates*: at least the k best of the tile, so that the k best of the sequence are among
//! those of all tiles. What is written is a small part of what is read.
//!
//! Where a group's heads are summed as probabilities, the softmax of every head has to be known first: [`heads_kernel`] goes over the sketch for their sums of
//! exponentials, [`tile_kernel`] for the scores. To write the logits of all heads and to read them again would move more bytes than the sketch has, where
//! it has codes, and the second time a part of it still is in the cache.

use cubecl::prelude::*;

use super::best::{BestPlan, take_best};
use super::common::*;
use super::logits::{SketchPlan, runs_of, tile_place, unit_logits};
use super::matrix;
use super::query::choose_components;

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
}

impl TilePlan {
    /// Bytes of shared memory.
    pub fn shared_bytes(&self) -> usize {
        let query = &self.sketch.query;
        let planes = (query.units / query.plane) as usize;
        query.shared_bytes() + self.best.shared_bytes() + 4 * (query.heads() * 2 + 3 * planes)
    }
}

/// Numbers that a tile leaves beside its candidates: the largest score, the sum of exponentials relative to it, and the part of that sum that the local
/// window holds.
pub(crate) const TILE_STATS: usize = 3;
/// Numbers that a tile leaves for each head: the largest logit, and the sum of exponentials relative to it.
pub(crate) const HEAD_STATS: usize = 2;

/// Scores of a tile and its candidates.
///
/// q [B, H, 1, d]; `sketch` in vectors of N elements: a full copy of K, [B, H_kv, d, S_max], or its codes in words, [B, H_kv, d, S_max / (32/b)], with
/// their `step` [B, H_kv, d]; `heads` as [`heads_kernel`] leaves it, for probabilities. `scores` and `places` [B, H_kv, tiles, room]: the candidates'
/// scores, filled up with negative infinity, and their positions; `stats` [B, H_kv, tiles, [`TILE_STATS`]].
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn tile_kernel<Q: Float, K: Numeric, N: Size>(
    q: &Tensor<Q>,
    sketch: &[Vector<K, N>],
    step: &[f32],
    spans: &[u32],
    heads: &[f32],
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
    let query = comptime!(plan.sketch.query);
    let run = comptime!(plan.sketch.run());
    let count = comptime!(plan.sketch.count());
    let units = comptime!(query.units as usize);
    let plane = comptime!(query.plane);
    let planes = comptime!((query.units / query.plane) as usize);
    let unit = UNIT_POS as usize;
    let tiles = tiles as usize;
    let row = CUBE_POS / tiles;
    let tile = CUBE_POS % tiles;
    if row >= (batch * kv_heads) as usize {
        terminate!();
    }
    let place = locate(spans, row, batch, kv_heads);
    let (start, end) = (place.start, place.end);
    let tile_len = comptime!(plan.sketch.tile_len());
    let tile_start = tile * tile_len;
    // A sequence of at most k positions keeps them all.
    if tile_start >= end || end - start <= comptime!(plan.top_k) {
        terminate!();
    }

    let mut selected = Shared::<[u32]>::new_slice(comptime!(query.rank));
    let mut weights = Shared::<[f32]>::new_slice(comptime!(query.rank * query.heads()));
    let mut top_of_heads = Shared::<[f32]>::new_slice(comptime!(query.heads()));
    let mut log_sum = Shared::<[f32]>::new_slice(comptime!(query.heads()));
    if comptime!(query.heads() > 1) {
        let used = end.div_ceil(tile_len);
        merge_stats(
            heads,
            row,
            tiles,
            used,
            &mut top_of_heads,
            &mut log_sum,
            comptime!(query.heads()),
            HEAD_STATS,
            query.units,
            plane,
        );
    }
    choose_components::<Q>(
        q,
        step,
        place.sequence,
        place.kv_head,
        row,
        &mut selected,
        &mut weights,
        query,
    );
    let at = tile_place(row, capacity as usize, tile_start, end, plan.sketch);
    let mut own = Array::<f32>::new(count);
    if comptime!(plan.sketch.matrix) {
        if comptime!(query.heads() == 1) {
            let parts = matrix::fragments(&weights, 0usize, plan.sketch);
            own = matrix::scores::<K, N>(sketch, &at, &selected, &parts, plan.sketch);
        } else {
            let words = comptime!(plan.sketch.vector);
            #[unroll]
            for i in 0..count {
                own[i] = 0.0f32;
            }
            let mut first = 0usize;
            while first < comptime!(query.heads()) {
                let parts = matrix::fragments(&weights, first, plan.sketch);
                let head = first + (UNIT_POS_PLANE % 4) as usize;
                // A head past the last has no probability.
                let known = head < comptime!(query.heads());
                let head = min(head, comptime!(query.heads() - 1).runtime());
                let (largest, sum) = (top_of_heads[head], log_sum[head]);
                #[unroll]
                for v in 0..comptime!(plan.sketch.vectors) {
                    let mut values =
                        matrix::logits::<K, N>(sketch, &at, &selected, &parts, v, plan.sketch);
                    #[unroll]
                    for i in 0..comptime!(8 * words) {
                        values[i] = select(known, matrix::exp((values[i] - largest) - sum), 0.0f32);
                    }
                    let sums = matrix::sum_of_heads(&values, words);
                    #[unroll]
                    for i in 0..comptime!(2 * words) {
                        own[comptime!(v * 2 * words + i)] += sums[i];
                    }
                }
                first += matrix::HEADS;
            }
        }
    } else if comptime!(query.heads() == 1) {
        own = unit_logits::<K, N>(sketch, &at, &selected, &weights, 0usize, plan.sketch);
    } else {
        #[unroll]
        for i in 0..count {
            own[i] = 0.0f32;
        }
        let mut first = 0usize;
        while first < comptime!(query.heads()) {
            let values = unit_logits::<K, N>(sketch, &at, &selected, &weights, first, plan.sketch);
            #[unroll]
            for h in 0..comptime!(plan.sketch.heads) {
                if first + h < comptime!(query.heads()) {
                    let (largest, sum) = (top_of_heads[first + h], log_sum[first + h]);
                    #[unroll]
                    for i in 0..count {
                        own[i] += ((values[comptime!(h * count + i)] - largest) - sum).exp();
                    }
                }
            }
            first += comptime!(plan.sketch.heads);
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
            own[i] = select(valid, own[i], f32::NEG_INFINITY);
        }
    }
    let mut top = f32::NEG_INFINITY.runtime();
    #[unroll]
    for i in 0..count {
        top = max(top, own[i]);
    }
    let mut scratch = Shared::<[f32]>::new_slice(planes);
    // At least one position of the tile is valid, or its candidates are all padding.
    let top = max(cube_max(top, &mut scratch, query.units, plane), -LARGEST);
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
                own[i] = f32::NEG_INFINITY;
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
    let best = take_best(&own, top, plan.best);
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
            scores[out + slot] = f32::NEG_INFINITY;
        }
    }
    if unit == 0 {
        let at = (row * tiles + tile) * TILE_STATS;
        stats[at] = top;
        if comptime!(plan.alpha) {
            let mut all = 0.0f32;
            let mut latest = 0.0f32;
            for i in 0..comptime!(query.units).runtime() / plane_dim(plane) {
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

/// The largest logit and the sum of exponentials of each head in a tile: `stats` [B, H_kv, tiles, g, [`HEAD_STATS`]]. Otherwise like [`tile_kernel`].
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn heads_kernel<Q: Float, K: Numeric, N: Size>(
    q: &Tensor<Q>,
    sketch: &[Vector<K, N>],
    step: &[f32],
    spans: &[u32],
    stats: &mut [f32],
    batch: u32,
    kv_heads: u32,
    capacity: u32,
    tiles: u32,
    #[comptime] plan: SketchPlan,
    #[define(Q, K)] _types: [ElemType; 2],
) {
    let query = comptime!(plan.query);
    let group = comptime!(query.heads());
    let plane = comptime!(query.plane);
    let tiles = tiles as usize;
    let row = CUBE_POS / tiles;
    let tile = CUBE_POS % tiles;
    if row >= (batch * kv_heads) as usize {
        terminate!();
    }
    let place = locate(spans, row, batch, kv_heads);
    let (start, end) = (place.start, place.end);
    let tile_start = tile * comptime!(plan.tile_len());
    if tile_start >= end {
        terminate!();
    }
    let mut selected = Shared::<[u32]>::new_slice(comptime!(query.rank));
    let mut weights = Shared::<[f32]>::new_slice(comptime!(query.rank * group));
    choose_components::<Q>(
        q,
        step,
        place.sequence,
        place.kv_head,
        row,
        &mut selected,
        &mut weights,
        query,
    );
    let at = tile_place(row, capacity as usize, tile_start, end, plan);
    let inner = tile_start >= start && tile_start + comptime!(plan.tile_len()) <= end;
    let out = (row * tiles + tile) * comptime!(group * HEAD_STATS);
    let mut first = 0usize;
    if comptime!(plan.matrix) {
        let words = comptime!(plan.vector);
        let from = runs_of(plan);
        // Of every plane and head: the largest, then the sums.
        let planes = comptime!((query.units / matrix::PLANE) as usize);
        let mut states = Shared::<[f32]>::new_slice(comptime!(
            2 * planes * group.next_multiple_of(matrix::HEADS)
        ));
        let sums_from = comptime!(planes * group.next_multiple_of(matrix::HEADS));
        let member = UNIT_POS_PLANE % 4;
        while first < group {
            let parts = matrix::fragments(&weights, first, plan);
            let mut largest = (-LARGEST).runtime();
            let mut sum = 0.0f32;
            #[unroll]
            for v in 0..comptime!(plan.vectors) {
                let mut values = matrix::logits::<K, N>(sketch, &at, &selected, &parts, v, plan);
                if !inner {
                    #[unroll]
                    for i in 0..comptime!(8 * words) {
                        let run = from[comptime!(v * words + i / 8)] - 2u32 * member;
                        let position = tile_start + run as usize + comptime!(i % 8);
                        let valid = position >= start && position < end;
                        values[i] = select(valid, values[i], f32::NEG_INFINITY);
                    }
                }
                let before = largest;
                #[unroll]
                for i in 0..comptime!(8 * words) {
                    largest = max(largest, values[i]);
                }
                sum *= matrix::exp(before - largest);
                #[unroll]
                for i in 0..comptime!(8 * words) {
                    sum += matrix::exp(values[i] - largest);
                }
            }
            let most = matrix::largest_of_quads(largest);
            let sum = matrix::sum_of_quads(sum * (largest - most).exp());
            if UNIT_POS_PLANE < 4 {
                let at = (first + member as usize) * planes + PLANE_POS as usize;
                states[at] = most;
                states[sums_from + at] = sum;
            }
            first += matrix::HEADS;
        }
        sync_cube();
        for round in 0..group.div_ceil(comptime!(query.units as usize)) {
            let head = round * comptime!(query.units as usize) + UNIT_POS as usize;
            if head < group {
                let mut most = (-LARGEST).runtime();
                for p in 0..planes {
                    most = max(most, states[head * planes + p]);
                }
                let mut sum = 0.0f32;
                for p in 0..planes {
                    let at = head * planes + p;
                    sum += states[sums_from + at] * (states[at] - most).exp();
                }
                stats[out + head * HEAD_STATS] = most;
                stats[out + head * HEAD_STATS + 1] = sum;
            }
        }
    } else {
        let count = comptime!(plan.count());
        let run = comptime!(plan.run());
        let from = runs_of(plan);
        let mut scratch =
            Shared::<[f32]>::new_slice(comptime!((query.units / query.plane) as usize));
        while first < group {
            let mut values = unit_logits::<K, N>(sketch, &at, &selected, &weights, first, plan);
            #[unroll]
            for h in 0..comptime!(plan.heads) {
                let mut largest = (-LARGEST).runtime();
                #[unroll]
                for i in 0..count {
                    let position =
                        tile_start + from[comptime!(i / run)] as usize + comptime!(i % run);
                    let valid = position >= start && position < end;
                    let n = comptime!(h * count + i);
                    values[n] = select(valid, values[n], f32::NEG_INFINITY);
                    largest = max(largest, values[n]);
                }
                let largest = cube_max(largest, &mut scratch, query.units, plane);
                let mut sum = 0.0f32;
                #[unroll]
                for i in 0..count {
                    sum += (values[comptime!(h * count + i)] - largest).exp();
                }
                let sum = cube_sum(sum, &mut scratch, query.units, plane);
                if UNIT_POS == 0 && first + h < group {
                    stats[out + (first + h) * HEAD_STATS] = largest;
                    stats[out + (first + h) * HEAD_STATS + 1] = sum;
                }
            }
            first += comptime!(plan.heads);
        }
    }
}

/// The softmax over all positions from the statistics of the tiles: fills `top` with the largest logit and `log_sum` with the logarithm of the sum of
/// exponentials relative to it of each of `heads` heads. Their sum would lose the lower bits of the logarithm where logits are large.
///
/// A tile has `stride` numbers for each head, of which the first two are its largest logit and its sum.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(crate) fn merge_stats(
    stats: &[f32],
    row: usize,
    tiles: usize,
    used: usize,
    top: &mut Shared<[f32]>,
    log_sum: &mut Shared<[f32]>,
    #[comptime] heads: usize,
    #[comptime] stride: usize,
    #[comptime] units: u32,
    #[comptime] plane: u32,
) {
    let lane = plane_lane(plane) as usize;
    let lanes = plane_dim(plane) as usize;
    let planes = comptime!(units as usize).runtime() / lanes;
    for round in 0..heads.runtime().div_ceil(planes) {
        let h = round * planes + plane_index(plane) as usize;
        if h < heads {
            let mut largest = (-LARGEST).runtime();
            let mut tile = lane;
            while tile < used {
                largest = max(largest, stats[((row * tiles + tile) * heads + h) * stride]);
                tile += lanes;
            }
            let largest = if comptime!(plane > 1) {
                plane_max(largest)
            } else {
                largest
            };
            let mut sum = 0.0f32;
            let mut tile = lane;
            while tile < used {
                let at = ((row * tiles + tile) * heads + h) * stride;
                sum += stats[at + 1] * (stats[at] - largest).exp();
                tile += lanes;
            }
            let sum = sum_in_plane(sum, plane);
            top[h] = largest;
            log_sum[h] = max(sum, f32::MIN_POSITIVE).ln();
        }
    }
    sync_cube();
}
