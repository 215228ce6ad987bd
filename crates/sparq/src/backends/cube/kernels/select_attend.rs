//! The second half of stage 2 and stage 3, in one cube for each batch head: top-k of the
//! candidates, exact attention over the selected positions, alpha and the mean value.

use cubecl::prelude::*;

use crate::backends::cube::parts::batch_head::{BatchHead, BatchShape, locate};
use crate::backends::cube::parts::group_softmax::{GroupSoftmax, merge_tiles};
use crate::backends::cube::parts::logits::KeySketch;
use crate::backends::cube::parts::online_softmax::{
    AttendBlueprint, CubeSoftmax, KvRows, Positions, attend, store_queries,
};
use crate::backends::cube::parts::query::{QueryBlueprint, choose_components, load_queries};
use crate::backends::cube::parts::reduce::{
    cube_sum, max_in_plane, plane_dim, plane_lane, sum_in_plane,
};
use crate::backends::cube::parts::row_codes::RowScales;
use crate::backends::cube::parts::score::{LARGEST_SCORE, element_of, finite, no_score};
use crate::backends::cube::parts::topk::{TopKBlueprint, empty_counts, select_top_k};
use crate::backends::cube::parts::topk_memory::{MemoryTopKBlueprint, select_top_k_in_memory};

use super::score_tiles::{Candidates, TILE_STATS};

/// The source of alpha.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Alpha {
    /// alpha is not wanted.
    None,
    /// The scores of the candidates, which are the logits of the only head.
    Candidates,
    /// The logits of the selected positions, for which the sketch is read again.
    Selected,
}

/// The settings that the end of a decode step is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SelectAttendBlueprint {
    /// How the selected positions are attended to.
    pub attend: AttendBlueprint,
    /// How k - l candidates are selected.
    pub top_k: TopKBlueprint,
    /// Vectors of four candidates that a unit holds in registers; 0 if there are too many.
    pub vectors: usize,
    /// Candidates of a tile.
    pub room: usize,
    /// k.
    pub k: usize,
    /// l.
    pub window: usize,
    /// Where alpha comes from.
    pub alpha: Alpha,
    /// How components are selected, for [`Alpha::Selected`].
    pub query: QueryBlueprint,
    /// Bits of a code; 0 for a full copy of K.
    pub bits: usize,
    /// The mean value is added.
    pub mean_value: bool,
    /// The selected positions are attended to. Only the timing of stages leaves this out.
    pub attends: bool,
}

impl SelectAttendBlueprint {
    /// Returns whether a unit holds the positions of its candidates beside their scores. With few
    /// candidates it has registers for both.
    fn holds_positions(&self) -> bool {
        (1..=2).contains(&self.vectors)
    }

    /// Candidates that a unit holds in registers; at least one vector.
    fn own(&self) -> usize {
        4 * self.vectors.max(1)
    }

    /// Planes of a cube.
    fn planes(&self) -> usize {
        (self.attend.units / self.attend.plane) as usize
    }

    /// Returns the top-k of candidates in global memory.
    fn in_memory(&self) -> MemoryTopKBlueprint {
        MemoryTopKBlueprint {
            needed: self.k - self.window,
            units: self.attend.units,
            plane: self.attend.plane,
        }
    }

    /// Bytes of shared memory.
    pub fn shared_bytes(&self) -> usize {
        let query = match self.alpha {
            Alpha::Selected => self.query.shared_bytes(),
            _ => 0,
        };
        let numbers = self.k + 3 * self.attend.group + 2 + self.planes() + self.attend.head_dim;
        self.attend.shared_bytes() + self.top_k.shared_bytes() + query + 4 * numbers
    }
}

/// The result of a decode step.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct Output<Q: Float> {
    /// The attention output, [B, H, d].
    pub out: Box<[Q]>,
    /// The selected positions i2, [B, H_kv, `width`]; -1 fills up.
    pub positions: Box<[i32]>,
    /// alpha, [B, H].
    pub alpha: Box<[f32]>,
}

