//! The work on one token of every sequence before attention: RoPE on its query and key, and the
//! append of its key and value.

use cubecl::prelude::*;

use crate::backends::cube::parts::batch_head::BatchShape;
use crate::backends::cube::parts::codes::{ChannelRanges, code_of};
use crate::backends::cube::parts::reduce::{plane_dim, plane_index, plane_lane};
use crate::backends::cube::parts::rotary::{Angles, rotate};
use crate::backends::cube::parts::row_codes::{
    PER_WORD, RowExtent, RowScales, bits_of, row_code, word_of,
};

/// The settings that an append is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AppendBlueprint {
    /// d.
    pub head_dim: usize,
    /// g; 0 for an append without queries.
    pub group: usize,
    /// Pairs of components that RoPE rotates; 0 without RoPE.
    pub pairs: usize,
    /// The sketch is a full copy of K.
    pub full: bool,
    /// Bits of the sketch's codes; 0 if no codes are written.
    pub bits: usize,
    /// Keys and values are stored as codes of 8 bits.
    pub coded: bool,
    /// See [`reduce`](crate::backends::cube::parts::reduce).
    pub plane: u32,
}

/// The buffers of a cache in type E, or in words of codes.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct CacheRows<E: Numeric> {
    /// K, [B, H_kv, S_max, d].
    pub keys: Box<[E]>,
    /// V, [B, H_kv, S_max, d].
    pub values: Box<[E]>,
    /// The sum of V, [B, H_kv, d].
    pub v_sum: Box<[f32]>,
}

/// The elements of a key sketch: one of the two is in use.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct SketchColumns<F: Float> {
    /// A full copy of K, [B, H_kv, d, S_max].
    pub full: Box<[F]>,
    /// Words of codes, [B, H_kv, d, S_max / (32 / bits)].
    pub codes: Box<[u32]>,
}

/// Rotates the query and the key of one token to the position behind the end of each sequence,
/// appends the key and the value there, and moves the end. One cube for each batch head.
///
/// q [B, H, 1, d], k and v [B, H_kv, 1, d]. `table` has a row of `pairs` cosines and `pairs` sines
/// for every position. The queries go to `rotated` [B, H, 1, d]. The append also writes the key's
/// column of the sketch and adds the value to the sum of V. A sequence at its capacity stays as it
/// is.
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn append_rope_kernel<X: Float, E: Numeric, F: Float>(
    q: &Tensor<X>,
    k: &Tensor<X>,
    v: &Tensor<X>,
    table: &Tensor<f32>,
    rotated: &mut [X],
    cache: &mut CacheRows<E>,
    scales: &mut RowScales,
    sketch: &mut SketchColumns<F>,
    ranges: &ChannelRanges,
    spans: &mut [Atomic<u32>],
    shape: &BatchShape,
    capacity: u32,
    #[comptime] plan: AppendBlueprint,
    #[define(X, E, F)] _types: [ElemType; 3],
) {
    let d = comptime!(plan.head_dim);
    let group = comptime!(plan.group);
    let batch_head = CUBE_POS;
    if batch_head >= shape.count() {
        terminate!();
    }
    let sequence = batch_head / shape.kv_heads as usize;
    let kv_head = batch_head % shape.kv_heads as usize;
    let capacity = capacity as usize;
    let mut span = Shared::<[u32]>::new_slice(2usize);
    if UNIT_POS == 0 {
        span[0] = spans[sequence].load();
        span[1] = spans[shape.batch as usize + sequence].load();
    }
    sync_cube();
    let start = span[0] as usize;
    let position = span[1] as usize;
    let room = position < capacity;
    let angles = Angles::new(table, start, position, room, plan.pairs);
    // The key and the value, before they are codes.
    let mut staged = Shared::<[f32]>::new_slice(comptime!(if plan.coded { 2 * d } else { 1 }));
    // Queries and key in one loop: with a unit for each component, all loads are in flight at once.
    let queries = comptime!(group * d).runtime();
    let q_head = sequence * q.stride(0) + kv_head * group * q.stride(1);
    let k_head = sequence * k.stride(0) + kv_head * k.stride(1);
    let v_head = sequence * v.stride(0) + kv_head * v.stride(1);
    for round in 0..comptime!((group + 1) * d)
        .runtime()
        .div_ceil(CUBE_DIM as usize)
    {
        let i = round * CUBE_DIM as usize + UNIT_POS as usize;
        if i < queries {
            let head = q_head + (i / d) * q.stride(1);
            let value = rotate::<X>(q, head, q.stride(3), i % d, &angles);
            rotated[batch_head * queries + i] = X::cast_from(value);
        } else if i < comptime!((group + 1) * d).runtime() && room {
            let c = i - queries;
            // The rotation rounds to the queries' type first, as for queries.
            let key = X::cast_from(rotate::<X>(k, k_head, k.stride(3), c, &angles));
            let value = v[v_head + c * v.stride(3)];
            if comptime!(plan.coded) {
                staged[c] = f32::cast_from(key);
                staged[d + c] = f32::cast_from(value);
            } else {
                let key = E::cast_from(key);
                let value = E::cast_from(value);
                let row = batch_head * capacity + position;
                cache.keys[row * d + c] = key;
                cache.values[row * d + c] = value;
                let token = AppendedToken {
                    batch_head,
                    position,
                    counts: position >= start,
                    capacity,
                };
                let key = f32::cast_from(key);
                let value = f32::cast_from(value);
                token.add_component::<E, F>(key, value, c, cache, sketch, ranges, plan);
            }
        }
    }
    if comptime!(plan.coded) {
        if room {
            let token = AppendedToken {
                batch_head,
                position,
                counts: position >= start,
                capacity,
            };
            token.store_codes::<E, F>(&mut staged, cache, scales, sketch, ranges, plan);
        }
    }
    // The last cube of a sequence moves its end. Each cube counts itself after it has read the
    // span.
    sync_cube();
    if UNIT_POS == 0 {
        let counter = comptime!(2usize).runtime() * shape.batch as usize + sequence;
        let done = spans[counter].fetch_add(1u32);
        if done == shape.kv_heads - 1 {
            spans[counter].store(0u32);
            spans[shape.batch as usize + sequence].store(select(room, span[1] + 1, span[1]));
        }
    }
}

