//! Exact attention over positions of one key/value head: the inner part of dense decode and of step 6.
//!
//! A few units share a key: each holds a part of the query, of the key and of the running output, so that a row is read in whole vectors. Every such
//! group goes through its own positions with a running maximum, sum and output (online softmax); the groups of a cube are merged at the end.

use cubecl::prelude::*;

use super::common::*;

/// What an attention kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AttendPlan {
    /// g.
    pub group: usize,
    /// d.
    pub head_dim: usize,
    /// Query heads that a pass over the positions serves.
    pub heads: usize,
    /// Units that share a key.
    pub lanes: usize,
    /// Vectors of a key that each of them holds.
    pub vectors: usize,
    /// Keys that each group of units loads before it uses the first.
    pub steps: usize,
    /// Units of a cube.
    pub units: u32,
    /// See [`common`](super::common).
    pub plane: u32,
}

impl AttendPlan {
    /// Bytes of shared memory of [`Attended`] and of the queries.
    pub fn shared_bytes(&self) -> usize {
        let numbers = (self.group + self.heads) * self.head_dim + 2 * self.heads;
        4 * (numbers + self.sets() * self.heads * (self.head_dim + 3))
    }

    /// Sets of units whose states are merged through shared memory: planes, or groups that share a key where those are larger.
    fn sets(&self) -> usize {
        let units = self.units as usize;
        units / self.lanes.max(self.plane as usize)
    }
}

/// The result of a cube for `heads` heads: outputs relative to the maxima, and not yet divided by the sums.
#[derive(CubeType)]
pub(crate) struct Attended {
    /// [heads, d].
    pub output: Shared<[f32]>,
    /// [heads].
    pub largest: Shared<[f32]>,
    /// [heads].
    pub sum: Shared<[f32]>,
    /// [sets, heads, d].
    merge: Shared<[f32]>,
    /// [heads, sets] twice: the maxima and the sums.
    states: Shared<[f32]>,
    /// [heads, sets]: e^(the maximum less that of all sets).
    factors: Shared<[f32]>,
}

#[cube]
impl Attended {
    pub fn new(#[comptime] plan: AttendPlan) -> Attended {
        let heads = comptime!(plan.heads);
        let sets = comptime!(plan.sets());
        Attended {
            output: Shared::<[f32]>::new_slice(comptime!(heads * plan.head_dim)),
            largest: Shared::<[f32]>::new_slice(heads),
            sum: Shared::<[f32]>::new_slice(heads),
            merge: Shared::<[f32]>::new_slice(comptime!(sets * heads * plan.head_dim)),
            states: Shared::<[f32]>::new_slice(comptime!(2 * sets * heads)),
            factors: Shared::<[f32]>::new_slice(comptime!(sets * heads)),
        }
    }
}

/// This unit's share of a key/value head's queries, [g, d] of them in all.
#[cube]
pub(crate) fn load_queries<Q: Float>(
    q: &Tensor<Q>,
    sequence: usize,
    kv_head: usize,
    #[comptime] plan: AttendPlan,
) -> Array<f32> {
    let d = comptime!(plan.head_dim);
    let units = comptime!(plan.units as usize);
    let each = comptime!((plan.group * plan.head_dim).div_ceil(units));
    let first = sequence * q.stride(0) + kv_head * comptime!(plan.group) * q.stride(1);
    let mut own = Array::<f32>::new(each);
    #[unroll]
    for x in 0..each {
        let i = min(
            x * units + UNIT_POS as usize,
            comptime!(plan.group * plan.head_dim - 1).runtime(),
        );
        own[x] = f32::cast_from(q[first + (i / d) * q.stride(1) + (i % d) * q.stride(3)]);
    }
    own
}