/// The tiles of earlier launches, and the width of the output's positions.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct Tiling {
    /// Tiles of a batch head with candidates.
    pub tiles: u32,
    /// Positions of such a tile.
    pub tile_len: u32,
    /// Tiles of a batch head with softmax sums of the heads.
    pub head_tiles: u32,
    /// Positions of such a tile.
    pub head_tile_len: u32,
    /// Positions that the output has room for.
    pub width: u32,
}

/// Four candidates at a time.
type CandidateVectors = Candidates<Vector<f32, Const<4>>, Vector<u32, Const<4>>>;

/// Selects the k positions of every batch head from the candidates of all tiles, and attends to
/// them.
///
/// `candidates` come from [`score_tiles_kernel`](super::score_tiles::score_tiles_kernel), and
/// `head_stats` from [`softmax_heads_kernel`](super::softmax_heads::softmax_heads_kernel) for
/// [`Alpha::Selected`].
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn select_attend_kernel<Q: Float, E: Numeric, K: Numeric, N: Size>(
    q: &Tensor<Q>,
    rows: &KvRows<E, N>,
    scales: &RowScales,
    v_sum: &[f32],
    sketch: &KeySketch<K>,
    spans: &[u32],
    candidates: &CandidateVectors,
    head_stats: &[f32],
    output: &mut Output<Q>,
    shape: &BatchShape,
    capacity: u32,
    tiling: &Tiling,
    #[comptime] plan: SelectAttendBlueprint,
    #[define(Q, E, K)] _types: [ElemType; 3],
) {
    let group = comptime!(plan.attend.group);
    let d = comptime!(plan.attend.head_dim);
    let units = comptime!(plan.attend.units as usize);
    let plane = comptime!(plan.attend.plane);
    let capacity = capacity as usize;
    let tiles = tiling.tiles as usize;
    let index = CUBE_POS;
    if index >= shape.count() {
        terminate!();
    }
    // A cube alone on its processor waits for memory each time it depends on a load. All loads that
    // do not depend on the selection are in flight before the first one is used.
    let sequence = index / shape.kv_heads as usize;
    let kv_head = index % shape.kv_heads as usize;
    let own_queries = load_queries::<Q>(q, sequence, kv_head, group, d, units);
    let own_sums = load_value_sums(v_sum, index, plan);
    let own = load_candidates(&candidates.scores, index * tiles, tiles, plan);
    let mut own_positions = Array::<u32>::new(comptime!(plan.own()));
    if comptime!(plan.holds_positions()) {
        own_positions = load_candidates(&candidates.positions, index * tiles, tiles, plan);
    }
    let lane = plane_lane(plane) as usize;
    let first_tile = TileSum::load(&candidates.stats, index * tiles + min(lane, tiles - 1));
    let counts = empty_counts(plan.top_k);
    let batch_head = locate(spans, index, shape);
    let valid = batch_head.end - batch_head.start;
    let count = min(valid, comptime!(plan.k).runtime());
    let mut queries = Shared::<[f32]>::new_slice(comptime!(group * d));
    store_queries(&mut queries, &own_queries, plan.attend);
    let mut selected = Selected {
        positions: Shared::<[u32]>::new_slice(comptime!(plan.k)),
        alphas: Shared::<[f32]>::new_slice(group),
    };
    if valid > comptime!(plan.k) {
        let own = OwnCandidates {
            scores: own,
            positions: own_positions,
            first_tile,
        };
        select_candidates(
            own,
            counts,
            candidates,
            &batch_head,
            tiling,
            &mut selected,
            plan,
        );
        if comptime!(plan.alpha == Alpha::Selected) {
            sync_cube();
            let softmax = merge_tiles(
                head_stats,
                index,
                tiling.head_tiles as usize,
                batch_head.end.div_ceil(tiling.head_tile_len as usize),
                group,
                plan.attend.units,
                plane,
            );
            alpha_of_selected::<Q, K>(
                q,
                sketch,
                &batch_head,
                capacity,
                &softmax,
                &mut selected,
                plan,
            );
        }
    } else {
        select_all(&batch_head, &mut selected, plan);
    }
    let mean = mean_value(&own_sums, valid, plan);
    sync_cube();
    if comptime!(plan.attends) {
        attend_to_selected::<Q, E, N>(
            &queries, rows, scales, capacity, &selected, count, &mean, output, index, plan,
        );
    }
    write_selection(output, index, &selected, count, tiling, plan);
}

