//! Steps 1 and 2: the components of the query that scores are made of, and their weights.
//!
//! Where a few cubes at a time score, each chooses them for itself, which is quicker than one launch more. Where there are many, or cubes wait for each other,
//! [`query_kernel`] chooses once for each key/value head.

use cubecl::prelude::*;

use super::common::*;

/// What the choice of components is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct QueryPlan {
    /// g.
    pub group: usize,
    /// d.
    pub head_dim: usize,
    /// r.
    pub rank: usize,
    /// Whether components are ranked by |sum q| and not by the sum of |q|.
    pub abs_sum: bool,
    /// Whether the group is scored as one query, the sum of its heads'.
    pub summed: bool,
    /// Whether weights are to be those of codes: times the channel's step.
    pub coded: bool,
    /// Whether [`query_kernel`] has chosen already.
    pub ready: bool,
    /// Units of a cube.
    pub units: u32,
    /// See [`common`](super::common).
    pub plane: u32,
}

impl QueryPlan {
    /// Queries that are scored.
    pub fn heads(&self) -> usize {
        if self.summed { 1 } else { self.group }
    }

    /// Bytes of shared memory, with those of the chosen components and their weights.
    pub fn shared_bytes(&self) -> usize {
        4 * ((self.group + 3) * self.head_dim + (self.group + 1 + self.heads()) * self.rank)
    }

    /// The same choice by [`query_kernel`], with so many units.
    pub fn in_advance(self, units: u32) -> Self {
        Self {
            ready: false,
            units,
            ..self
        }
    }
}

/// Units that share the ranking of a component: a power of two, no more than a plane, and so that all units of a plane have a component or none has.
fn sharing(plan: QueryPlan) -> usize {
    let most = (plan.units as usize / plan.head_dim).min(plan.plane as usize);
    let fits = |&sharing: &usize| {
        sharing <= most
            && (plan.head_dim / 4).is_multiple_of(sharing)
            && (plan.head_dim * sharing).is_multiple_of(plan.plane as usize)
    };
    [4, 2].into_iter().find(fits).unwrap_or(1)
}

/// What the scores of one key/value head are made of.
#[derive(CubeType)]
pub(crate) struct Query {
    /// The chosen components, [r].
    pub selected: Shared<[u32]>,
    /// Their weights q / tau, times the channel's step for codes: [r, [`heads`](QueryPlan::heads)].
    pub weights: Shared<[f32]>,
}

/// Steps 1 and 2 for all key/value heads, one cube for each: `components` [B, H_kv, r] and `weights` [B, H_kv, r, [`heads`](QueryPlan::heads)].
///
/// Also sets `arrivals` [1 + B H_kv] to 0, which cubes that wait for each other count in.
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn query_kernel<Q: Float>(
    q: &Tensor<Q>,
    step: &[f32],
    components: &mut [u32],
    weights: &mut [f32],
    arrivals: &mut [u32],
    batch: u32,
    kv_heads: u32,
    #[comptime] plan: QueryPlan,
    #[define(Q)] _type: ElemType,
) {
    let rank = comptime!(plan.rank);
    let units = comptime!(plan.units as usize);
    let row = CUBE_POS;
    if row >= (batch * kv_heads) as usize {
        terminate!();
    }
    let sequence = row / kv_heads as usize;
    let kv_head = row % kv_heads as usize;
    let query = choose_components::<Q>(q, step, sequence, kv_head, row, plan);
    for round in 0..rank.div_ceil(units) {
        let i = round * units + UNIT_POS as usize;
        if i < rank {
            components[row * rank + i] = query.selected[i];
        }
    }
    let all = comptime!(rank * plan.heads());
    for round in 0..all.div_ceil(units) {
        let i = round * units + UNIT_POS as usize;
        if i < all {
            weights[row * all + i] = query.weights[i];
        }
    }
    if UNIT_POS == 0 {
        arrivals[row + 1] = 0u32;
        if row == 0 {
            arrivals[0] = 0u32;
        }
    }
}

/// Steps 1 and 2 for one key/value head: from `components` and `weights` where [`query_kernel`] has left them.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(crate) fn query_of<Q: Float>(
    q: &Tensor<Q>,
    step: &[f32],
    components: &[u32],
    weights: &[f32],
    place: &Place,
    row: usize,
    #[comptime] plan: QueryPlan,
) -> Query {
    if comptime!(plan.ready) {
        read_query(components, weights, row, plan)
    } else {
        choose_components::<Q>(q, step, place.sequence, place.kv_head, row, plan)
    }
}

#[cube]
fn read_query(
    components: &[u32],
    weights: &[f32],
    row: usize,
    #[comptime] plan: QueryPlan,
) -> Query {
    let rank = comptime!(plan.rank);
    let all = comptime!(rank * plan.heads());
    let units = comptime!(plan.units as usize);
    let mut query = Query {
        selected: Shared::<[u32]>::new_slice(rank),
        weights: Shared::<[f32]>::new_slice(all),
    };
    for round in 0..all.div_ceil(units) {
        let i = round * units + UNIT_POS as usize;
        if i < all {
            query.weights[i] = weights[row * all + i];
        }
        if i < rank {
            query.selected[i] = components[row * rank + i];
        }
    }
    sync_cube();
    query
}

