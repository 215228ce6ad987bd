//! Step 3 on a tile of positions: approximate logits, in the registers of the units.
//!
//! A unit owns *runs* of consecutive positions, and reads the sketch in whole vectors: K is read once for as many query heads as fit in registers.

use cubecl::prelude::*;

use super::common::*;
use super::matrix;
use super::query::QueryPlan;
use super::stage::{GROUP, Stage, end_group, wait};

/// How a tile reads the sketch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SketchPlan {
    /// How components are chosen.
    pub query: QueryPlan,
    /// Bits of a code; 0 for a full copy of K.
    pub bits: usize,
    /// Elements of a vector of the sketch: keys, or words of codes.
    pub vector: usize,
    /// Vectors that a unit reads of each component.
    pub vectors: usize,
    /// Heads whose logits are held in registers at a time.
    pub heads: usize,
    /// Components whose keys are loaded before the first is used.
    pub unroll: usize,
    /// Whether matrix units multiply; see [`matrix`].
    pub matrix: bool,
    /// Groups of vectors that a unit asks for ahead of their use; 0 where it loads them itself. See [`stage`](super::stage).
    pub ahead: usize,
}

impl SketchPlan {
    /// Positions in an element of the sketch: a key, or a word of codes.
    pub fn per_element(&self) -> usize {
        32usize.checked_div(self.bits).unwrap_or(1)
    }

    /// Positions in a vector of the sketch.
    pub fn per_vector(&self) -> usize {
        self.vector * self.per_element()
    }

    /// Consecutive positions in a run.
    pub fn run(&self) -> usize {
        if self.matrix {
            matrix::RUN
        } else {
            self.per_vector()
        }
    }

    /// Runs of a unit.
    pub fn runs(&self) -> usize {
        if self.matrix {
            self.vectors * self.vector
        } else {
            self.vectors
        }
    }

    /// Positions of a unit.
    pub fn count(&self) -> usize {
        self.runs() * self.run()
    }

    /// Bytes of shared memory for vectors that are on their way.
    pub fn stage_bytes(&self) -> usize {
        let bytes = match self.bits {
            // Vectors of a copy of K have 16 bytes in every type.
            0 => 16,
            _ => 4 * self.vector,
        };
        self.ahead * GROUP * self.query.units as usize * bytes
    }

    /// Positions of a cube.
    pub fn tile_len(&self) -> usize {
        self.query.units as usize * self.count()
    }
}

/// The first position of each of this unit's runs, relative to the tile's first.
#[cube]
pub(crate) fn runs_of(#[comptime] plan: SketchPlan) -> Array<u32> {
    let mut runs = Array::<u32>::new(comptime!(plan.runs()));
    if comptime!(plan.matrix) {
        matrix::runs_of(&mut runs, plan);
    } else {
        #[unroll]
        for v in 0..comptime!(plan.vectors) {
            let vector = comptime!((v * plan.query.units as usize) as u32) + UNIT_POS;
            runs[v] = vector * comptime!(plan.per_vector() as u32);
        }
    }
    runs
}

/// Where a tile is in the sketch.
#[derive(CubeType)]
pub(crate) struct TilePlace {
    /// The first vector of the row's first component.
    pub base: usize,
    /// Vectors of a component.
    pub stride: usize,
    /// The first vector of the tile.
    pub first: usize,
    /// The last vector that holds a position of the sequence. What would lie behind is read from here once more: its scores are not used.
    pub last: usize,
}

/// The place of the tile from `tile_start` on, of a sequence that ends at `end`, where a component has `capacity` positions.
#[cube]
pub(crate) fn tile_place(
    row: usize,
    capacity: usize,
    tile_start: usize,
    end: usize,
    #[comptime] plan: SketchPlan,
) -> TilePlace {
    let each = comptime!(plan.per_vector());
    let stride = capacity / each;
    TilePlace {
        base: row * comptime!(plan.query.head_dim) * stride,
        stride,
        first: tile_start / each,
        last: (end - 1) / each,
    }
}

/// The logits of all positions of this unit for the heads from `head` on, [heads, count], by each unit for itself.
///
/// `weights` [r, heads] are those of [`choose_components`](super::query::choose_components).
#[cube]
pub(crate) fn unit_logits<K: Numeric, N: Size>(
    sketch: &[Vector<K, N>],
    place: &TilePlace,
    selected: &Shared<[u32]>,
    weights: &Shared<[f32]>,
    head: usize,
    #[comptime] plan: SketchPlan,
) -> Array<f32> {
    let vectors = comptime!(plan.vectors);
    let count = comptime!(plan.count());
    let rank = comptime!(plan.query.rank);
    let heads = comptime!(plan.heads);
    let unroll = comptime!(plan.unroll);
    let units = comptime!(plan.query.units as usize);

    let mut sums = Array::<f32>::new(comptime!(heads * count));
    #[unroll]
    for i in 0..comptime!(heads * count) {
        sums[i] = 0.0f32;
    }
    let mut at = Array::<usize>::new(vectors);
    #[unroll]
    for v in 0..vectors {
        at[v] = place.base + min(place.first + v * units + UNIT_POS as usize, place.last);
    }
    if comptime!(plan.ahead > 0) {
        add_staged::<K, N>(&mut sums, sketch, &at, place, selected, weights, head, plan);
    } else {
        for block in 0..comptime!(rank / unroll) {
            let mut loaded = Array::<Vector<K, N>>::new(comptime!(unroll * vectors));
            #[unroll]
            for u in 0..unroll {
                let component = selected[block * unroll + u] as usize * place.stride;
                #[unroll]
                for v in 0..vectors {
                    loaded[u * vectors + v] = sketch[at[v] + component];
                }
            }
            #[unroll]
            for u in 0..unroll {
                #[unroll]
                for v in 0..vectors {
                    add_keys::<K, N>(
                        &mut sums,
                        loaded[u * vectors + v],
                        weights,
                        block * unroll + u,
                        head,
                        v,
                        plan,
                    );
                }
            }
        }
    }
    #[unroll]
    for u in 0..comptime!(rank % unroll) {
        let i = comptime!(rank - rank % unroll) + u;
        let component = selected[i] as usize * place.stride;
        #[unroll]
        for v in 0..vectors {
            let keys = sketch[at[v] + component];
            add_keys::<K, N>(&mut sums, keys, weights, i, head, v, plan);
        }
    }
    #[unroll]
    for i in 0..comptime!(heads * count) {
        sums[i] = finite(sums[i]);
    }
    sums
}