/// The positions that a batch head attends to, in shared memory.
#[derive(CubeType)]
struct Selected {
    /// The positions i2, [k].
    positions: Shared<[u32]>,
    /// alpha of each head, [g].
    alphas: Shared<[f32]>,
}

/// Loads this unit's share of the sum of V, [d].
#[cube]
fn load_value_sums(
    v_sum: &[f32],
    batch_head: usize,
    #[comptime] plan: SelectAttendBlueprint,
) -> Array<f32> {
    let d = comptime!(plan.attend.head_dim);
    let units = comptime!(plan.attend.units as usize);
    let all = comptime!(d.div_ceil(units));
    let mut own = Array::<f32>::new(all);
    if comptime!(plan.mean_value && plan.attends) {
        #[unroll]
        for x in 0..all {
            let c = min(x * units + UNIT_POS as usize, comptime!(d - 1).runtime());
            own[x] = v_sum[batch_head * d + c];
        }
    }
    own
}

/// Returns the mean value v_bar [d] of `valid` positions from the sums that [`load_value_sums`]
/// loaded. It can be read after the next barrier.
#[cube]
fn mean_value(
    own_sums: &Array<f32>,
    valid: usize,
    #[comptime] plan: SelectAttendBlueprint,
) -> Shared<[f32]> {
    let d = comptime!(plan.attend.head_dim);
    let units = comptime!(plan.attend.units as usize);
    let mut mean = Shared::<[f32]>::new_slice(d);
    if comptime!(plan.mean_value && plan.attends) {
        let positions = max(f32::cast_from(valid as u32), 1.0f32);
        #[unroll]
        for x in 0..comptime!(d.div_ceil(units)) {
            let c = x * units + UNIT_POS as usize;
            if c < d {
                mean[c] = own_sums[x] / positions;
            }
        }
    }
    mean
}

/// The softmax sum of a tile.
#[derive(CubeType)]
struct TileSum {
    /// The largest score.
    top: f32,
    /// The sum of exponentials relative to it.
    sum: f32,
}

#[cube]
impl TileSum {
    /// Loads the sum of a tile, numbered among the tiles of all batch heads.
    fn load(stats: &[f32], tile: usize) -> TileSum {
        TileSum {
            top: stats[tile * TILE_STATS],
            sum: stats[tile * TILE_STATS + 1],
        }
    }
}

/// Merges `used` tiles from `start` on, in every plane for itself. `first` is the sum of the tile
/// with this lane's number.
#[cube]
fn merge_tile_sums(
    first: TileSum,
    stats: &[f32],
    start: usize,
    used: usize,
    #[comptime] plane: u32,
) -> TileSum {
    let lanes = plane_dim(plane) as usize;
    let mut tile = plane_lane(plane) as usize;
    let mut top = select(tile < used, first.top, -LARGEST_SCORE);
    let mut sum = select(tile < used, first.sum, 0.0f32);
    tile += lanes;
    while tile < used {
        let next = TileSum::load(stats, start + tile);
        let larger = max(top, next.top);
        sum = sum * (top - larger).exp() + next.sum * (next.top - larger).exp();
        top = larger;
        tile += lanes;
    }
    let largest = max_in_plane(top, plane);
    TileSum {
        top: largest,
        sum: sum_in_plane(sum * (top - largest).exp(), plane),
    }
}

