//! Several heads that agree on positions by the sum of their probabilities: the softmax of each over all positions, and the sum.
//!
//! The heads are taken in *passes*, as many at a time as fit in registers. Of a pass a unit holds numbers whose heads and positions depend on who
//! multiplies: without matrix units [heads, count], its own positions; with them those of one head, at the positions of the four lanes that share words.
//!
//! The softmax of a head needs all tiles of its row. Where the cubes of a row can run side by side, they wait for each other, and each goes on with the logits that
//! it holds: the sketch is read once. Elsewhere [`heads_kernel`] goes over the sketch before, for the sums alone.

use cubecl::prelude::*;

use super::common::*;
use super::logits::{SketchPlan, TilePlace, runs_of, tile_place, unit_logits};
use super::matrix;
use super::query::{Query, query_of};

/// Numbers that a tile leaves for each head: the largest logit, and the sum of exponentials relative to it.
pub(crate) const HEAD_STATS: usize = 2;

impl SketchPlan {
    /// Heads of a pass.
    pub fn pass(&self) -> usize {
        if self.matrix {
            matrix::HEADS
        } else {
            self.heads
        }
    }

    /// Passes for all heads.
    pub fn passes(&self) -> usize {
        self.query.heads().div_ceil(self.pass())
    }

    /// Numbers that a unit holds of a pass.
    pub fn held(&self) -> usize {
        self.pass() * self.count()
    }

    /// Heads whose logits a unit holds of a pass.
    pub fn tops(&self) -> usize {
        if self.matrix { 1 } else { self.heads }
    }

    /// Bytes of shared memory for the sums of a pass and for the softmax.
    pub fn head_bytes(&self) -> usize {
        let planes = (self.query.units / self.query.plane) as usize;
        4 * HEAD_STATS * (self.pass() * planes + self.query.heads())
    }
}

/// The logits of the heads from `first` on, into `values` from `at` on.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(crate) fn pass_logits<K: Numeric, N: Size>(
    values: &mut Array<f32>,
    #[comptime] at: usize,
    sketch: &[Vector<K, N>],
    place: &TilePlace,
    query: &Query,
    first: usize,
    #[comptime] plan: SketchPlan,
) {
    if comptime!(plan.matrix) {
        let parts = matrix::fragments(&query.weights, first, plan);
        matrix::logits::<K, N>(values, at, sketch, place, &query.selected, &parts, plan);
    } else {
        let logits =
            unit_logits::<K, N>(sketch, place, &query.selected, &query.weights, first, plan);
        #[unroll]
        for i in 0..comptime!(plan.held()) {
            values[comptime!(at + i)] = logits[i];
        }
    }
}

/// Makes the logits of a pass at positions before `start` and from `end` on negative infinity; both relative to the tile's first.
#[cube]
pub(crate) fn hide_outside(
    values: &mut Array<f32>,
    #[comptime] at: usize,
    start: u32,
    end: u32,
    #[comptime] plan: SketchPlan,
) {
    let from = runs_of(plan);
    let run = comptime!(plan.run());
    #[unroll]
    for i in 0..comptime!(plan.held()) {
        let position = if comptime!(plan.matrix) {
            from[comptime!(i / 8)] - 2u32 * (UNIT_POS_PLANE % 4) + comptime!((i % 8) as u32)
        } else {
            from[comptime!(i % plan.count() / run)] + comptime!((i % run) as u32)
        };
        let valid = position >= start && position < end;
        let n = comptime!(at + i);
        values[n] = select(valid, values[n], no_score());
    }
}