/// Adds as many components to the sums as make whole groups, by way of a [`Stage`].
#[cube]
#[allow(clippy::too_many_arguments)]
fn add_staged<K: Numeric, N: Size>(
    sums: &mut Array<f32>,
    sketch: &[Vector<K, N>],
    at: &Array<usize>,
    place: &TilePlace,
    selected: &Shared<[u32]>,
    weights: &Shared<[f32]>,
    head: usize,
    #[comptime] plan: SketchPlan,
) {
    let vectors = comptime!(plan.vectors);
    let unroll = comptime!(plan.unroll);
    let groups = comptime!(plan.query.rank / plan.unroll);
    let mut stage = Stage::<K, N>::new(plan);
    #[unroll]
    for group in 0..comptime!(plan.ahead) {
        ask_group::<K, N>(&mut stage, sketch, at, place, selected, group, plan);
    }
    for group in 0..groups {
        wait(comptime!(plan.ahead - 1));
        #[unroll]
        for u in 0..unroll {
            #[unroll]
            for v in 0..vectors {
                let keys = stage.get(group, comptime!(u * vectors + v), plan);
                add_keys::<K, N>(sums, keys, weights, group * unroll + u, head, v, plan);
            }
        }
        let next = group + comptime!(plan.ahead);
        ask_group::<K, N>(&mut stage, sketch, at, place, selected, next, plan);
    }
}

/// Asks for the components of a group, if there is one of this number.
#[cube]
fn ask_group<K: Numeric, N: Size>(
    stage: &mut Stage<K, N>,
    sketch: &[Vector<K, N>],
    at: &Array<usize>,
    place: &TilePlace,
    selected: &Shared<[u32]>,
    group: usize,
    #[comptime] plan: SketchPlan,
) {
    let vectors = comptime!(plan.vectors);
    let unroll = comptime!(plan.unroll);
    if group < comptime!(plan.query.rank / plan.unroll) {
        #[unroll]
        for u in 0..unroll {
            let component = selected[group * unroll + u] as usize * place.stride;
            #[unroll]
            for v in 0..vectors {
                let number = comptime!(u * vectors + v);
                stage.ask(sketch, at[v] + component, group, number, plan);
            }
        }
    }
    end_group();
}

/// Adds one component of the keys in vector `v` of a unit to their sums.
#[cube]
#[allow(clippy::too_many_arguments)]
fn add_keys<K: Numeric, N: Size>(
    sums: &mut Array<f32>,
    keys: Vector<K, N>,
    weights: &Shared<[f32]>,
    i: usize,
    head: usize,
    #[comptime] v: usize,
    #[comptime] plan: SketchPlan,
) {
    let per_element = comptime!(plan.per_element());
    let mut own = Array::<f32>::new(comptime!(plan.heads));
    #[unroll]
    for h in 0..comptime!(plan.heads) {
        own[h] = weight_of(weights, i, head, h, plan);
    }
    #[unroll]
    for x in 0..comptime!(plan.vector) {
        let element = keys.extract(x);
        #[unroll]
        for p in 0..per_element {
            let key = if comptime!(plan.bits == 0) {
                f32::cast_from(element)
            } else {
                code_of(u32::cast_from(element), p, plan.bits)
            };
            #[unroll]
            for h in 0..comptime!(plan.heads) {
                let at = comptime!(h * plan.count() + (v * plan.vector + x) * per_element + p);
                sums[at] += own[h] * key;
            }
        }
    }
}

/// The weight of component `i` for head `head` + `h`, as the keys are read. Heads past the last repeat it and are not used.
#[cube]
fn weight_of(
    weights: &Shared<[f32]>,
    i: usize,
    head: usize,
    #[comptime] h: usize,
    #[comptime] plan: SketchPlan,
) -> f32 {
    let all = comptime!(plan.query.heads());
    let head = if comptime!(all.is_multiple_of(plan.heads)) {
        head + h
    } else {
        min(head + h, comptime!(all - 1).runtime())
    };
    weights[i * all + head]
}

/// The code at place `p` of a word.
#[cube]
fn code_of(word: u32, #[comptime] p: usize, #[comptime] bits: usize) -> f32 {
    // A small whole number in the lowest bits of 2^23's mantissa is that number added to 2^23: cheaper than a conversion, and as exact.
    let code = (word >> comptime!((p * bits) as u32)) & comptime!((1u32 << bits) - 1);
    f32::reinterpret(code | 0x4B00_0000u32) - 8388608.0f32
}