/// The candidates that a unit loaded before it knew the span of its sequence.
#[derive(CubeType)]
struct OwnCandidates {
    /// Scores of candidates.
    scores: Array<f32>,
    /// Their positions; see [`SelectAttendBlueprint::holds_positions`].
    positions: Array<u32>,
    /// The softmax sum of the tile with this lane's number.
    first_tile: TileSum,
}

/// Loads this unit's share of the candidates of `tiles` tiles from `first` on, whether the sequence
/// fills them or not.
#[cube]
fn load_candidates<T: Numeric>(
    numbers: &[Vector<T, Const<4>>],
    first: usize,
    tiles: usize,
    #[comptime] plan: SelectAttendBlueprint,
) -> Array<T> {
    let units = comptime!(plan.attend.units as usize);
    let vectors = comptime!(plan.vectors);
    let quarters = comptime!(plan.room / 4);
    let mut own = Array::<T>::new(comptime!(plan.own()));
    #[unroll]
    for v in 0..vectors {
        let at = min(v * units + UNIT_POS as usize, tiles * quarters - 1);
        let four = numbers[first * quarters + at];
        #[unroll]
        for e in 0..4usize {
            own[v * 4 + e] = four.extract(e);
        }
    }
    own
}

/// Selects all positions of a sequence of at most k, with alpha = 1.
#[cube]
fn select_all(
    batch_head: &BatchHead,
    selected: &mut Selected,
    #[comptime] plan: SelectAttendBlueprint,
) {
    let group = comptime!(plan.attend.group);
    let units = comptime!(plan.attend.units as usize);
    let unit = UNIT_POS as usize;
    let valid = batch_head.end - batch_head.start;
    for round in 0..valid.div_ceil(units) {
        let i = round * units + unit;
        if i < valid {
            selected.positions[i] = (batch_head.start + i) as u32;
        }
    }
    for round in 0..group.div_ceil(units) {
        let h = round * units + unit;
        if h < group {
            selected.alphas[h] = 1.0f32;
        }
    }
}

