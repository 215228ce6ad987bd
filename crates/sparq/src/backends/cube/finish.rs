//! Steps 4 to 7 by one cube for each key/value head: choice of the positions, exact attention over them, mean value.

use cubecl::prelude::*;

use super::attend::{AttendPlan, Attended, attend, keep_queries, load_queries};
use super::best::{BestPlan, empty_histogram, take_best};
use super::common::*;
use super::heads::{Softmax, softmax_of};
use super::many::take_from_memory;
use super::query::{QueryPlan, choose_components};
use super::tile::TILE_STATS;

/// Where alpha comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Alpha {
    /// It is not asked for.
    None,
    /// From the scores of the candidates, which are the logits of the only head.
    Candidates,
    /// From the logits of the kept positions, for which the sketch is read once more.
    Kept,
}

/// What the end of a step is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FinishPlan {
    /// How positions are attended to.
    pub attend: AttendPlan,
    /// How they are chosen from candidates: k - l of them.
    pub best: BestPlan,
    /// Vectors of four candidates that a unit holds in registers; 0 where there are too many.
    pub vectors: usize,
    /// Candidates that a tile has room for.
    pub room: usize,
    /// k.
    pub top_k: usize,
    /// l.
    pub window: usize,
    /// Where alpha comes from.
    pub alpha: Alpha,
    /// How components are chosen, and the bits of a code, for [`Alpha::Kept`].
    pub query: QueryPlan,
    /// Bits of a code; 0 for a full copy of K.
    pub bits: usize,
    /// Whether the mean value is mixed in.
    pub mean_value: bool,
    /// Whether the kept positions are attended to.
    pub attends: bool,
}

impl FinishPlan {
    /// Whether a unit holds the positions of its candidates as well as their scores: where they are so few that it has registers for both.
    fn knows_places(&self) -> bool {
        (1..=2).contains(&self.vectors)
    }

    /// Bytes of shared memory.
    pub fn shared_bytes(&self) -> usize {
        let planes = (self.attend.units / self.attend.plane) as usize;
        let query = match self.alpha {
            Alpha::Kept => self.query.shared_bytes(),
            _ => 0,
        };
        let numbers = self.top_k + 3 * self.attend.group + 2 + planes + self.attend.head_dim;
        self.attend.shared_bytes() + self.best.shared_bytes() + query + 4 * numbers
    }
}

