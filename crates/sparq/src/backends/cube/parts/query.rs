//! Stage 1 up to the dot products: the selected components i1 of a query and their weights q / tau.
//!
//! With few cubes, each cube of a batch head selects the components for itself, which costs less
//! than another launch. With many cubes, or cubes that wait for each other,
//! [`choose_components_kernel`](super::super::kernels::choose_components::choose_components_kernel)
//! selects once for each batch head.

use cubecl::prelude::*;

use super::batch_head::BatchHead;
use super::reduce::{plane_dim, plane_index, plane_lane, sum_in_plane};

/// The sizes and settings that the selection of components is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct QueryBlueprint {
    /// g.
    pub group: usize,
    /// d.
    pub head_dim: usize,
    /// r.
    pub rank: usize,
    /// Components are ranked by |sum of q| over the group, and otherwise by the sum of |q|.
    pub abs_sum: bool,
    /// Components count times the channel's scale. Needs codes.
    pub contribution: bool,
    /// The group is scored as one query, the sum of its heads' queries.
    pub summed: bool,
    /// The sketch holds codes: weights are multiplied by the channel's scale.
    pub coded: bool,
    /// An earlier launch selected the components.
    pub chosen: bool,
    /// Units of a cube.
    pub units: u32,
    /// See [`reduce`](super::reduce).
    pub plane: u32,
}

impl QueryBlueprint {
    /// Returns the number of queries that are scored.
    pub fn heads(&self) -> usize {
        if self.summed { 1 } else { self.group }
    }

    /// Planes of a cube.
    pub fn planes(&self) -> usize {
        (self.units / self.plane) as usize
    }

    /// Bytes of shared memory, including the result.
    pub fn shared_bytes(&self) -> usize {
        4 * ((self.group + 3) * self.head_dim + (self.group + 1 + self.heads()) * self.rank)
    }

    /// Returns the blueprint of a launch that makes the same selection with `units` units.
    pub fn in_own_launch(self, units: u32) -> Self {
        Self {
            chosen: false,
            units,
            ..self
        }
    }

    /// Returns the number of units that rank one component together.
    ///
    /// It is a power of two and at most a plane, such that either all units of a plane have a
    /// component or none has.
    fn sharing(&self) -> usize {
        let most = (self.units as usize / self.head_dim).min(self.plane as usize);
        let fits = |&sharing: &usize| {
            sharing <= most
                && (self.head_dim / 4).is_multiple_of(sharing)
                && (self.head_dim * sharing).is_multiple_of(self.plane as usize)
        };
        [4, 2].into_iter().find(fits).unwrap_or(1)
    }
}

/// The selected components of a batch head, in shared memory.
#[derive(CubeType)]
pub(crate) struct Query {
    /// The selected components i1, [r].
    pub selected: Shared<[u32]>,
    /// Their weights q / tau, multiplied by the channel's scale for codes:
    /// [r, [`heads`](QueryBlueprint::heads)].
    pub weights: Shared<[f32]>,
}

/// The selected components of all batch heads, in global memory.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct ChosenComponents {
    /// [B, H_kv, r].
    pub components: Box<[u32]>,
    /// [B, H_kv, r, [`heads`](QueryBlueprint::heads)].
    pub weights: Box<[f32]>,
}

/// Loads this unit's share of the queries [g, d] of a KV head.
#[cube]
pub(crate) fn load_queries<Q: Float>(
    q: &Tensor<Q>,
    sequence: usize,
    kv_head: usize,
    #[comptime] group: usize,
    #[comptime] d: usize,
    #[comptime] units: usize,
) -> Array<f32> {
    let each = comptime!((group * d).div_ceil(units));
    let first = sequence * q.stride(0) + kv_head * group * q.stride(1);
    let mut own = Array::<f32>::new(each);
    #[unroll]
    for x in 0..each {
        let i = min(
            x * units + UNIT_POS as usize,
            comptime!(group * d - 1).runtime(),
        );
        own[x] = f32::cast_from(q[first + (i / d) * q.stride(1) + (i % d) * q.stride(3)]);
    }
    own
}

