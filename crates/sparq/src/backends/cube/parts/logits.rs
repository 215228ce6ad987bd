//! Stage 1 on a tile of positions: approximate logits, in the registers of the units.
//!
//! A unit owns *runs* of consecutive positions and reads the sketch in whole vectors. Each vector
//! is read once for as many query heads as fit in registers.

use cubecl::prelude::*;

use super::cp_async::{GROUP, SketchPipeline, commit_group, wait_groups};
use super::mma;
use super::query::{Query, QueryBlueprint};
use super::score::finite;

/// How a tile reads the sketch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SketchBlueprint {
    /// How components are selected.
    pub query: QueryBlueprint,
    /// Bits of a code; 0 for a full copy of K.
    pub bits: usize,
    /// Elements of a vector of the sketch: keys, or words of codes.
    pub vector: usize,
    /// Vectors that a unit reads of each component.
    pub vectors: usize,
    /// Heads whose logits a unit holds at a time.
    pub heads: usize,
    /// Components whose keys are loaded before the first is used.
    pub unroll: usize,
    /// Matrix units multiply; see [`mma`].
    pub mma: bool,
    /// Groups of vectors that a unit requests ahead of their use; 0 if it loads them into
    /// registers. See [`cp_async`](super::cp_async).
    pub groups_ahead: usize,
}

impl SketchBlueprint {
    /// Positions of an element of the sketch: a key, or a word of codes.
    pub fn per_element(&self) -> usize {
        32usize.checked_div(self.bits).unwrap_or(1)
    }

    /// Positions of a vector of the sketch.
    pub fn per_vector(&self) -> usize {
        self.vector * self.per_element()
    }

    /// Consecutive positions of a run.
    pub fn run(&self) -> usize {
        if self.mma {
            mma::RUN
        } else {
            self.per_vector()
        }
    }

    /// Runs of a unit.
    pub fn runs(&self) -> usize {
        if self.mma {
            self.vectors * self.vector
        } else {
            self.vectors
        }
    }

    /// Positions of a unit.
    pub fn count(&self) -> usize {
        self.runs() * self.run()
    }

    /// Positions of a cube.
    pub fn tile_len(&self) -> usize {
        self.query.units as usize * self.count()
    }

    /// Bytes of shared memory for the requested vectors.
    pub fn pipeline_bytes(&self) -> usize {
        let bytes = match self.bits {
            // A vector of a copy of K has 16 bytes in every type.
            0 => 16,
            _ => 4 * self.vector,
        };
        self.groups_ahead * GROUP * self.query.units as usize * bytes
    }
}

/// The key sketch in global memory.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct KeySketch<T: CubePrimitive> {
    /// A copy of K, [B, H_kv, d, S_max], or words of codes, [B, H_kv, d, S_max / (32 / bits)].
    pub elements: Box<[T]>,
    /// The scale of each channel's codes, [B, H_kv, d]; not read without codes.
    pub scale: Box<[f32]>,
}

/// A tile of the sketch.
#[derive(CubeType)]
pub(crate) struct SketchTile<'a, K: Numeric, N: Size> {
    /// The whole sketch.
    pub elements: &'a [Vector<K, N>],
    /// The first vector of the batch head's first component.
    pub base: usize,
    /// Vectors of a component.
    pub stride: usize,
    /// The first vector of the tile.
    pub first: usize,
    /// The last vector that holds a position of the sequence. Reads past it return this vector, and
    /// their scores are not used.
    pub last: usize,
}

/// Returns the tile from `tile_start` on, of a sequence that ends at `end`. A component has
/// `capacity` positions.
#[cube]
pub(crate) fn sketch_tile<'a, K: Numeric, N: Size>(
    elements: &'a [Vector<K, N>],
    batch_head: usize,
    capacity: usize,
    tile_start: usize,
    end: usize,
    #[comptime] plan: SketchBlueprint,
) -> SketchTile<'a, K, N> {
    let each = comptime!(plan.per_vector());
    let stride = capacity / each;
    SketchTile::<'a, K, N> {
        elements,
        base: batch_head * comptime!(plan.query.head_dim) * stride,
        stride,
        first: tile_start / each,
        last: (end - 1) / each,
    }
}

/// Returns the first position of each of this unit's runs, relative to the start of the tile.
#[cube]
pub(crate) fn run_starts(#[comptime] plan: SketchBlueprint) -> Array<u32> {
    let mut starts = Array::<u32>::new(comptime!(plan.runs()));
    if comptime!(plan.mma) {
        mma::run_starts(&mut starts, plan);
    } else {
        #[unroll]
        for v in 0..comptime!(plan.vectors) {
            let vector = comptime!((v * plan.query.units as usize) as u32) + UNIT_POS;
            starts[v] = vector * comptime!(plan.per_vector() as u32);
        }
    }
    starts
}