/// Of the heads from `first` on, the largest logit of the tile and the sum of exponentials relative to it: to `stats` [heads, [`HEAD_STATS`]] from `out` on.
///
/// In `values` it leaves the exponentials, relative to the largest logits of this plane: of the pass's heads, or of this lane's, in `tops` from `top_at` on.
/// `states` has room for [`HEAD_STATS`] numbers from every plane and head of a pass.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(crate) fn leave_sums(
    values: &mut Array<f32>,
    #[comptime] at: usize,
    tops: &mut Array<f32>,
    #[comptime] top_at: usize,
    first: usize,
    out: usize,
    states: &mut Shared<[f32]>,
    stats: &mut [f32],
    #[comptime] plan: SketchPlan,
) {
    let plane = comptime!(plan.query.plane);
    let units = comptime!(plan.query.units as usize);
    let planes = comptime!((plan.query.units / plan.query.plane) as usize);
    let heads = comptime!(plan.query.heads());
    let pass = comptime!(plan.pass());
    let own_plane = plane_index(plane) as usize;
    // Whoever still reads those of an earlier pass has to be done.
    sync_cube();
    if comptime!(plan.matrix) {
        let held = comptime!(plan.held());
        let mut largest = (-LARGEST).runtime();
        #[unroll]
        for i in 0..held {
            largest = max(largest, values[comptime!(at + i)]);
        }
        let largest = matrix::largest_of_quads(largest);
        tops[top_at] = largest;
        let mut sum = 0.0f32;
        #[unroll]
        for i in 0..held {
            let part = matrix::exp(values[comptime!(at + i)] - largest);
            values[comptime!(at + i)] = part;
            sum += part;
        }
        let sum = matrix::sum_of_quads(sum);
        if UNIT_POS_PLANE < 4 {
            let state = UNIT_POS_PLANE as usize * planes + own_plane;
            states[state] = largest;
            states[comptime!(pass * planes) + state] = sum;
        }
    } else {
        let count = comptime!(plan.count());
        #[unroll]
        for h in 0..pass {
            let mut largest = (-LARGEST).runtime();
            #[unroll]
            for i in 0..count {
                largest = max(largest, values[comptime!(at + h * count + i)]);
            }
            let largest = max_in_plane(largest, plane);
            tops[comptime!(top_at + h)] = largest;
            let mut sum = 0.0f32;
            #[unroll]
            for i in 0..count {
                let part = (values[comptime!(at + h * count + i)] - largest).exp();
                values[comptime!(at + h * count + i)] = part;
                sum += part;
            }
            let sum = sum_in_plane(sum, plane);
            if plane_lane(plane) == 0 {
                let state = h * planes + own_plane;
                states[state] = largest;
                states[comptime!(pass * planes) + state] = sum;
            }
        }
    }
    sync_cube();
    for round in 0..pass.div_ceil(units) {
        let h = round * units + UNIT_POS as usize;
        if h < pass && first + h < heads {
            let mut largest = (-LARGEST).runtime();
            for p in 0..planes {
                largest = max(largest, states[h * planes + p]);
            }
            let mut sum = 0.0f32;
            for p in 0..planes {
                let state = h * planes + p;
                sum += states[comptime!(pass * planes) + state] * (states[state] - largest).exp();
            }
            let to = out + (first + h) * HEAD_STATS;
            stats[to] = largest;
            stats[to + 1] = sum;
        }
    }
}

/// Makes probabilities of what [`leave_sums`] left of the heads from `first` on.
#[cube]
pub(crate) fn probabilities_of_parts(
    values: &mut Array<f32>,
    #[comptime] at: usize,
    tops: &Array<f32>,
    #[comptime] top_at: usize,
    first: usize,
    softmax: &Softmax,
    #[comptime] plan: SketchPlan,
) {
    let heads = comptime!(plan.query.heads());
    if comptime!(plan.matrix) {
        let head = first + (UNIT_POS_PLANE % 4) as usize;
        let known = head < heads;
        let head = min(head, comptime!(heads - 1).runtime());
        let factor = matrix::exp((tops[top_at] - softmax.top[head]) - softmax.log_sum[head]);
        // A head past the last has no probability.
        let factor = select(known, factor, 0.0f32);
        #[unroll]
        for i in 0..comptime!(plan.held()) {
            values[comptime!(at + i)] *= factor;
        }
    } else {
        let count = comptime!(plan.count());
        #[unroll]
        for h in 0..comptime!(plan.heads) {
            let head = min(first + h, comptime!(heads - 1).runtime());
            let top = tops[comptime!(top_at + h)];
            let factor = ((top - softmax.top[head]) - softmax.log_sum[head]).exp();
            let factor = select(first + h < heads, factor, 0.0f32);
            #[unroll]
            for i in 0..count {
                values[comptime!(at + h * count + i)] *= factor;
            }
        }
    }
}

/// Makes probabilities of the logits of the heads from `first` on.
#[cube]
pub(crate) fn probabilities_of_logits(
    values: &mut Array<f32>,
    first: usize,
    softmax: &Softmax,
    #[comptime] plan: SketchPlan,
) {
    let heads = comptime!(plan.query.heads());
    if comptime!(plan.matrix) {
        let head = first + (UNIT_POS_PLANE % 4) as usize;
        let known = head < heads;
        let head = min(head, comptime!(heads - 1).runtime());
        let (top, log_sum) = (softmax.top[head], softmax.log_sum[head]);
        #[unroll]
        for i in 0..comptime!(plan.held()) {
            let part = matrix::exp((values[i] - top) - log_sum);
            values[i] = select(known, part, 0.0f32);
        }
    } else {
        let count = comptime!(plan.count());
        #[unroll]
        for h in 0..comptime!(plan.heads) {
            let known = first + h < heads;
            let head = min(first + h, comptime!(heads - 1).runtime());
            let (top, log_sum) = (softmax.top[head], softmax.log_sum[head]);
            #[unroll]
            for i in 0..count {
                let part = ((values[comptime!(h * count + i)] - top) - log_sum).exp();
                values[comptime!(h * count + i)] = select(known, part, 0.0f32);
            }
        }
    }
}

/// Adds the probabilities of a pass's heads to those of this unit's positions, `sums` [count].
#[cube]
pub(crate) fn add_probabilities(
    sums: &mut Array<f32>,
    values: &Array<f32>,
    #[comptime] at: usize,
    #[comptime] plan: SketchPlan,
) {
    if comptime!(plan.matrix) {
        let words = comptime!(plan.vector);
        #[unroll]
        for v in 0..comptime!(plan.vectors) {
            let mut of_head = Array::<f32>::new(comptime!(8 * words));
            #[unroll]
            for i in 0..comptime!(8 * words) {
                of_head[i] = values[comptime!(at + v * 8 * words + i)];
            }
            let of_all = matrix::sum_of_heads(&of_head, words);
            #[unroll]
            for i in 0..comptime!(2 * words) {
                sums[comptime!(v * 2 * words + i)] += of_all[i];
            }
        }
    } else {
        let count = comptime!(plan.count());
        #[unroll]
        for i in 0..comptime!(plan.heads * count) {
            sums[comptime!(i % count)] += values[comptime!(at + i)];
        }
    }
}

