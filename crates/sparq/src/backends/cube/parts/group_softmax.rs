//! The softmax of each head of a group over all positions, and the sum of their probabilities,
//! which ranks positions for the whole group.
//!
//! The heads are taken in *passes*, as many at a time as fit in registers. The values that a unit
//! holds of a pass depend on who multiplies. Without matrix units they are [heads, count], at the
//! unit's own positions. With matrix units they are those of one head, at the positions of the four
//! lanes that share words.
//!
//! The softmax of a head needs all tiles of its batch head. If the cubes of a batch head can run
//! concurrently, they wait for each other, and each continues with the logits that it holds: the
//! sketch is read once. Otherwise
//! [`softmax_heads_kernel`](super::super::kernels::softmax_heads::softmax_heads_kernel) reads the
//! sketch first, for the sums alone.

use cubecl::prelude::*;

use super::logits::{SketchBlueprint, SketchTile, run_starts, unit_logits};
use super::mma;
use super::query::Query;
use super::reduce::{max_in_plane, plane_dim, plane_index, plane_lane, sum_in_plane};
use super::score::{LARGEST_SCORE, no_score};

/// Numbers that a tile writes for each head: the largest logit, and the sum of exponentials
/// relative to it.
pub(crate) const HEAD_STATS: usize = 2;

impl SketchBlueprint {
    /// Heads of a pass.
    pub fn pass(&self) -> usize {
        if self.mma { mma::HEADS } else { self.heads }
    }

    /// Passes for all heads.
    pub fn passes(&self) -> usize {
        self.query.heads().div_ceil(self.pass())
    }

    /// Values that a unit holds of a pass.
    pub fn held(&self) -> usize {
        self.pass() * self.count()
    }

    /// Heads whose logits a unit holds of a pass.
    pub fn tops(&self) -> usize {
        if self.mma { 1 } else { self.heads }
    }

    /// Bytes of shared memory for the sums of a pass and for the softmax.
    pub fn head_bytes(&self) -> usize {
        4 * HEAD_STATS * (self.pass() * self.query.planes() + self.query.heads())
    }
}

/// Writes the logits of the heads from `first` on to `values`, from `at` on.
#[cube]
pub(crate) fn pass_logits<K: Numeric, N: Size>(
    values: &mut Array<f32>,
    #[comptime] at: usize,
    tile: &SketchTile<'_, K, N>,
    query: &Query,
    first: usize,
    #[comptime] plan: SketchBlueprint,
) {
    if comptime!(plan.mma) {
        let weights = mma::fragments(&query.weights, first, plan);
        mma::logits::<K, N>(values, at, tile, query, &weights, plan);
    } else {
        let logits = unit_logits::<K, N>(tile, query, first, plan);
        #[unroll]
        for i in 0..comptime!(plan.held()) {
            values[comptime!(at + i)] = logits[i];
        }
    }
}

/// Sets the logits of a pass before `start` and from `end` on to negative infinity; both are
/// relative to the start of the tile.
#[cube]
pub(crate) fn mask_outside(
    values: &mut Array<f32>,
    #[comptime] at: usize,
    start: u32,
    end: u32,
    #[comptime] plan: SketchBlueprint,
) {
    let starts = run_starts(plan);
    let run = comptime!(plan.run());
    #[unroll]
    for i in 0..comptime!(plan.held()) {
        let position = if comptime!(plan.mma) {
            starts[comptime!(i / 8)] - 2u32 * (UNIT_POS_PLANE % 4) + comptime!((i % 8) as u32)
        } else {
            starts[comptime!(i % plan.count() / run)] + comptime!((i % run) as u32)
        };
        let valid = position >= start && position < end;
        let n = comptime!(at + i);
        values[n] = select(valid, values[n], no_score());
    }
}