/// Returns the logits of this unit's positions for the heads from `head` on, [heads, count],
/// without matrix units.
#[cube]
pub(crate) fn unit_logits<K: Numeric, N: Size>(
    tile: &SketchTile<'_, K, N>,
    query: &Query,
    head: usize,
    #[comptime] plan: SketchBlueprint,
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
        at[v] = tile.base + min(tile.first + v * units + UNIT_POS as usize, tile.last);
    }
    if comptime!(plan.groups_ahead > 0) {
        add_pipelined::<K, N>(&mut sums, tile, &at, query, head, plan);
    } else {
        for block in 0..comptime!(rank / unroll) {
            let mut loaded = Array::<Vector<K, N>>::new(comptime!(unroll * vectors));
            #[unroll]
            for u in 0..unroll {
                let component = query.selected[block * unroll + u] as usize * tile.stride;
                #[unroll]
                for v in 0..vectors {
                    loaded[u * vectors + v] = tile.elements[at[v] + component];
                }
            }
            #[unroll]
            for u in 0..unroll {
                #[unroll]
                for v in 0..vectors {
                    let keys = loaded[u * vectors + v];
                    add_keys::<K, N>(&mut sums, keys, query, block * unroll + u, head, v, plan);
                }
            }
        }
    }
    #[unroll]
    for u in 0..comptime!(rank % unroll) {
        let i = comptime!(rank - rank % unroll) + u;
        let component = query.selected[i] as usize * tile.stride;
        #[unroll]
        for v in 0..vectors {
            let keys = tile.elements[at[v] + component];
            add_keys::<K, N>(&mut sums, keys, query, i, head, v, plan);
        }
    }
    #[unroll]
    for i in 0..comptime!(heads * count) {
        sums[i] = finite(sums[i]);
    }
    sums
}

/// Adds the components that fill whole groups to the sums, through a [`SketchPipeline`].
#[cube]
fn add_pipelined<K: Numeric, N: Size>(
    sums: &mut Array<f32>,
    tile: &SketchTile<'_, K, N>,
    at: &Array<usize>,
    query: &Query,
    head: usize,
    #[comptime] plan: SketchBlueprint,
) {
    let vectors = comptime!(plan.vectors);
    let unroll = comptime!(plan.unroll);
    let groups = comptime!(plan.query.rank / plan.unroll);
    let mut pipeline = SketchPipeline::<K, N>::new(plan);
    #[unroll]
    for group in 0..comptime!(plan.groups_ahead) {
        request_group::<K, N>(&mut pipeline, tile, at, query, group, plan);
    }
    for group in 0..groups {
        wait_groups(comptime!(plan.groups_ahead - 1));
        #[unroll]
        for u in 0..unroll {
            #[unroll]
            for v in 0..vectors {
                let keys = pipeline.get(group, comptime!(u * vectors + v), plan);
                add_keys::<K, N>(sums, keys, query, group * unroll + u, head, v, plan);
            }
        }
        let next = group + comptime!(plan.groups_ahead);
        request_group::<K, N>(&mut pipeline, tile, at, query, next, plan);
    }
}

/// Requests the components of a group; past the last group it commits an empty one.
#[cube]
fn request_group<K: Numeric, N: Size>(
    pipeline: &mut SketchPipeline<K, N>,
    tile: &SketchTile<'_, K, N>,
    at: &Array<usize>,
    query: &Query,
    group: usize,
    #[comptime] plan: SketchBlueprint,
) {
    let vectors = comptime!(plan.vectors);
    let unroll = comptime!(plan.unroll);
    if group < comptime!(plan.query.rank / plan.unroll) {
        #[unroll]
        for u in 0..unroll {
            let component = query.selected[group * unroll + u] as usize * tile.stride;
            #[unroll]
            for v in 0..vectors {
                let number = comptime!(u * vectors + v);
                pipeline.request(tile.elements, at[v] + component, group, number, plan);
            }
        }
    }
    commit_group();
}

/// Adds component `i` of the keys in vector `v` of a unit to their sums.
#[cube]
fn add_keys<K: Numeric, N: Size>(
    sums: &mut Array<f32>,
    keys: Vector<K, N>,
    query: &Query,
    i: usize,
    head: usize,
    #[comptime] v: usize,
    #[comptime] plan: SketchBlueprint,
) {
    let per_element = comptime!(plan.per_element());
    let mut own = Array::<f32>::new(comptime!(plan.heads));
    #[unroll]
    for h in 0..comptime!(plan.heads) {
        own[h] = weight_of(&query.weights, i, head, h, plan);
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

/// Returns the weight of component `i` for head `head` + `h`. Past the last head it returns the
/// last head's weight, which is not used.
#[cube]
fn weight_of(
    weights: &Shared<[f32]>,
    i: usize,
    head: usize,
    #[comptime] h: usize,
    #[comptime] plan: SketchBlueprint,
) -> f32 {
    let all = comptime!(plan.query.heads());
    let head = if comptime!(all.is_multiple_of(plan.heads)) {
        head + h
    } else {
        min(head + h, comptime!(all - 1).runtime())
    };
    weights[i * all + head]
}

/// Returns code `p` of a word.
#[cube]
fn code_of(word: u32, #[comptime] p: usize, #[comptime] bits: usize) -> f32 {
    // A small integer in the lowest mantissa bits of 2^23 is that integer plus 2^23. This is exact
    // and cheaper than a conversion.
    let code = (word >> comptime!((p * bits) as u32)) & comptime!((1u32 << bits) - 1);
    f32::reinterpret(code | 0x4B00_0000u32) - 8388608.0f32
}