/// The softmax of each head over all positions: e^((logit - top) - log_sum). The sum of both would lose the lower bits of the logarithm where logits are large.
#[derive(CubeType)]
pub(crate) struct Softmax {
    /// The largest logit.
    pub top: Shared<[f32]>,
    /// The logarithm of the sum of exponentials relative to it.
    pub log_sum: Shared<[f32]>,
}

/// The softmax of `heads` heads, from what [`leave_sums`] left of the `used` first tiles of a row.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(crate) fn softmax_of(
    stats: &[f32],
    row: usize,
    tiles: usize,
    used: usize,
    #[comptime] heads: usize,
    #[comptime] units: u32,
    #[comptime] plane: u32,
) -> Softmax {
    let mut softmax = Softmax {
        top: Shared::<[f32]>::new_slice(heads),
        log_sum: Shared::<[f32]>::new_slice(heads),
    };
    let lane = plane_lane(plane) as usize;
    let lanes = plane_dim(plane) as usize;
    let planes = comptime!(units as usize).runtime() / lanes;
    for round in 0..heads.runtime().div_ceil(planes) {
        let h = round * planes + plane_index(plane) as usize;
        if h < heads {
            let mut largest = (-LARGEST).runtime();
            let mut tile = lane;
            while tile < used {
                largest = max(
                    largest,
                    stats[((row * tiles + tile) * heads + h) * HEAD_STATS],
                );
                tile += lanes;
            }
            let largest = max_in_plane(largest, plane);
            let mut sum = 0.0f32;
            let mut tile = lane;
            while tile < used {
                let at = ((row * tiles + tile) * heads + h) * HEAD_STATS;
                sum += stats[at + 1] * (stats[at] - largest).exp();
                tile += lanes;
            }
            let sum = sum_in_plane(sum, plane);
            softmax.top[h] = largest;
            softmax.log_sum[h] = max(sum, f32::MIN_POSITIVE).ln();
        }
    }
    sync_cube();
    softmax
}

/// What [`leave_sums`] finds of every head in a tile: `stats` [B, H_kv, tiles, g, [`HEAD_STATS`]]. Otherwise like [`tile_kernel`](super::tile::tile_kernel).
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn heads_kernel<Q: Float, K: Numeric, N: Size>(
    q: &Tensor<Q>,
    sketch: &[Vector<K, N>],
    step: &[f32],
    spans: &[u32],
    components: &[u32],
    weights: &[f32],
    stats: &mut [f32],
    batch: u32,
    kv_heads: u32,
    capacity: u32,
    tiles: u32,
    #[comptime] plan: SketchPlan,
    #[define(Q, K)] _types: [ElemType; 2],
) {
    let group = comptime!(plan.query.heads());
    let planes = comptime!((plan.query.units / plan.query.plane) as usize);
    let tiles = tiles as usize;
    let row = CUBE_POS / tiles;
    let tile = CUBE_POS % tiles;
    if row >= (batch * kv_heads) as usize {
        terminate!();
    }
    let place = locate(spans, row, batch, kv_heads);
    let (start, end) = (place.start, place.end);
    let tile_start = tile * comptime!(plan.tile_len());
    // Before the span is looked at, so that what both need is asked for at once.
    let query = query_of::<Q>(q, step, components, weights, &place, row, plan.query);
    if tile_start >= end {
        terminate!();
    }
    let at = tile_place(row, capacity as usize, tile_start, end, plan);
    let out = (row * tiles + tile) * comptime!(group * HEAD_STATS);
    let mut states = Shared::<[f32]>::new_slice(comptime!(HEAD_STATS * plan.pass() * planes));
    let mut first = 0usize;
    while first < group {
        let mut values = Array::<f32>::new(comptime!(plan.held()));
        pass_logits::<K, N>(&mut values, 0usize, sketch, &at, &query, first, plan);
        if tile_start < start || tile_start + comptime!(plan.tile_len()) > end {
            let (start, end) = inside(tile_start, start, end);
            hide_outside(&mut values, 0usize, start, end, plan);
        }
        let mut tops = Array::<f32>::new(comptime!(plan.tops()));
        leave_sums(
            &mut values,
            0usize,
            &mut tops,
            0usize,
            first,
            out,
            &mut states,
            stats,
            plan,
        );
        first += comptime!(plan.pass());
    }
}

/// Where a sequence begins and ends, counted from the tile's first position.
#[cube]
pub(crate) fn inside(tile_start: usize, start: usize, end: usize) -> (u32, u32) {
    let first = select(start > tile_start, start - tile_start, 0usize);
    (first as u32, (end - tile_start) as u32)
}