/// Returns the selected components of one batch head: reads `chosen` if an earlier launch filled
/// it, and selects them otherwise.
#[cube]
pub(crate) fn query_of<Q: Float>(
    q: &Tensor<Q>,
    scale: &[f32],
    chosen: &ChosenComponents,
    batch_head: &BatchHead,
    #[comptime] plan: QueryBlueprint,
) -> Query {
    if comptime!(plan.chosen) {
        read_chosen(chosen, batch_head.index, plan)
    } else {
        choose_components::<Q>(
            q,
            scale,
            batch_head.sequence,
            batch_head.kv_head,
            batch_head.index,
            plan,
        )
    }
}

#[cube]
fn read_chosen(
    chosen: &ChosenComponents,
    batch_head: usize,
    #[comptime] plan: QueryBlueprint,
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
            query.weights[i] = chosen.weights[batch_head * all + i];
        }
        if i < rank {
            query.selected[i] = chosen.components[batch_head * rank + i];
        }
    }
    sync_cube();
    query
}

/// Selects the r components of batch head number `batch_head`, which is KV head `kv_head` of
/// `sequence`, and computes their weights.
#[cube]
pub(crate) fn choose_components<Q: Float>(
    q: &Tensor<Q>,
    scale: &[f32],
    sequence: usize,
    kv_head: usize,
    batch_head: usize,
    #[comptime] plan: QueryBlueprint,
) -> Query {
    let group = comptime!(plan.group);
    let d = comptime!(plan.head_dim);
    let rank = comptime!(plan.rank);
    let units = comptime!(plan.units as usize);

    let mut selected = Shared::<[u32]>::new_slice(rank);
    let mut weights = Shared::<[f32]>::new_slice(comptime!(rank * plan.heads()));
    let mut query = Shared::<[f32]>::new_slice(comptime!(group * d));
    let mut magnitude = Shared::<[u32]>::new_slice(d);
    let mut fours = Shared::<[Vector<u32, Const<4>>]>::new_slice(comptime!(d / 4));
    // All loads come first. A load behind each use would wait for memory each time.
    let own = load_queries::<Q>(q, sequence, kv_head, group, d, units);
    let scales = load_scales(scale, batch_head, plan);
    #[unroll]
    for x in 0..comptime!((group * d).div_ceil(units)) {
        let i = x * units + UNIT_POS as usize;
        if i < group * d {
            query[i] = own[x];
        }
    }
    sync_cube();
    sum_magnitudes(&query, &scales, &mut magnitude, &mut fours, plan);
    sync_cube();
    rank_components(&magnitude, &fours, &mut selected, plan);
    sync_cube();

    let mut of_heads = Shared::<[f32]>::new_slice(comptime!(match plan.heads() == group {
        true => 1,
        false => rank * group,
    }));
    weigh_components(
        &query,
        &selected,
        &scales,
        &mut weights,
        &mut of_heads,
        plan,
    );
    sync_cube();
    if comptime!(plan.heads() != group) {
        for round in 0..rank.div_ceil(units) {
            let i = round * units + UNIT_POS as usize;
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

/// Loads the scale of each channel, [d]; one unused number for a sketch without codes.
#[cube]
fn load_scales(
    scale: &[f32],
    batch_head: usize,
    #[comptime] plan: QueryBlueprint,
) -> Shared<[f32]> {
    let d = comptime!(plan.head_dim);
    let units = comptime!(plan.units as usize);
    let unit = UNIT_POS as usize;
    let mut scales = Shared::<[f32]>::new_slice(comptime!(if plan.coded { d } else { 1 }));
    if comptime!(plan.coded) {
        let all = comptime!(d.div_ceil(units));
        let mut own = Array::<f32>::new(all);
        #[unroll]
        for x in 0..all {
            own[x] = scale[batch_head * d + min(x * units + unit, comptime!(d - 1).runtime())];
        }
        #[unroll]
        for x in 0..all {
            let c = x * units + unit;
            if c < d {
                scales[c] = own[x];
            }
        }
    }
    scales
}

/// Writes the magnitude of each component over the group, as bits: those of non-negative numbers
/// order like the numbers. `fours` holds the same bits in vectors.
#[cube]
fn sum_magnitudes(
    query: &Shared<[f32]>,
    scales: &Shared<[f32]>,
    magnitude: &mut Shared<[u32]>,
    fours: &mut Shared<[Vector<u32, Const<4>>]>,
    #[comptime] plan: QueryBlueprint,
) {
    let group = comptime!(plan.group);
    let d = comptime!(plan.head_dim);
    let units = comptime!(plan.units as usize);
    for round in 0..comptime!(d / 4).div_ceil(units) {
        let quarter = round * units + UNIT_POS as usize;
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
                if comptime!(plan.contribution) {
                    sum *= scales[quarter * 4 + e];
                }
                let bits = u32::reinterpret(sum.abs());
                magnitude[quarter * 4 + e] = bits;
                four.insert(e, bits);
            }
            fours[quarter] = four;
        }
    }
}

/// Writes the r components of largest magnitude to `selected`; of equal ones, the lower numbers.
///
/// The rank of a component is the number of components before it. With many units, several
/// [share](QueryBlueprint::sharing) a component.
#[cube]
fn rank_components(
    magnitude: &Shared<[u32]>,
    fours: &Shared<[Vector<u32, Const<4>>]>,
    selected: &mut Shared<[u32]>,
    #[comptime] plan: QueryBlueprint,
) {
    let d = comptime!(plan.head_dim);
    let units = comptime!(plan.units as usize);
    let unit = UNIT_POS as usize;
    let sharing = comptime!(plan.sharing());
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
            // Ties within the component's own vector of four.
            let four = fours[c / 4];
            #[unroll]
            for e in 0..3usize {
                let equal = comptime!(e).runtime() < c % 4 && four.extract(e) == mine;
                before += select(equal, 1u32, 0u32);
            }
            if before < comptime!(plan.rank as u32) {
                selected[before as usize] = c as u32;
            }
        }
    }
}