/// Steps 1 and 2 for one key/value head.
#[cube]
pub(crate) fn choose_components<Q: Float>(
    q: &Tensor<Q>,
    step: &[f32],
    sequence: usize,
    kv_head: usize,
    row: usize,
    #[comptime] plan: QueryPlan,
) -> Query {
    let group = comptime!(plan.group);
    let d = comptime!(plan.head_dim);
    let rank = comptime!(plan.rank);
    let units = comptime!(plan.units as usize);
    let plane = comptime!(plan.plane);
    let unit = UNIT_POS as usize;

    let mut selected = Shared::<[u32]>::new_slice(rank);
    let mut weights = Shared::<[f32]>::new_slice(comptime!(rank * plan.heads()));
    let mut query = Shared::<[f32]>::new_slice(comptime!(group * d));
    let mut magnitude = Shared::<[u32]>::new_slice(d);
    let mut fours = Shared::<[Vector<u32, Const<4>>]>::new_slice(comptime!(d / 4));
    let first = sequence * q.stride(0) + kv_head * group * q.stride(1);
    // All loads first: one after the other would wait for memory each time.
    let each = comptime!((group * d).div_ceil(units));
    let mut own = Array::<f32>::new(each);
    #[unroll]
    for x in 0..each {
        let i = min(x * units + unit, comptime!(group * d - 1).runtime());
        own[x] = f32::cast_from(q[first + (i / d) * q.stride(1) + (i % d) * q.stride(3)]);
    }
    let mut steps = Shared::<[f32]>::new_slice(comptime!(if plan.coded { d } else { 1 }));
    if comptime!(plan.coded) {
        let all = comptime!(d.div_ceil(units));
        let mut of_channels = Array::<f32>::new(all);
        #[unroll]
        for x in 0..all {
            of_channels[x] = step[row * d + min(x * units + unit, comptime!(d - 1).runtime())];
        }
        #[unroll]
        for x in 0..all {
            let c = x * units + unit;
            if c < d {
                steps[c] = of_channels[x];
            }
        }
    }
    #[unroll]
    for x in 0..each {
        let i = x * units + unit;
        if i < group * d {
            query[i] = own[x];
        }
    }
    sync_cube();

    // Bits of numbers that are not negative order like them.
    for round in 0..comptime!(d / 4).div_ceil(units) {
        let quarter = round * units + unit;
        if quarter < comptime!(d / 4) {
            let mut four = Vector::<u32, Const<4>>::new(0u32);
            #[unroll]
            for e in 0..4usize {
                let mut sum = 0.0f32;
                for h in 0..group {
                    let value = query[h * d + quarter * 4 + e];
                    sum += if comptime!(plan.abs_sum) {
                        value
                    } else {
                        value.abs()
                    };
                }
                let bits = u32::reinterpret(sum.abs());
                magnitude[quarter * 4 + e] = bits;
                four.insert(e, bits);
            }
            fours[quarter] = four;
        }
    }
    sync_cube();

    // The rank of a component is the number of those before it: of equal ones, those of a lower number. Where units are many, several share a component.
    let sharing = comptime!(sharing(plan));
    let quarters = comptime!(d / 4 / sharing);
    for round in 0..d.div_ceil(comptime!(units / sharing)) {
        let c = round * comptime!(units / sharing) + unit / sharing;
        if c < d {
            let mine = magnitude[c];
            let from = unit % sharing * quarters;
            let mut before = 0u32;
            #[unroll]
            for x in 0..quarters {
                let four = fours[from + x];
                let least = select(from + x < c / 4, mine, mine + 1u32);
                #[unroll]
                for e in 0..4usize {
                    before += select(four.extract(e) >= least, 1u32, 0u32);
                }
            }
            #[unroll]
            for i in 0..comptime!(sharing.ilog2()) {
                before += plane_shuffle_xor(before, 1u32 << i);
            }
            // Equal ones among its own four neighbours.
            let four = fours[c / 4];
            #[unroll]
            for e in 0..3usize {
                let equal = comptime!(e).runtime() < c % 4 && four.extract(e) == mine;
                before += select(equal, 1u32, 0u32);
            }
            if before < rank as u32 {
                selected[before as usize] = c as u32;
            }
        }
    }
    sync_cube();

    let mut of_heads = Shared::<[f32]>::new_slice(comptime!(match plan.heads() == group {
        true => 1,
        false => rank * group,
    }));
    // One plane for each head.
    let lane = plane_lane(plane) as usize;
    let lanes = plane_dim(plane) as usize;
    let planes = units / lanes;
    for round in 0..group.runtime().div_ceil(planes) {
        let h = round * planes + plane_index(plane) as usize;
        if h < group {
            let mut whole = 0.0f32;
            let mut c = lane;
            while c < d {
                whole += query[h * d + c].abs();
                c += lanes;
            }
            let mut chosen = 0.0f32;
            let mut i = lane;
            while i < rank {
                chosen += query[h * d + selected[i] as usize].abs();
                i += lanes;
            }
            let whole = sum_in_plane(whole, plane);
            let chosen = sum_in_plane(chosen, plane);
            let ratio = select(chosen == 0.0f32, 1.0f32, chosen / whole);
            let tau = (ratio * comptime!(d as f32)).sqrt();
            let mut i = lane;
            while i < rank {
                let component = selected[i] as usize;
                let mut weight = query[h * d + component] / tau;
                if comptime!(plan.coded) {
                    weight *= steps[component];
                }
                if comptime!(plan.heads() == group) {
                    weights[i * group + h] = weight;
                } else {
                    of_heads[i * group + h] = weight;
                }
                i += lanes;
            }
        }
    }
    sync_cube();
    if comptime!(plan.heads() != group) {
        for round in 0..rank.div_ceil(units) {
            let i = round * units + unit;
            if i < rank {
                let mut sum = 0.0f32;
                #[unroll]
                for h in 0..group {
                    sum += of_heads[i * group + h];
                }
                weights[i] = sum;
            }
        }
        sync_cube();
    }
    Query { selected, weights }
}