/// Selects k positions from the candidates of all tiles, local window included, and computes alpha
/// for [`Alpha::Candidates`]. Both can be read after the next barrier.
#[cube]
fn select_candidates(
    own: OwnCandidates,
    counts: Shared<[Atomic<u32>]>,
    candidates: &CandidateVectors,
    batch_head: &BatchHead,
    tiling: &Tiling,
    selected: &mut Selected,
    #[comptime] plan: SelectAttendBlueprint,
) {
    let units = comptime!(plan.attend.units as usize);
    let plane = comptime!(plan.attend.plane);
    let window = comptime!(plan.window);
    let unit = UNIT_POS as usize;
    let tiles = tiling.tiles as usize;
    let end = batch_head.end;
    let used = end.div_ceil(tiling.tile_len as usize);
    let first = batch_head.index * tiles * comptime!(plan.room);
    let count = used * comptime!(plan.room);
    let mut scores = own.scores;
    mask_unused(&mut scores, count, plan);
    let all = merge_tile_sums(
        own.first_tile,
        &candidates.stats,
        batch_head.index * tiles,
        used,
        plane,
    );
    let (top, log_sum) = (all.top, max(all.sum, f32::MIN_POSITIVE).ln());
    for round in 0..window.div_ceil(units) {
        let i = round * units + unit;
        if i < window {
            selected.positions[i] = (end - window + i) as u32;
        }
    }
    let mut sum = 0.0f32;
    if comptime!(plan.k > window) {
        if comptime!(plan.vectors > 0) {
            let selection = select_top_k(&scores, top, counts, plan.top_k);
            // The selected candidates of this unit go behind the local window: their positions if
            // the unit holds them, and otherwise their numbers.
            let mut slot = window + selection.first as usize;
            #[unroll]
            for v in 0..comptime!(plan.vectors) {
                #[unroll]
                for e in 0..4usize {
                    let i = comptime!(v * 4 + e);
                    if selection.contains(i) {
                        selected.positions[slot] = if comptime!(plan.holds_positions()) {
                            own.positions[i]
                        } else {
                            ((v * units + unit) * 4 + e) as u32
                        };
                        slot += 1;
                        if comptime!(plan.alpha == Alpha::Candidates) {
                            sum += ((scores[i] - top) - log_sum).exp();
                        }
                    }
                }
            }
            if comptime!(!plan.holds_positions()) {
                sync_cube();
            }
        } else {
            let in_memory = comptime!(plan.in_memory());
            select_top_k_in_memory(
                &candidates.scores,
                first,
                count,
                &mut selected.positions,
                window,
                in_memory,
            );
        }
    }
    if comptime!(!plan.holds_positions()) {
        // `positions` holds numbers of candidates so far. Loading each position where its candidate
        // is selected would wait for memory each time.
        for round in 0..comptime!(plan.k).div_ceil(units) {
            let i = round * units + window + unit;
            if i < comptime!(plan.k) {
                let candidate = first + selected.positions[i] as usize;
                if comptime!(plan.alpha == Alpha::Candidates && plan.vectors == 0) {
                    sum += ((element_of(&candidates.scores, candidate) - top) - log_sum).exp();
                }
                selected.positions[i] = element_of(&candidates.positions, candidate);
            }
        }
    }
    if comptime!(plan.alpha == Alpha::Candidates) {
        // alpha is the sum of s_hat over i2. Each tile knows the part of its local window.
        for round in 0..used.div_ceil(units) {
            let tile = round * units + unit;
            if tile < used {
                let at = (batch_head.index * tiles + tile) * TILE_STATS;
                let stats = &candidates.stats;
                sum += stats[at + 2] * ((stats[at] - top) - log_sum).exp();
            }
        }
        let mut scratch = Shared::<[f32]>::new_slice(comptime!(plan.planes()));
        let mass = cube_sum(sum, &mut scratch, plan.attend.units, plane);
        selected.alphas[0] = clamp(mass, 0.0f32, 1.0f32);
    }
}

/// Sets the candidates from number `count` on to negative infinity. They belong to tiles that the
/// sequence does not fill, and no tile wrote them.
#[cube]
fn mask_unused(scores: &mut Array<f32>, count: usize, #[comptime] plan: SelectAttendBlueprint) {
    let units = comptime!(plan.attend.units as usize);
    #[unroll]
    for v in 0..comptime!(plan.vectors) {
        let known = (v * units + UNIT_POS as usize) * 4 < count;
        #[unroll]
        for e in 0..4usize {
            let i = comptime!(v * 4 + e);
            scores[i] = select(known, scores[i], no_score());
        }
    }
}

/// Computes alpha of every head of the group, the sum of s_hat over i2, from the sketch's keys at
/// the selected positions.
#[cube]
fn alpha_of_selected<Q: Float, K: Numeric>(
    q: &Tensor<Q>,
    sketch: &KeySketch<K>,
    batch_head: &BatchHead,
    capacity: usize,
    softmax: &GroupSoftmax,
    selected: &mut Selected,
    #[comptime] plan: SelectAttendBlueprint,
) {
    let group = comptime!(plan.attend.group);
    let units = comptime!(plan.attend.units as usize);
    let each = comptime!(32usize.checked_div(plan.bits).unwrap_or(1));
    let query = choose_components::<Q>(
        q,
        &sketch.scale,
        batch_head.sequence,
        batch_head.kv_head,
        batch_head.index,
        plan.query,
    );
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(plan.planes()));
    for h in 0..group {
        let mut sum = 0.0f32;
        for round in 0..comptime!(plan.k).div_ceil(units) {
            let i = round * units + UNIT_POS as usize;
            if i < comptime!(plan.k) {
                let position = selected.positions[i] as usize;
                let mut logit = 0.0f32;
                for c in 0..comptime!(plan.query.rank) {
                    let channel = batch_head.index * comptime!(plan.query.head_dim)
                        + query.selected[c] as usize;
                    let element = sketch.elements[channel * (capacity / each) + position / each];
                    let key = if comptime!(plan.bits == 0) {
                        f32::cast_from(element)
                    } else {
                        let shift = (position % each) as u32 * comptime!(plan.bits as u32);
                        let code = u32::cast_from(element) >> shift;
                        f32::cast_from(code & comptime!((1u32 << plan.bits) - 1))
                    };
                    logit += query.weights[c * group + h] * key;
                }
                sum += ((finite(logit) - softmax.top[h]) - softmax.log_sum[h]).exp();
            }
        }
        let sum = cube_sum(sum, &mut scratch, plan.attend.units, plan.attend.plane);
        selected.alphas[h] = clamp(sum, 0.0f32, 1.0f32);
    }
}

