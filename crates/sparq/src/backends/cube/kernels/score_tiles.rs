//! Stage 1 and the first half of stage 2 on a tile of positions, in one cube.
//!
//! The scores of a tile never leave the cube. A tile writes *candidates*: at least its own k
//! largest scores, so that the k largest of the sequence are among the candidates of all tiles.
//! They are a small part of what the tile reads.
//!
//! To sum the probabilities of a group, the softmax of every head has to be known first; see
//! [`group_softmax`](crate::backends::cube::parts::group_softmax).

use cubecl::prelude::*;

use crate::backends::cube::parts::batch_head::{BatchHead, BatchShape, locate};
use crate::backends::cube::parts::group_softmax::{
    GroupSoftmax, HEAD_STATS, add_probabilities, exponentiate, mask_outside, merge_tiles,
    normalise_exponentials, normalise_logits, pass_logits, span_in_tile, write_head_stats,
};
use crate::backends::cube::parts::logits::{
    KeySketch, SketchBlueprint, SketchTile, run_starts, sketch_tile, unit_logits,
};
use crate::backends::cube::parts::mma;
use crate::backends::cube::parts::query::{ChosenComponents, Query, query_of};
use crate::backends::cube::parts::reduce::{
    cube_max, plane_dim, plane_index, plane_lane, sum_in_plane,
};
use crate::backends::cube::parts::score::{LARGEST_SCORE, no_score};
use crate::backends::cube::parts::topk::{Selection, TopKBlueprint, empty_counts, select_top_k};

/// The settings that the scoring of tiles is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ScoreTilesBlueprint {
    /// How the sketch is read.
    pub sketch: SketchBlueprint,
    /// How candidates are selected: k - l of each tile, and at least 1.
    pub top_k: TopKBlueprint,
    /// k.
    pub k: usize,
    /// l.
    pub window: usize,
    /// alpha is wanted, which takes a sum of exponentials of the scores.
    pub alpha: bool,
    /// The cubes of a batch head wait for each other's sums of exponentials.
    pub together: bool,
}

impl ScoreTilesBlueprint {
    /// Bytes of shared memory.
    pub fn shared_bytes(&self) -> usize {
        let query = &self.sketch.query;
        query.shared_bytes()
            + self.top_k.shared_bytes()
            + self.sketch.head_bytes()
            + self.sketch.pipeline_bytes()
            + 4 * (3 * query.planes() + 1)
    }
}

/// Numbers that a tile writes beside its candidates: the largest score, the sum of exponentials
/// relative to it, and the part of that sum in the local window.
pub(crate) const TILE_STATS: usize = 3;

/// The candidates of all tiles, in elements S and P.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct Candidates<S: CubePrimitive, P: CubePrimitive> {
    /// Scores [B, H_kv, tiles, room]; negative infinity fills up.
    pub scores: Box<[S]>,
    /// Positions [B, H_kv, tiles, room].
    pub positions: Box<[P]>,
    /// [B, H_kv, tiles, [`TILE_STATS`]].
    pub stats: Box<[f32]>,
}