/// Leaves what [`load_queries`] found in `queries` [g, d], over sqrt(d). They can be read once the units have been in step.
#[cube]
pub(crate) fn keep_queries(
    queries: &mut Shared<[f32]>,
    own: &Array<f32>,
    #[comptime] plan: AttendPlan,
) {
    let all = comptime!(plan.group * plan.head_dim);
    let units = comptime!(plan.units as usize);
    let scale = comptime!(1.0 / (plan.head_dim as f32).sqrt());
    #[unroll]
    for x in 0..comptime!(all.div_ceil(units)) {
        let i = x * units + UNIT_POS as usize;
        if i < all {
            queries[i] = own[x] * scale;
        }
    }
}

/// Attends to `count` positions with the heads from `head` on: the positions `kept[0 .. count]` if `gathered`, otherwise `from ..`.
///
/// `queries` [g, d] as [`keep_queries`] leaves them; `keys` and `values` [B, H_kv, S_max, d] in vectors of N; `first` is the first position of the head's matrix in them. `count` must be at least 1.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(crate) fn attend<E: Float, N: Size>(
    queries: &Shared<[f32]>,
    keys: &[Vector<E, N>],
    values: &[Vector<E, N>],
    first: usize,
    head: usize,
    kept: &Shared<[u32]>,
    from: usize,
    count: usize,
    result: &mut Attended,
    #[comptime] gathered: bool,
    #[comptime] plan: AttendPlan,
) {
    let n = N::value();
    let d = comptime!(plan.head_dim);
    let row = comptime!(d / n);
    let heads = comptime!(plan.heads);
    let lanes = comptime!(plan.lanes);
    let vectors = comptime!(plan.vectors);
    let steps = comptime!(plan.steps);
    let units = comptime!(plan.units as usize);
    let groups = comptime!(units / lanes);
    let width = comptime!(vectors * n);
    // Whether the lanes hold more vectors than a row has.
    let padded = comptime!(lanes * vectors > row);
    let unit = UNIT_POS as usize;
    let lane = unit % lanes;
    let mine = unit / lanes;

    let mut query = Array::<f32>::new(comptime!(heads * width));
    #[unroll]
    for h in 0..heads {
        let whole = min(head + h, comptime!(plan.group - 1).runtime());
        #[unroll]
        for x in 0..vectors {
            #[unroll]
            for e in 0..n {
                let c = (x * lanes + lane) * n + e;
                // Known to be there without padding, which lets neighbours be read together.
                let known = comptime!(!padded).runtime() || c < d;
                let mut value = 0.0f32;
                if known {
                    value = queries[whole * d + c];
                }
                query[h * width + x * n + e] = value;
            }
        }
    }

    let mut largest = Array::<f32>::new(heads);
    let mut sum = Array::<f32>::new(heads);
    let mut output = Array::<f32>::new(comptime!(heads * width));
    #[unroll]
    for h in 0..heads {
        largest[h] = -LARGEST;
        sum[h] = 0.0f32;
    }
    #[unroll]
    for i in 0..comptime!(heads * width) {
        output[i] = 0.0f32;
    }

    let mut begin = 0usize;
    while begin < count {
        let mut loaded_keys = Array::<Vector<E, N>>::new(comptime!(steps * vectors));
        let mut loaded_values = Array::<Vector<E, N>>::new(comptime!(steps * vectors));
        #[unroll]
        for t in 0..steps {
            // Past the last position it is loaded again, with a weight of 0.
            let j = min(begin + t * groups + mine, count - 1);
            let position = if comptime!(gathered) {
                kept[j] as usize
            } else {
                from + j
            };
            let at = (first + position) * row;
            #[unroll]
            for x in 0..vectors {
                let mut part = x * lanes + lane;
                if comptime!(padded) {
                    part = min(part, comptime!(row - 1).runtime());
                }
                loaded_keys[t * vectors + x] = keys[at + part];
                loaded_values[t * vectors + x] = values[at + part];
            }
        }
        #[unroll]
        for h in 0..heads {
            let mut logits = Array::<f32>::new(steps);
            let mut top = largest[h];
            #[unroll]
            for t in 0..steps {
                let mut dot = 0.0f32;
                #[unroll]
                for x in 0..vectors {
                    #[unroll]
                    for e in 0..n {
                        dot += query[h * width + x * n + e]
                            * f32::cast_from(loaded_keys[t * vectors + x].extract(e));
                    }
                }
                let valid = begin + t * groups + mine < count;
                logits[t] = select(valid, group_sum(dot, lanes as u32), -LARGEST);
                top = max(top, logits[t]);
            }
            let keep = (largest[h] - top).exp();
            let mut total = sum[h] * keep;
            #[unroll]
            for i in 0..width {
                output[h * width + i] *= keep;
            }
            #[unroll]
            for t in 0..steps {
                let valid = begin + t * groups + mine < count;
                let weight = select(valid, (logits[t] - top).exp(), 0.0f32);
                total += weight;
                #[unroll]
                for x in 0..vectors {
                    #[unroll]
                    for e in 0..n {
                        output[h * width + x * n + e] +=
                            weight * f32::cast_from(loaded_values[t * vectors + x].extract(e));
                    }
                }
            }
            largest[h] = top;
            sum[h] = total;
        }
        begin += comptime!(steps * groups);
    }

    // The states of all groups into one: first those of a plane, by shuffles, then those of all planes.
    let in_plane = comptime!((plan.plane as usize / lanes).max(1));
    #[unroll]
    for h in 0..heads {
        #[unroll]
        for i in 0..comptime!(in_plane.ilog2()) {
            let distance = comptime!((lanes << i) as u32);
            let other = plane_shuffle_xor(largest[h], distance);
            let top = max(largest[h], other);
            let keep = (largest[h] - top).exp();
            sum[h] *= keep;
            sum[h] += plane_shuffle_xor(sum[h], distance);
            #[unroll]
            for x in 0..width {
                let value = output[h * width + x] * keep;
                output[h * width + x] = value + plane_shuffle_xor(value, distance);
            }
            largest[h] = top;
        }
    }
    if comptime!(heads < plan.group) {
        // Units may still read the last pass's result.
        sync_cube();
    }
    let set = comptime!(units / (lanes * in_plane));
    let mine = unit / comptime!(lanes * in_plane);
    if unit % comptime!(lanes * in_plane) < lanes {
        #[unroll]
        for h in 0..heads {
            if lane == 0 {
                result.states[h * set + mine] = largest[h];
                result.states[comptime!(set * heads) + h * set + mine] = sum[h];
            }
            #[unroll]
            for x in 0..vectors {
                #[unroll]
                for e in 0..n {
                    let c = (x * lanes + lane) * n + e;
                    if c < d {
                        result.merge[(mine * heads + h) * d + c] = output[h * width + x * n + e];
                    }
                }
            }
        }
    }
    sync_cube();
    // Relative to the largest of all, once for each set and head.
    for round in 0..comptime!(heads * set).div_ceil(units) {
        let i = round * units + unit;
        if i < comptime!(heads * set) {
            let h = i / set;
            let mut top = (-LARGEST).runtime();
            #[unroll]
            for other in 0..set {
                top = max(top, result.states[h * set + other]);
            }
            result.factors[i] = (result.states[i] - top).exp();
            if i % set == 0 {
                result.largest[h] = top;
            }
        }
    }
    sync_cube();
    for round in 0..comptime!(heads * d).div_ceil(units) {
        let i = round * units + unit;
        if i < comptime!(heads * d) {
            let h = i / d;
            let mut total = 0.0f32;
            let mut value = 0.0f32;
            #[unroll]
            for other in 0..set {
                let factor = result.factors[h * set + other];
                total += result.states[comptime!(set * heads) + h * set + other] * factor;
                value += result.merge[other * comptime!(heads * d) + i] * factor;
            }
            result.output[i] = value;
            if i % d == 0 {
                result.sum[h] = total;
            }
        }
    }
    sync_cube();
}