/// From the candidates of all tiles to the output [B, H, d], the kept positions [B, H_kv, `width`] and alpha [B, H].
///
/// `scores`, `places` and `stats` as [`tile_kernel`](super::tile::tile_kernel) leaves them, `heads` as [`heads_kernel`](super::tile::heads_kernel) does,
/// where alpha is that of kept positions; `sketch` and `step` as they were given to those.
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn finish_kernel<Q: Float, E: Float, K: Numeric, N: Size>(
    q: &Tensor<Q>,
    keys: &[Vector<E, N>],
    values: &[Vector<E, N>],
    v_sum: &[f32],
    sketch: &[K],
    step: &[f32],
    spans: &[u32],
    scores: &[Vector<f32, Const<4>>],
    places: &[Vector<u32, Const<4>>],
    stats: &[f32],
    heads: &[f32],
    out: &mut [Q],
    positions: &mut [i32],
    alpha: &mut [f32],
    batch: u32,
    kv_heads: u32,
    capacity: u32,
    tiles: u32,
    tile_len: u32,
    head_tiles: u32,
    head_tile_len: u32,
    width: u32,
    #[comptime] plan: FinishPlan,
    #[define(Q, E, K)] _types: [ElemType; 3],
) {
    let group = comptime!(plan.attend.group);
    let d = comptime!(plan.attend.head_dim);
    let units = comptime!(plan.attend.units as usize);
    let plane = comptime!(plan.attend.plane);
    let top_k = comptime!(plan.top_k);
    let capacity = capacity as usize;
    let width = width as usize;
    let unit = UNIT_POS as usize;
    let row = CUBE_POS;
    if row >= (batch * kv_heads) as usize {
        terminate!();
    }
    // A cube alone on its processor waits for memory as often as it asks: whatever does not depend on a choice is asked for at once, before the first answer is
    // looked at.
    let sequence = row / kv_heads as usize;
    let kv_head = row % kv_heads as usize;
    let asked = load_queries::<Q>(q, sequence, kv_head, plan.attend);
    let all = comptime!(d.div_ceil(units));
    let mut of_values = Array::<f32>::new(all);
    if comptime!(plan.mean_value && plan.attends) {
        #[unroll]
        for x in 0..all {
            of_values[x] = v_sum[row * d + min(x * units + unit, comptime!(d - 1).runtime())];
        }
    }
    let own = load_candidates(scores, row * tiles as usize, tiles as usize, plan);
    let mut own_places = Array::<u32>::new(comptime!(4 * plan.vectors.max(1)));
    if comptime!(plan.knows_places()) {
        own_places = load_candidates(places, row * tiles as usize, tiles as usize, plan);
    }
    let lane = plane_lane(plane) as usize;
    let first = TileSum::load(stats, row * tiles as usize + min(lane, tiles as usize - 1));
    let histogram = empty_histogram(plan.best);
    let place = locate(spans, row, batch, kv_heads);
    let (start, end) = (place.start, place.end);
    let valid = end - start;
    let count = min(valid, top_k.runtime());
    let mut queries = Shared::<[f32]>::new_slice(comptime!(group * d));
    keep_queries(&mut queries, &asked, plan.attend);
    let mut kept = Shared::<[u32]>::new_slice(top_k);
    let mut alphas = Shared::<[f32]>::new_slice(group);
    if valid > top_k {
        let used = end.div_ceil(tile_len as usize);
        choose_candidates(
            own,
            own_places,
            histogram,
            first,
            scores,
            places,
            stats,
            row,
            tiles as usize,
            used,
            end,
            &mut kept,
            &mut alphas,
            plan,
        );
        if comptime!(plan.alpha == Alpha::Kept) {
            sync_cube();
            let softmax = softmax_of(
                heads,
                row,
                head_tiles as usize,
                end.div_ceil(head_tile_len as usize),
                group,
                plan.attend.units,
                plane,
            );
            alpha_of_kept::<Q, K>(
                q,
                sketch,
                step,
                &place,
                row,
                capacity,
                &kept,
                &softmax,
                &mut alphas,
                plan,
            );
        }
    } else {
        for round in 0..valid.div_ceil(units) {
            let i = round * units + unit;
            if i < valid {
                kept[i] = (start + i) as u32;
            }
        }
        for round in 0..group.div_ceil(units) {
            let h = round * units + unit;
            if h < group {
                alphas[h] = 1.0f32;
            }
        }
    }
    let mut mean = Shared::<[f32]>::new_slice(d);
    if comptime!(plan.mean_value && plan.attends) {
        let positions = max(f32::cast_from(valid as u32), 1.0f32);
        #[unroll]
        for x in 0..all {
            let c = x * units + unit;
            if c < d {
                mean[c] = of_values[x] / positions;
            }
        }
    }
    sync_cube();
    if comptime!(plan.attends) {
        // Step 6: y = softmax(q . K[i2] / sqrt(d)) . V[i2], exact.
        let mut result = Attended::new(plan.attend);
        for pass in 0..comptime!(group.div_ceil(plan.attend.heads)) {
            let head = pass * comptime!(plan.attend.heads);
            if count > 0 {
                attend::<E, N>(
                    &queries,
                    keys,
                    values,
                    row * capacity,
                    head,
                    &kept,
                    0usize,
                    count,
                    &mut result,
                    true,
                    plan.attend,
                );
            }
            for round in 0..comptime!(plan.attend.heads * plan.attend.head_dim).div_ceil(units) {
                let i = round * units + unit;
                if i < comptime!(plan.attend.heads * plan.attend.head_dim) {
                    let h = i / d;
                    let here = head + h;
                    if here < group {
                        let mut y = 0.0f32;
                        if count > 0 {
                            y = result.output[i] / max(result.sum[h], f32::MIN_POSITIVE);
                        }
                        // Step 7: y = alpha y + (1 - alpha) mean(V).
                        if comptime!(plan.mean_value) {
                            y = y * alphas[here] + mean[i % d] * (1.0f32 - alphas[here]);
                        }
                        out[(row * group + here) * d + i % d] = Q::cast_from(y);
                    }
                }
            }
            sync_cube();
        }
    }

    for round in 0..width.div_ceil(units) {
        let i = round * units + unit;
        if i < width {
            let mut position = (-1i32).runtime();
            if i < count {
                position = kept[i] as i32;
            }
            positions[row * width + i] = position;
        }
    }
    if comptime!(plan.alpha != Alpha::None) {
        for round in 0..group.div_ceil(units) {
            let h = round * units + unit;
            if h < group {
                alpha[row * group + h] = alphas[h];
            }
        }
    }
}