/// Replaces the logits of a pass by exponentials, and writes the largest logit and the sum of each
/// plane to `states` [[`HEAD_STATS`], heads of a pass, planes].
///
/// The exponentials in `values` are relative to the largest logits of the plane, which go to
/// `tops`, from `top_at` on: those of the heads of the pass, or of the lane's head.
#[cube]
pub(crate) fn exponentiate(
    values: &mut Array<f32>,
    #[comptime] at: usize,
    tops: &mut Array<f32>,
    #[comptime] top_at: usize,
    states: &mut Shared<[f32]>,
    #[comptime] plan: SketchBlueprint,
) {
    let plane = comptime!(plan.query.plane);
    let planes = comptime!(plan.query.planes());
    let pass = comptime!(plan.pass());
    let own_plane = plane_index(plane) as usize;
    // Another unit may still read the states of an earlier pass.
    sync_cube();
    if comptime!(plan.mma) {
        let held = comptime!(plan.held());
        let mut largest = (-LARGEST_SCORE).runtime();
        #[unroll]
        for i in 0..held {
            largest = max(largest, values[comptime!(at + i)]);
        }
        let largest = mma::max_over_quads(largest);
        tops[top_at] = largest;
        let mut sum = 0.0f32;
        #[unroll]
        for i in 0..held {
            let part = mma::exp(values[comptime!(at + i)] - largest);
            values[comptime!(at + i)] = part;
            sum += part;
        }
        let sum = mma::sum_over_quads(sum);
        if UNIT_POS_PLANE < 4 {
            let state = UNIT_POS_PLANE as usize * planes + own_plane;
            states[state] = largest;
            states[comptime!(pass * planes) + state] = sum;
        }
    } else {
        let count = comptime!(plan.count());
        #[unroll]
        for h in 0..pass {
            let mut largest = (-LARGEST_SCORE).runtime();
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
}

/// Merges what [`exponentiate`] wrote for the planes: writes the largest logit of the tile and the
/// sum of exponentials relative to it, for the heads from `first` on, to `stats`
/// [heads, [`HEAD_STATS`]] from `out` on.
#[cube]
pub(crate) fn write_head_stats(
    states: &Shared<[f32]>,
    first: usize,
    out: usize,
    stats: &mut [f32],
    #[comptime] plan: SketchBlueprint,
) {
    let units = comptime!(plan.query.units as usize);
    let planes = comptime!(plan.query.planes());
    let heads = comptime!(plan.query.heads());
    let pass = comptime!(plan.pass());
    for round in 0..pass.div_ceil(units) {
        let h = round * units + UNIT_POS as usize;
        if h < pass && first + h < heads {
            let mut largest = (-LARGEST_SCORE).runtime();
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

/// Turns the exponentials of [`exponentiate`] into probabilities, for the heads from `first` on.
#[cube]
pub(crate) fn normalise_exponentials(
    values: &mut Array<f32>,
    #[comptime] at: usize,
    tops: &Array<f32>,
    #[comptime] top_at: usize,
    first: usize,
    softmax: &GroupSoftmax,
    #[comptime] plan: SketchBlueprint,
) {
    let heads = comptime!(plan.query.heads());
    if comptime!(plan.mma) {
        let head = first + (UNIT_POS_PLANE % 4) as usize;
        let known = head < heads;
        let head = min(head, comptime!(heads - 1).runtime());
        let factor = mma::exp((tops[top_at] - softmax.top[head]) - softmax.log_sum[head]);
        // A head past the last has probability 0.
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

/// Turns logits into probabilities, for the heads from `first` on.
#[cube]
pub(crate) fn normalise_logits(
    values: &mut Array<f32>,
    first: usize,
    softmax: &GroupSoftmax,
    #[comptime] plan: SketchBlueprint,
) {
    let heads = comptime!(plan.query.heads());
    if comptime!(plan.mma) {
        let head = first + (UNIT_POS_PLANE % 4) as usize;
        let known = head < heads;
        let head = min(head, comptime!(heads - 1).runtime());
        let (top, log_sum) = (softmax.top[head], softmax.log_sum[head]);
        #[unroll]
        for i in 0..comptime!(plan.held()) {
            let part = mma::exp((values[i] - top) - log_sum);
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

/// Adds the probabilities of a pass to `sums` [count], one for each position of this unit.
#[cube]
pub(crate) fn add_probabilities(
    sums: &mut Array<f32>,
    values: &Array<f32>,
    #[comptime] at: usize,
    #[comptime] plan: SketchBlueprint,
) {
    if comptime!(plan.mma) {
        let words = comptime!(plan.vector);
        #[unroll]
        for v in 0..comptime!(plan.vectors) {
            let mut of_head = Array::<f32>::new(comptime!(8 * words));
            #[unroll]
            for i in 0..comptime!(8 * words) {
                of_head[i] = values[comptime!(at + v * 8 * words + i)];
            }
            let of_all = mma::sum_over_heads(&of_head, words);
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

/// The softmax of each head over all positions: e^((logit - top) - log_sum).
///
/// The two are kept apart because their sum would lose the lower bits of the logarithm for large
/// logits.
#[derive(CubeType)]
pub(crate) struct GroupSoftmax {
    /// The largest logit, [heads].
    pub top: Shared<[f32]>,
    /// The logarithm of the sum of exponentials relative to it, [heads].
    pub log_sum: Shared<[f32]>,
}

/// Merges the [`HEAD_STATS`] of the first `used` tiles, of `tiles`, of a batch head.
#[cube]
pub(crate) fn merge_tiles(
    stats: &[f32],
    batch_head: usize,
    tiles: usize,
    used: usize,
    #[comptime] heads: usize,
    #[comptime] units: u32,
    #[comptime] plane: u32,
) -> GroupSoftmax {
    let mut softmax = GroupSoftmax {
        top: Shared::<[f32]>::new_slice(heads),
        log_sum: Shared::<[f32]>::new_slice(heads),
    };
    let lane = plane_lane(plane) as usize;
    let lanes = plane_dim(plane) as usize;
    let planes = comptime!(units as usize).runtime() / lanes;
    for round in 0..heads.runtime().div_ceil(planes) {
        let h = round * planes + plane_index(plane) as usize;
        if h < heads {
            let mut largest = (-LARGEST_SCORE).runtime();
            let mut tile = lane;
            while tile < used {
                largest = max(
                    largest,
                    stats[((batch_head * tiles + tile) * heads + h) * HEAD_STATS],
                );
                tile += lanes;
            }
            let largest = max_in_plane(largest, plane);
            let mut sum = 0.0f32;
            let mut tile = lane;
            while tile < used {
                let at = ((batch_head * tiles + tile) * heads + h) * HEAD_STATS;
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

/// Returns where a sequence begins and ends, relative to the start of the tile.
#[cube]
pub(crate) fn span_in_tile(tile_start: usize, start: usize, end: usize) -> (u32, u32) {
    let first = select(start > tile_start, start - tile_start, 0usize);
    (first as u32, (end - tile_start) as u32)
}