/// Scores a tile of every batch head and writes its candidates.
///
/// q [B, H, 1, d]. `chosen` and `arrivals` [1 + B H_kv] come from
/// [`choose_components_kernel`](super::choose_components::choose_components_kernel) if it runs.
/// `head_stats` [B, H_kv, tiles, g, [`HEAD_STATS`]] is used for summed probabilities: it comes from
/// [`softmax_heads_kernel`](super::softmax_heads::softmax_heads_kernel), or cubes write it for each
/// other.
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn score_tiles_kernel<Q: Float, K: Numeric, N: Size>(
    q: &Tensor<Q>,
    sketch: &KeySketch<Vector<K, N>>,
    spans: &[u32],
    chosen: &ChosenComponents,
    arrivals: &mut [Atomic<u32>],
    head_stats: &mut [f32],
    candidates: &mut Candidates<f32, u32>,
    shape: &BatchShape,
    capacity: u32,
    tiles: u32,
    #[comptime] plan: ScoreTilesBlueprint,
    #[define(Q, K)] _types: [ElemType; 2],
) {
    let query_plan = comptime!(plan.sketch.query);
    let count = comptime!(plan.sketch.count());
    let tiles = tiles as usize;
    let mut cube = CUBE_POS;
    if comptime!(plan.together) {
        cube = in_order_of_start(arrivals);
    }
    let index = cube / tiles;
    let tile = cube % tiles;
    if index >= shape.count() {
        terminate!();
    }
    let batch_head = locate(spans, index, shape);
    let (start, end) = (batch_head.start, batch_head.end);
    let tile_len = comptime!(plan.sketch.tile_len());
    let tile_start = tile * tile_len;
    let counts = empty_counts(plan.top_k);
    // The loads of the query come before the first use of the span, so that both are in flight.
    let query = query_of::<Q>(q, &sketch.scale, chosen, &batch_head, query_plan);
    // A sequence of at most k positions keeps them all.
    if tile_start >= end || end - start <= comptime!(plan.k) {
        terminate!();
    }
    let at = sketch_tile::<K, N>(
        &sketch.elements,
        index,
        capacity as usize,
        tile_start,
        end,
        plan.sketch,
    );
    let mut own = Array::<f32>::new(count);
    if comptime!(query_plan.heads() == 1) {
        own = single_scores::<K, N>(&at, &query, plan.sketch);
    } else {
        #[unroll]
        for i in 0..count {
            own[i] = 0.0f32;
        }
        let used = end.div_ceil(tile_len);
        if comptime!(plan.together) {
            score_together::<K, N>(
                &mut own,
                &at,
                &query,
                &batch_head,
                head_stats,
                arrivals,
                tile,
                tiles,
                plan.sketch,
            );
        } else {
            let softmax = group_softmax(&*head_stats, index, tiles, used, plan.sketch);
            score_heads::<K, N>(&mut own, &at, &query, &softmax, plan.sketch);
        }
    }

    let starts = run_starts(plan.sketch);
    // Most tiles hold neither an end of the sequence nor a part of the local window.
    let window_start = end - comptime!(plan.window);
    let inner = tile_start >= start && tile_start + tile_len <= window_start;
    if !inner {
        mask_scores(&mut own, &starts, tile_start, start, end, plan.sketch);
    }
    let top = tile_maximum(&own, plan.sketch);
    let planes = comptime!(query_plan.planes());
    let mut sums = Shared::<[f32]>::new_slice(comptime!(2 * planes));
    if comptime!(plan.alpha) {
        sum_exponentials(&own, top, &mut sums, plan.sketch);
    }
    if !inner {
        take_window(
            &mut own,
            &starts,
            tile_start,
            window_start,
            top,
            &mut sums,
            plan,
        );
    }
    let selection = select_top_k(&own, top, counts, plan.top_k);
    let tile_index = index * tiles + tile;
    write_candidates(
        candidates, tile_index, tile_start, &own, &starts, &selection, plan,
    );
    write_tile_stats(candidates, tile_index, top, &sums, inner, plan);
}

/// Returns the scores of one query at this unit's positions, [count].
#[cube]
fn single_scores<K: Numeric, N: Size>(
    tile: &SketchTile<'_, K, N>,
    query: &Query,
    #[comptime] plan: SketchBlueprint,
) -> Array<f32> {
    if comptime!(plan.mma) {
        let weights = mma::fragments(&query.weights, 0usize, plan);
        mma::scores::<K, N>(tile, query, &weights, plan)
    } else {
        unit_logits::<K, N>(tile, query, 0usize, plan)
    }
}

/// Adds up the probabilities of a group that [`softmax_heads_kernel`](super::softmax_heads)
/// prepared: computes the logits again, pass by pass.
#[cube]
fn score_heads<K: Numeric, N: Size>(
    own: &mut Array<f32>,
    tile: &SketchTile<'_, K, N>,
    query: &Query,
    softmax: &GroupSoftmax,
    #[comptime] plan: SketchBlueprint,
) {
    let mut first = 0usize;
    while first < comptime!(plan.query.heads()) {
        let mut values = Array::<f32>::new(comptime!(plan.held()));
        pass_logits::<K, N>(&mut values, 0usize, tile, query, first, plan);
        normalise_logits(&mut values, first, softmax, plan);
        add_probabilities(own, &values, 0usize, plan);
        first += comptime!(plan.pass());
    }
}