/// Stage 3: y = softmax(q . K[i2] / sqrt(d)) . V[i2], and alpha y + (1 - alpha) v_bar with the mean
/// value.
#[cube]
#[allow(clippy::too_many_arguments)]
fn attend_to_selected<Q: Float, E: Numeric, N: Size>(
    queries: &Shared<[f32]>,
    rows: &KvRows<E, N>,
    scales: &RowScales,
    capacity: usize,
    selected: &Selected,
    count: usize,
    mean: &Shared<[f32]>,
    output: &mut Output<Q>,
    batch_head: usize,
    #[comptime] plan: SelectAttendBlueprint,
) {
    let group = comptime!(plan.attend.group);
    let d = comptime!(plan.attend.head_dim);
    let units = comptime!(plan.attend.units as usize);
    let mut result = CubeSoftmax::new(plan.attend);
    for pass in 0..comptime!(plan.attend.passes()) {
        let head = pass * comptime!(plan.attend.heads);
        if count > 0 {
            let positions = Positions::gathered(batch_head * capacity, &selected.positions, count);
            attend::<E, N>(
                queries,
                rows,
                scales,
                &positions,
                head,
                &mut result,
                plan.attend,
            );
        }
        for round in 0..comptime!(plan.attend.heads * plan.attend.head_dim).div_ceil(units) {
            let i = round * units + UNIT_POS as usize;
            if i < comptime!(plan.attend.heads * plan.attend.head_dim) {
                let h = i / d;
                let here = head + h;
                if here < group {
                    let mut y = 0.0f32;
                    if count > 0 {
                        y = result.normalised(i, h);
                    }
                    if comptime!(plan.mean_value) {
                        y = y * selected.alphas[here]
                            + mean[i % d] * (1.0f32 - selected.alphas[here]);
                    }
                    output.out[(batch_head * group + here) * d + i % d] = Q::cast_from(y);
                }
            }
        }
        sync_cube();
    }
}

/// Writes the selected positions and alpha.
#[cube]
fn write_selection<Q: Float>(
    output: &mut Output<Q>,
    batch_head: usize,
    selected: &Selected,
    count: usize,
    tiling: &Tiling,
    #[comptime] plan: SelectAttendBlueprint,
) {
    let group = comptime!(plan.attend.group);
    let units = comptime!(plan.attend.units as usize);
    let width = tiling.width as usize;
    for round in 0..width.div_ceil(units) {
        let i = round * units + UNIT_POS as usize;
        if i < width {
            let mut position = (-1i32).runtime();
            if i < count {
                position = selected.positions[i] as i32;
            }
            output.positions[batch_head * width + i] = position;
        }
    }
    if comptime!(plan.alpha != Alpha::None) {
        for round in 0..group.div_ceil(units) {
            let h = round * units + UNIT_POS as usize;
            if h < group {
                output.alpha[batch_head * group + h] = selected.alphas[h];
            }
        }
    }
}
