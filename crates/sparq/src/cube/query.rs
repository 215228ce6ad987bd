//! Steps 1 and 2: the components of the query that scores are made of, and their weights.
//!
//! Every cube of tiles chooses them for itself, which is less work than a launch.

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
        4 * ((self.group + 2) * self.head_dim + (self.group + 1 + self.heads()) * self.rank)
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

/// Steps 1 and 2 for one key/value head: leaves the chosen components in `selected` [r] and their weights q / tau (times the channel's step, for codes)
/// in `weights` [r, [`heads`](QueryPlan::heads)].
#[cube]
#[allow(clippy::too_many_arguments)]
pub(crate) fn choose_components<Q: Float>(
    q: &Tensor<Q>,
    step: &[f32],
    sequence: usize,
    kv_head: usize,
    row: usize,
    selected: &mut Shared<[u32]>,
    weights: &mut Shared<[f32]>,
    #[comptime] plan: QueryPlan,
) {
    let group = comptime!(plan.group);
    let d = comptime!(plan.head_dim);
    let rank = comptime!(plan.rank);
    let units = comptime!(plan.units as usize);
    let plane = comptime!(plan.plane);
    let unit = UNIT_POS as usize;

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
                    weight *= step[row * d + component];
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
}