/// Adds up the probabilities of a group while the cubes of a batch head wait for each other.
///
/// Each cube holds its exponentials in registers, shares its sums through `head_stats`, and
/// normalises when the sums of all tiles are there.
#[cube]
#[allow(clippy::too_many_arguments)]
fn score_together<K: Numeric, N: Size>(
    own: &mut Array<f32>,
    at: &SketchTile<'_, K, N>,
    query: &Query,
    batch_head: &BatchHead,
    head_stats: &mut [f32],
    arrivals: &mut [Atomic<u32>],
    tile: usize,
    tiles: usize,
    #[comptime] plan: SketchBlueprint,
) {
    let (start, end) = (batch_head.start, batch_head.end);
    let tile_len = comptime!(plan.tile_len());
    let tile_start = tile * tile_len;
    let used = end.div_ceil(tile_len);
    let held = comptime!(plan.held());
    let passes = comptime!(plan.passes());
    let mut values = Array::<f32>::new(comptime!(passes * held));
    let each = comptime!(plan.tops());
    let mut tops = Array::<f32>::new(comptime!(passes * each));
    let mut states =
        Shared::<[f32]>::new_slice(comptime!(HEAD_STATS * plan.pass() * plan.query.planes()));
    let whole = tile_start >= start && tile_start + tile_len <= end;
    let out = (batch_head.index * tiles + tile) * comptime!(plan.query.heads() * HEAD_STATS);
    #[unroll]
    for p in 0..passes {
        let first = comptime!(p * plan.pass()).runtime();
        let to = comptime!(p * held);
        pass_logits::<K, N>(&mut values, to, at, query, first, plan);
        if !whole {
            let (start, end) = span_in_tile(tile_start, start, end);
            mask_outside(&mut values, to, start, end, plan);
        }
        exponentiate(
            &mut values,
            to,
            &mut tops,
            comptime!(p * each),
            &mut states,
            plan,
        );
        write_head_stats(&states, first, out, head_stats, plan);
    }
    wait_for_batch_head(arrivals, batch_head.index, used as u32);
    let softmax = group_softmax(&*head_stats, batch_head.index, tiles, used, plan);
    #[unroll]
    for p in 0..passes {
        let first = comptime!(p * plan.pass()).runtime();
        let from = comptime!(p * held);
        normalise_exponentials(
            &mut values,
            from,
            &tops,
            comptime!(p * each),
            first,
            &softmax,
            plan,
        );
        add_probabilities(own, &values, from, plan);
    }
}

#[cube]
fn group_softmax(
    head_stats: &[f32],
    batch_head: usize,
    tiles: usize,
    used: usize,
    #[comptime] plan: SketchBlueprint,
) -> GroupSoftmax {
    let query = comptime!(plan.query);
    merge_tiles(
        head_stats,
        batch_head,
        tiles,
        used,
        comptime!(query.heads()),
        query.units,
        query.plane,
    )
}

/// Sets the scores outside the sequence to negative infinity.
#[cube]
fn mask_scores(
    own: &mut Array<f32>,
    starts: &Array<u32>,
    tile_start: usize,
    start: usize,
    end: usize,
    #[comptime] plan: SketchBlueprint,
) {
    let run = comptime!(plan.run());
    #[unroll]
    for i in 0..comptime!(plan.count()) {
        let position = tile_start + starts[comptime!(i / run)] as usize + comptime!(i % run);
        let valid = position >= start && position < end;
        own[i] = select(valid, own[i], no_score());
    }
}

/// Returns the largest score of the tile. If the tile is all left padding, this is the lowest
/// finite number.
#[cube]
fn tile_maximum(own: &Array<f32>, #[comptime] plan: SketchBlueprint) -> f32 {
    let mut top = no_score();
    #[unroll]
    for i in 0..comptime!(plan.count()) {
        top = max(top, own[i]);
    }
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(plan.query.planes()));
    max(
        cube_max(top, &mut scratch, plan.query.units, plan.query.plane),
        -LARGEST_SCORE,
    )
}

/// Writes the sum of exponentials of each plane to `sums`.
#[cube]
fn sum_exponentials(
    own: &Array<f32>,
    top: f32,
    sums: &mut Shared<[f32]>,
    #[comptime] plan: SketchBlueprint,
) {
    let plane = comptime!(plan.query.plane);
    let mut all = 0.0f32;
    #[unroll]
    for i in 0..comptime!(plan.count()) {
        if comptime!(plan.mma) {
            all += mma::exp(own[i] - top);
        } else {
            all += (own[i] - top).exp();
        }
    }
    let all = sum_in_plane(all, plane);
    if plane_lane(plane) == 0 {
        sums[plane_index(plane) as usize] = all;
    }
}