/// The place of a token of a batch head.
#[derive(CubeType)]
struct AppendedToken {
    batch_head: usize,
    position: usize,
    /// The position is not left padding, so that its value counts in the sum of V.
    counts: bool,
    /// S_max.
    capacity: usize,
}

#[cube]
impl AppendedToken {
    /// Adds component `c` of the key and value, as the cache holds them, to the sketch and the sum.
    #[allow(clippy::too_many_arguments)]
    fn add_component<E: Numeric, F: Float>(
        &self,
        key: f32,
        value: f32,
        c: usize,
        cache: &mut CacheRows<E>,
        sketch: &mut SketchColumns<F>,
        ranges: &ChannelRanges,
        #[comptime] plan: AppendBlueprint,
    ) {
        let channel = self.batch_head * plan.head_dim + c;
        if self.counts {
            cache.v_sum[channel] += value;
        }
        if comptime!(plan.full) {
            sketch.full[channel * self.capacity + self.position] = F::cast_from(key);
        }
        if comptime!(plan.bits > 0) {
            let (capacity, position) = (self.capacity, self.position);
            write_code::<F>(sketch, ranges, key, channel, capacity, position, plan.bits);
        }
    }

    /// Writes the key and the value in `staged` [2, d] as codes, and adds what the codes stand for
    /// to the sketch and the sum. All units of the cube take part.
    fn store_codes<E: Numeric, F: Float>(
        &self,
        staged: &mut Shared<[f32]>,
        cache: &mut CacheRows<E>,
        scales: &mut RowScales,
        sketch: &mut SketchColumns<F>,
        ranges: &ChannelRanges,
        #[comptime] plan: AppendBlueprint,
    ) {
        let d = comptime!(plan.head_dim);
        let words = comptime!(d / PER_WORD);
        let units = CUBE_DIM as usize;
        let lanes = plane_dim(plan.plane) as usize;
        let lane = plane_lane(plan.plane) as usize;
        let planes = units / lanes;
        let row = self.batch_head * self.capacity + self.position;
        let mut of_rows = Shared::<[f32]>::new_slice(2usize);
        sync_cube();
        for round in 0..comptime!(2usize).runtime().div_ceil(planes) {
            let part = round * planes + plane_index(plan.plane) as usize;
            if part < 2 {
                let mut extent = RowExtent::new();
                let mut c = lane;
                while c < d.runtime() {
                    extent.add(staged[part * d + c]);
                    c += lanes;
                }
                let scale = extent.scale(plan.plane);
                if lane == 0 {
                    of_rows[part] = scale;
                }
            }
        }
        sync_cube();
        for round in 0..comptime!(2 * words).runtime().div_ceil(units) {
            let i = round * units + UNIT_POS as usize;
            if i < comptime!(2 * words).runtime() {
                let part = i / words;
                let scale = of_rows[part];
                let mut bits = 0u32;
                #[unroll]
                for e in 0..PER_WORD {
                    let code = row_code(staged[i * PER_WORD + e], scale);
                    bits |= bits_of(code, e);
                    staged[i * PER_WORD + e] = code * scale;
                }
                let at = row * words + i % words;
                if part == 0 {
                    cache.keys[at] = E::cast_from(word_of(bits));
                } else {
                    cache.values[at] = E::cast_from(word_of(bits));
                }
                if i == 0 {
                    scales.keys[row] = scale;
                }
                if i == words {
                    scales.values[row] = scale;
                }
            }
        }
        sync_cube();
        for round in 0..comptime!(d).runtime().div_ceil(units) {
            let c = round * units + UNIT_POS as usize;
            if c < d {
                let (key, value) = (staged[c], staged[d + c]);
                self.add_component::<E, F>(key, value, c, cache, sketch, ranges, plan);
            }
        }
    }
}

/// Writes the code of one component of a key to its word.
#[cube]
fn write_code<F: Float>(
    sketch: &mut SketchColumns<F>,
    ranges: &ChannelRanges,
    key: f32,
    channel: usize,
    capacity: usize,
    position: usize,
    #[comptime] bits: usize,
) {
    let per_word = comptime!(32 / bits);
    let word = (channel * capacity + position) / per_word;
    let shift = ((position % per_word) * bits) as u32;
    let (zero_point, scale) = (ranges.zero_point[channel], ranges.scale[channel]);
    let code = code_of(key, zero_point, scale, bits);
    // Later positions of the word hold no token, and their codes become 0.
    let before = sketch.codes[word] & ((1u32 << shift) - 1u32);
    sketch.codes[word] = before | (code << shift);
}
