//! The work on one token of every sequence before attention: RoPE on its query and key, and the
//! append of its key and value.

use cubecl::prelude::*;

use crate::backends::cube::parts::batch_head::BatchShape;
use crate::backends::cube::parts::codes::{ChannelRanges, code_of};
use crate::backends::cube::parts::rotary::{Angles, rotate};

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
}

/// The buffers of a cache in type E.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct CacheRows<E: Float> {
    /// K, [B, H_kv, S_max, d].
    pub keys: Box<[E]>,
    /// V, [B, H_kv, S_max, d].
    pub values: Box<[E]>,
    /// The sum of V, [B, H_kv, d].
    pub v_sum: Box<[f32]>,
}

/// The elements of a key sketch: one of the two is in use.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct SketchColumns<E: Float> {
    /// A full copy of K, [B, H_kv, d, S_max].
    pub full: Box<[E]>,
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
pub(crate) fn append_rope_kernel<X: Float, E: Float>(
    q: &Tensor<X>,
    k: &Tensor<X>,
    v: &Tensor<X>,
    table: &Tensor<f32>,
    rotated: &mut [X],
    cache: &mut CacheRows<E>,
    sketch: &mut SketchColumns<E>,
    ranges: &ChannelRanges,
    spans: &mut [Atomic<u32>],
    shape: &BatchShape,
    capacity: u32,
    #[comptime] plan: AppendBlueprint,
    #[define(X, E)] _types: [ElemType; 2],
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
            let key = E::cast_from(key);
            let value = E::cast_from(v[v_head + c * v.stride(3)]);
            let channel = batch_head * d + c;
            cache.keys[(batch_head * capacity + position) * d + c] = key;
            cache.values[(batch_head * capacity + position) * d + c] = value;
            if position >= start {
                cache.v_sum[channel] += f32::cast_from(value);
            }
            if comptime!(plan.full) {
                sketch.full[channel * capacity + position] = key;
            }
            if comptime!(plan.bits > 0) {
                write_code(sketch, ranges, key, channel, capacity, position, plan.bits);
            }
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

/// Writes the code of one component of a key to its word.
#[cube]
fn write_code<E: Float>(
    sketch: &mut SketchColumns<E>,
    ranges: &ChannelRanges,
    key: E,
    channel: usize,
    capacity: usize,
    position: usize,
    #[comptime] bits: usize,
) {
    let per_word = comptime!(32 / bits);
    let word = (channel * capacity + position) / per_word;
    let shift = ((position % per_word) * bits) as u32;
    let (zero_point, scale) = (ranges.zero_point[channel], ranges.scale[channel]);
    let code = code_of(f32::cast_from(key), zero_point, scale, bits);
    // Later positions of the word hold no token, and their codes become 0.
    let before = sketch.codes[word] & ((1u32 << shift) - 1u32);
    sketch.codes[word] = before | (code << shift);
}