/// Removes the local window from the scores: it is selected whatever its scores are. Writes its sum
/// of exponentials behind the sums of the planes.
#[cube]
fn take_window(
    own: &mut Array<f32>,
    starts: &Array<u32>,
    tile_start: usize,
    window_start: usize,
    top: f32,
    sums: &mut Shared<[f32]>,
    #[comptime] plan: ScoreTilesBlueprint,
) {
    let run = comptime!(plan.sketch.run());
    let plane = comptime!(plan.sketch.query.plane);
    let planes = comptime!(plan.sketch.query.planes());
    let mut in_window = 0.0f32;
    #[unroll]
    for i in 0..comptime!(plan.sketch.count()) {
        let position = tile_start + starts[comptime!(i / run)] as usize + comptime!(i % run);
        if position >= window_start {
            if comptime!(plan.alpha) {
                in_window += (own[i] - top).exp();
            }
            own[i] = no_score();
        }
    }
    if comptime!(plan.alpha) {
        let in_window = sum_in_plane(in_window, plane);
        if plane_lane(plane) == 0 {
            sums[planes + plane_index(plane) as usize] = in_window;
        }
    }
}

/// Writes the selected scores and positions of tile `tile_index`, and fills up with negative
/// infinity.
#[cube]
fn write_candidates(
    candidates: &mut Candidates<f32, u32>,
    tile_index: usize,
    tile_start: usize,
    own: &Array<f32>,
    starts: &Array<u32>,
    selection: &Selection,
    #[comptime] plan: ScoreTilesBlueprint,
) {
    let room = comptime!(plan.top_k.room);
    let run = comptime!(plan.sketch.run());
    let units = comptime!(plan.sketch.query.units as usize);
    let out = tile_index * room;
    let mut slot = out + selection.first as usize;
    #[unroll]
    for i in 0..comptime!(plan.sketch.count()) {
        if selection.contains(i) {
            candidates.scores[slot] = own[i];
            candidates.positions[slot] =
                tile_start as u32 + starts[comptime!(i / run)] + comptime!((i % run) as u32);
            slot += 1;
        }
    }
    for round in 0..room.div_ceil(units) {
        let slot = round * units + selection.total as usize + UNIT_POS as usize;
        if slot < room {
            candidates.scores[out + slot] = no_score();
        }
    }
}

/// Writes the [`TILE_STATS`] of tile `tile_index` from the sums of the planes.
#[cube]
fn write_tile_stats(
    candidates: &mut Candidates<f32, u32>,
    tile_index: usize,
    top: f32,
    sums: &Shared<[f32]>,
    inner: bool,
    #[comptime] plan: ScoreTilesBlueprint,
) {
    let query = comptime!(plan.sketch.query);
    let planes = comptime!(query.planes());
    if UNIT_POS as usize == 0 {
        let at = tile_index * TILE_STATS;
        candidates.stats[at] = top;
        if comptime!(plan.alpha) {
            let mut all = 0.0f32;
            let mut in_window = 0.0f32;
            for i in 0..comptime!(query.units).runtime() / plane_dim(query.plane) {
                all += sums[i as usize];
                if !inner {
                    in_window += sums[planes + i as usize];
                }
            }
            candidates.stats[at + 1] = all;
            candidates.stats[at + 2] = in_window;
        }
    }
}

/// Returns a number for every cube of a grid, in the order in which they start.
///
/// A cube only waits for cubes of its batch head. All cubes that started before it belong to its
/// batch head or to an earlier one, so that the cubes it waits for are running or will run.
#[cube]
fn in_order_of_start(arrivals: &mut [Atomic<u32>]) -> usize {
    let mut number = Shared::<[u32]>::new_slice(1usize);
    if UNIT_POS == 0 {
        number[0] = arrivals[0].fetch_add(1u32);
    }
    sync_cube();
    number[0] as usize
}

/// Waits until `used` cubes of the batch head have arrived. All they wrote before can then be read.
#[cube]
fn wait_for_batch_head(arrivals: &mut [Atomic<u32>], batch_head: usize, used: u32) {
    sync_storage();
    if UNIT_POS == 0 {
        arrivals[batch_head + 1].fetch_add(1u32);
        let mut here = arrivals[batch_head + 1].load();
        while here < used {
            here = arrivals[batch_head + 1].load();
        }
    }
    sync_storage();
}