/// Returns the magnitude of component `c` of head `h`.
#[cube]
fn size_of(
    query: &Shared<[f32]>,
    scales: &Shared<[f32]>,
    h: usize,
    c: usize,
    #[comptime] plan: QueryBlueprint,
) -> f32 {
    let size = query[h * comptime!(plan.head_dim) + c].abs();
    if comptime!(plan.contribution) {
        size * scales[c]
    } else {
        size
    }
}

/// Computes tau and the weights of each head of the group, one plane for each head.
///
/// Writes to `weights` if each head is scored, and to `of_heads` [r, g] if their sum is.
#[cube]
fn weigh_components(
    query: &Shared<[f32]>,
    selected: &Shared<[u32]>,
    scales: &Shared<[f32]>,
    weights: &mut Shared<[f32]>,
    of_heads: &mut Shared<[f32]>,
    #[comptime] plan: QueryBlueprint,
) {
    let group = comptime!(plan.group);
    let d = comptime!(plan.head_dim);
    let rank = comptime!(plan.rank);
    let units = comptime!(plan.units as usize);
    let plane = comptime!(plan.plane);
    let lane = plane_lane(plane) as usize;
    let lanes = plane_dim(plane) as usize;
    let planes = units / lanes;
    for round in 0..group.runtime().div_ceil(planes) {
        let h = round * planes + plane_index(plane) as usize;
        if h < group {
            let mut norm = 0.0f32;
            let mut c = lane;
            while c < d {
                norm += size_of(query, scales, h, c, plan);
                c += lanes;
            }
            let mut of_selected = 0.0f32;
            let mut i = lane;
            while i < rank {
                of_selected += size_of(query, scales, h, selected[i] as usize, plan);
                i += lanes;
            }
            let norm = sum_in_plane(norm, plane);
            let of_selected = sum_in_plane(of_selected, plane);
            let ratio = select(of_selected == 0.0f32, 1.0f32, of_selected / norm);
            let tau = (ratio * comptime!(d as f32)).sqrt();
            let mut i = lane;
            while i < rank {
                let component = selected[i] as usize;
                let mut weight = query[h * d + component] / tau;
                if comptime!(plan.coded) {
                    weight *= scales[component];
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
}