/// What a tile leaves of its scores' softmax.
#[derive(CubeType)]
struct TileSum {
    /// The largest score.
    top: f32,
    /// The sum of exponentials relative to it.
    sum: f32,
}

#[cube]
impl TileSum {
    /// That of a tile, by its number among those of all rows.
    fn load(stats: &[f32], tile: usize) -> TileSum {
        TileSum {
            top: stats[tile * TILE_STATS],
            sum: stats[tile * TILE_STATS + 1],
        }
    }
}

/// The `used` tiles from `start` on taken together, by every plane for itself; `first` is that of the tile with this lane's number, where there is one.
#[cube]
fn sum_of_tiles(
    first: TileSum,
    stats: &[f32],
    start: usize,
    used: usize,
    #[comptime] plane: u32,
) -> TileSum {
    let lanes = plane_dim(plane) as usize;
    let mut tile = plane_lane(plane) as usize;
    let mut top = select(tile < used, first.top, -LARGEST);
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

/// This unit's share of the numbers of the candidates of all tiles, `tiles` of them from `first` on, whether a sequence fills them or not.
#[cube]
fn load_candidates<T: Numeric>(
    numbers: &[Vector<T, Const<4>>],
    first: usize,
    tiles: usize,
    #[comptime] plan: FinishPlan,
) -> Array<T> {
    let units = comptime!(plan.attend.units as usize);
    let vectors = comptime!(plan.vectors);
    let quarters = comptime!(plan.room / 4);
    let mut own = Array::<T>::new(comptime!(4 * vectors.max(1)));
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

/// Step 4 from the candidates of all tiles, and step 5 where alpha comes from those: fills `kept` with k positions and `alphas`, which can be
/// read once the units have been in step.
#[cube]
#[allow(clippy::too_many_arguments)]
fn choose_candidates(
    own: Array<f32>,
    own_places: Array<u32>,
    histogram: Shared<[Atomic<u32>]>,
    first_sum: TileSum,
    scores: &[Vector<f32, Const<4>>],
    places: &[Vector<u32, Const<4>>],
    stats: &[f32],
    row: usize,
    tiles: usize,
    used: usize,
    end: usize,
    kept: &mut Shared<[u32]>,
    alphas: &mut Shared<[f32]>,
    #[comptime] plan: FinishPlan,
) {
    let units = comptime!(plan.attend.units as usize);
    let plane = comptime!(plan.attend.plane);
    let vectors = comptime!(plan.vectors);
    let window = comptime!(plan.window);
    let top_k = comptime!(plan.top_k);
    let unit = UNIT_POS as usize;
    let first = row * tiles * comptime!(plan.room);
    let count = used * comptime!(plan.room);
    // What lies beyond the tiles that this sequence fills was never written.
    let mut own = own;
    #[unroll]
    for v in 0..vectors {
        let known = (v * units + unit) * 4 < count;
        #[unroll]
        for e in 0..4usize {
            let i = comptime!(v * 4 + e);
            own[i] = select(known, own[i], no_score());
        }
    }
    let all = sum_of_tiles(first_sum, stats, row * tiles, used, plane);
    let (top, log_sum) = (all.top, max(all.sum, f32::MIN_POSITIVE).ln());
    for round in 0..window.div_ceil(units) {
        let i = round * units + unit;
        if i < window {
            kept[i] = (end - window + i) as u32;
        }
    }
    let mut sum = 0.0f32;
    if comptime!(top_k > window) {
        // Their numbers first, if their positions are not here: to wait for those would be to wait once for each.
        if comptime!(vectors > 0) {
            let best = take_best(&own, top, histogram, plan.best);
            let mut slot = window + best.first as usize;
            #[unroll]
            for v in 0..vectors {
                #[unroll]
                for e in 0..4usize {
                    if best.is_taken(comptime!(v * 4 + e)) {
                        kept[slot] = if comptime!(plan.knows_places()) {
                            own_places[comptime!(v * 4 + e)]
                        } else {
                            ((v * units + unit) * 4 + e) as u32
                        };
                        slot += 1;
                        if comptime!(plan.alpha == Alpha::Candidates) {
                            sum += ((own[comptime!(v * 4 + e)] - top) - log_sum).exp();
                        }
                    }
                }
            }
            if comptime!(!plan.knows_places()) {
                sync_cube();
            }
        } else {
            take_from_memory(
                scores,
                first,
                count,
                kept,
                window,
                comptime!(top_k - window),
                plan.attend.units,
                plane,
            );
        }
    }
    if comptime!(!plan.knows_places()) {
        for round in 0..top_k.div_ceil(units) {
            let i = round * units + window + unit;
            if i < top_k {
                let candidate = first + kept[i] as usize;
                if comptime!(plan.alpha == Alpha::Candidates && vectors == 0) {
                    sum += ((number_of(scores, candidate) - top) - log_sum).exp();
                }
                kept[i] = number_of(places, candidate);
            }
        }
    }
    if comptime!(plan.alpha == Alpha::Candidates) {
        // Step 5: alpha = the sum of s_hat over i2; of the local window, the tiles know it.
        for round in 0..used.div_ceil(units) {
            let tile = round * units + unit;
            if tile < used {
                let at = (row * tiles + tile) * TILE_STATS;
                sum += stats[at + 2] * ((stats[at] - top) - log_sum).exp();
            }
        }
        let mut scratch =
            Shared::<[f32]>::new_slice(comptime!((plan.attend.units / plan.attend.plane) as usize));
        let mass = cube_sum(sum, &mut scratch, plan.attend.units, plane);
        alphas[0] = clamp(mass, 0.0f32, 1.0f32);
    }
}

/// Step 5 for all heads of a group: alpha = the sum of s_hat over i2, from the sketch's keys at the kept positions.
#[cube]
#[allow(clippy::too_many_arguments)]
fn alpha_of_kept<Q: Float, K: Numeric>(
    q: &Tensor<Q>,
    sketch: &[K],
    step: &[f32],
    place: &Place,
    row: usize,
    capacity: usize,
    kept: &Shared<[u32]>,
    softmax: &Softmax,
    alphas: &mut Shared<[f32]>,
    #[comptime] plan: FinishPlan,
) {
    let group = comptime!(plan.attend.group);
    let units = comptime!(plan.attend.units as usize);
    let each = comptime!(32usize.checked_div(plan.bits).unwrap_or(1));
    let query = choose_components::<Q>(q, step, place.sequence, place.kv_head, row, plan.query);
    let mut scratch =
        Shared::<[f32]>::new_slice(comptime!((plan.attend.units / plan.attend.plane) as usize));
    for h in 0..group {
        let mut sum = 0.0f32;
        for round in 0..comptime!(plan.top_k).div_ceil(units) {
            let i = round * units + UNIT_POS as usize;
            if i < comptime!(plan.top_k) {
                let position = kept[i] as usize;
                let mut logit = 0.0f32;
                for c in 0..comptime!(plan.query.rank) {
                    let channel = row * comptime!(plan.query.head_dim) + query.selected[c] as usize;
                    let element = sketch[channel * (capacity / each) + position / each];
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
        alphas[h] = clamp(sum, 0.0f32, 1.0f32);
    }
}
