//! The work on several tokens of every sequence before attention: RoPE on their queries and keys,
//! and the append of their keys and values.

use cubecl::prelude::*;

use super::append_rope::{AppendBlueprint, CacheRows, SketchColumns};
use crate::backends::cube::parts::batch_head::BatchShape;
use crate::backends::cube::parts::codes::{ChannelRanges, code_of};
use crate::backends::cube::parts::reduce::{plane_dim, plane_index, plane_lane};
use crate::backends::cube::parts::rotary::{Angles, rotate, rotate_pair};
use crate::backends::cube::parts::row_codes::{
    PER_WORD, RowExtent, RowScales, bits_of, row_code, word_of,
};

/// Positions of a tile. A tile begins at a multiple of it, so that it holds whole words of codes.
pub(crate) const TILE: usize = 32;
/// Values that a unit loads before it stores the first.
const AT_ONCE: usize = 8;

/// The sizes of an append.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct NewTokens {
    /// T.
    pub len: u32,
    /// Tiles of a batch head: those that T positions can touch.
    pub tiles: u32,
    /// S_max.
    pub capacity: u32,
}

/// The tokens of a tile.
#[derive(CubeType)]
struct TileTokens {
    /// The batch head.
    index: usize,
    /// The sequence.
    sequence: usize,
    /// The KV head.
    kv_head: usize,
    /// The first valid position of the sequence.
    start: usize,
    /// The position of token 0.
    end: usize,
    /// The first position of the tile.
    base: usize,
    /// The first position of the tile that gets a token.
    from: usize,
    /// One past the last one.
    to: usize,
    /// The cache has room for all tokens.
    room: bool,
    /// S_max.
    capacity: usize,
}

#[cube]
impl TileTokens {
    fn angles<'a>(
        &self,
        table: &'a Tensor<f32>,
        position: usize,
        #[comptime] pairs: usize,
    ) -> Angles<'a> {
        Angles::new(table, self.start, position, self.room, pairs)
    }

    /// The offset of a token's head in x [B, heads, T, d].
    fn head<X: Float>(&self, x: &Tensor<X>, head: usize, position: usize) -> usize {
        self.sequence * x.stride(0) + head * x.stride(1) + (position - self.end) * x.stride(2)
    }
}

/// Rotates the queries and the keys of T tokens to the positions behind the end of each sequence,
/// appends the keys and values there, and moves the ends. One cube for each batch head and tile.
///
/// q [B, H, T, d], k and v [B, H_kv, T, d]. `table` as in
/// [`append_rope_kernel`](super::append_rope::append_rope_kernel). The queries go to `rotated`
/// [B, H, T, d], and the sums of each tile's values to `sums` [B, H_kv, tiles, d]. A sequence
/// without room for all tokens stays as it is.
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn append_rows_kernel<X: Float, E: Numeric, F: Float>(
    q: &Tensor<X>,
    k: &Tensor<X>,
    v: &Tensor<X>,
    table: &Tensor<f32>,
    rotated: &mut [X],
    cache: &mut CacheRows<E>,
    scales: &mut RowScales,
    sketch: &mut SketchColumns<F>,
    ranges: &ChannelRanges,
    sums: &mut [f32],
    spans: &mut [Atomic<u32>],
    shape: &BatchShape,
    new: &NewTokens,
    #[comptime] plan: AppendBlueprint,
    #[define(X, E, F)] _types: [ElemType; 3],
) {
    let tiles = new.tiles as usize;
    let index = CUBE_POS / tiles;
    if index >= shape.count() {
        terminate!();
    }
    let sequence = index / shape.kv_heads as usize;
    let mut span = Shared::<[u32]>::new_slice(2usize);
    if UNIT_POS == 0 {
        span[0] = spans[sequence].load();
        span[1] = spans[shape.batch as usize + sequence].load();
    }
    sync_cube();
    let end = span[1] as usize;
    let stop = end + new.len as usize;
    let base = end / TILE * TILE + CUBE_POS % tiles * TILE;
    let tile = TileTokens {
        index,
        sequence,
        kv_head: index % shape.kv_heads as usize,
        start: span[0] as usize,
        end,
        base,
        from: max(base, end),
        to: min(base + TILE, stop),
        room: stop <= new.capacity as usize,
        capacity: new.capacity as usize,
    };
    if comptime!(plan.group > 0) {
        rotate_queries::<X>(q, table, rotated, &tile, new.len as usize, plan);
    }
    // The scales of the tile's keys, and those of its values.
    let mut of_rows = Shared::<[f32]>::new_slice(comptime!(if plan.coded { 2 * TILE } else { 1 }));
    if comptime!(plan.coded) {
        if tile.room {
            scale_rows::<X>(k, v, table, &mut of_rows, &tile, plan);
            append_words::<X, E>(k, v, table, cache, scales, &of_rows, &tile, plan);
        }
        sum_stored_values::<X>(v, &of_rows, sums, &tile, plan);
    } else {
        append_values::<X, E>(v, cache, sums, &tile, plan);
        if tile.room {
            append_keys::<X, E>(k, table, cache, &tile, plan);
        }
    }
    if tile.room {
        if comptime!(plan.full) {
            append_columns::<X, E, F>(k, table, sketch, &of_rows, &tile, plan);
        }
        if comptime!(plan.bits > 0) {
            append_codes::<X, E, F>(k, table, sketch, ranges, &of_rows, &tile, plan);
        }
    }
    // The last cube of a sequence moves its end. Each cube counts itself after it has read the
    // span.
    sync_cube();
    if UNIT_POS == 0 {
        let counter = comptime!(2usize).runtime() * shape.batch as usize + sequence;
        let done = spans[counter].fetch_add(1u32);
        if done == shape.kv_heads * new.tiles - 1 {
            spans[counter].store(0u32);
            let moved = span[1] + new.len;
            spans[shape.batch as usize + sequence].store(select(tile.room, moved, span[1]));
        }
    }
}

/// Pairs and single components of a head.
#[cube]
fn items(#[comptime] plan: AppendBlueprint) -> comptime_type!(usize) {
    comptime!(plan.head_dim - plan.pairs)
}

#[cube]
fn rotate_queries<X: Float>(
    q: &Tensor<X>,
    table: &Tensor<f32>,
    rotated: &mut [X],
    tile: &TileTokens,
    len: usize,
    #[comptime] plan: AppendBlueprint,
) {
    let (d, group, pairs) = comptime!((plan.head_dim, plan.group, plan.pairs));
    let items = items(plan);
    let count = (tile.to - min(tile.from, tile.to)) * comptime!(group * items);
    let mut i = UNIT_POS as usize;
    while i < count {
        let position = tile.from + i / comptime!(group * items);
        let head = tile.kv_head * group + i / items % group;
        let c = i % items;
        let from = tile.head::<X>(q, head, position);
        let row = (tile.index * group + i / items % group) * len + position - tile.end;
        let angles = tile.angles(table, position, pairs);
        if c < pairs.runtime() {
            let (first, second) = rotate_pair::<X>(q, from, q.stride(3), c, &angles);
            rotated[row * d + c] = X::cast_from(first);
            rotated[row * d + c + pairs] = X::cast_from(second);
        } else {
            rotated[row * d + c + pairs] = q[from + (c + pairs) * q.stride(3)];
        }
        i += CUBE_DIM as usize;
    }
}

/// Returns component `c` of a key, rotated and rounded to its type.
#[cube]
fn rotated<X: Float>(
    k: &Tensor<X>,
    table: &Tensor<f32>,
    tile: &TileTokens,
    position: usize,
    c: usize,
    #[comptime] plan: AppendBlueprint,
) -> X {
    let from = tile.head::<X>(k, tile.kv_head, position);
    let angles = tile.angles(table, position, plan.pairs);
    X::cast_from(rotate::<X>(k, from, k.stride(3), c, &angles))
}

/// Returns component `c` of the key (part 0) or of the value (part 1) at `position` in fp32.
#[cube]
fn new_component<X: Float>(
    k: &Tensor<X>,
    v: &Tensor<X>,
    table: &Tensor<f32>,
    tile: &TileTokens,
    part: usize,
    position: usize,
    c: usize,
    #[comptime] plan: AppendBlueprint,
) -> f32 {
    let mut x = 0.0f32;
    if part == 0 {
        x = f32::cast_from(rotated::<X>(k, table, tile, position, c, plan));
    }
    if part == 1 {
        let from = tile.head::<X>(v, tile.kv_head, position);
        x = f32::cast_from(v[from + c * v.stride(3)]);
    }
    x
}

/// Writes the scales of the tile's keys and values to `of_rows` [2, TILE]. Ends with a barrier.
#[cube]
fn scale_rows<X: Float>(
    k: &Tensor<X>,
    v: &Tensor<X>,
    table: &Tensor<f32>,
    of_rows: &mut Shared<[f32]>,
    tile: &TileTokens,
    #[comptime] plan: AppendBlueprint,
) {
    let d = comptime!(plan.head_dim);
    let lanes = plane_dim(plan.plane) as usize;
    let lane = plane_lane(plan.plane) as usize;
    let planes = CUBE_DIM as usize / lanes;
    for round in 0..comptime!(2 * TILE).runtime().div_ceil(planes) {
        let row = round * planes + plane_index(plan.plane) as usize;
        let position = tile.base + row % TILE;
        if row < comptime!(2 * TILE).runtime() && position >= tile.from && position < tile.to {
            let mut extent = RowExtent::new();
            let mut c = lane;
            while c < d.runtime() {
                extent.add(new_component::<X>(
                    k,
                    v,
                    table,
                    tile,
                    row / TILE,
                    position,
                    c,
                    plan,
                ));
                c += lanes;
            }
            let scale = extent.scale(plan.plane);
            if lane == 0 {
                of_rows[row] = scale;
            }
        }
    }
    sync_cube();
}

/// Writes the keys and values of the tile as words of codes, with their scales.
#[cube]
#[allow(clippy::too_many_arguments)]
fn append_words<X: Float, E: Numeric>(
    k: &Tensor<X>,
    v: &Tensor<X>,
    table: &Tensor<f32>,
    cache: &mut CacheRows<E>,
    scales: &mut RowScales,
    of_rows: &Shared<[f32]>,
    tile: &TileTokens,
    #[comptime] plan: AppendBlueprint,
) {
    let words = comptime!(plan.head_dim / PER_WORD);
    let tokens = tile.to - min(tile.from, tile.to);
    let mut i = UNIT_POS as usize;
    while i < tokens * comptime!(2 * words) {
        let part = i / (tokens * words);
        let position = tile.from + i / words % tokens;
        let word = i % words;
        let scale = of_rows[part * TILE + position - tile.base];
        let mut bits = 0u32;
        #[unroll]
        for e in 0..PER_WORD {
            let c = word * PER_WORD + e;
            let x = new_component::<X>(k, v, table, tile, part, position, c, plan);
            bits |= bits_of(row_code(x, scale), e);
        }
        let row = tile.index * tile.capacity + position;
        if part == 0 {
            cache.keys[row * words + word] = E::cast_from(word_of(bits));
            if word == 0 {
                scales.keys[row] = scale;
            }
        } else {
            cache.values[row * words + word] = E::cast_from(word_of(bits));
            if word == 0 {
                scales.values[row] = scale;
            }
        }
        i += CUBE_DIM as usize;
    }
}

/// Writes the sum of the tile's values as the codes hold them, without left padding.
#[cube]
fn sum_stored_values<X: Float>(
    v: &Tensor<X>,
    of_rows: &Shared<[f32]>,
    sums: &mut [f32],
    tile: &TileTokens,
    #[comptime] plan: AppendBlueprint,
) {
    let d = comptime!(plan.head_dim);
    let mut c = UNIT_POS as usize;
    while c < d.runtime() {
        let mut sum = 0.0f32;
        if tile.room {
            let mut position = max(tile.from, tile.start);
            while position < tile.to {
                let from = tile.head::<X>(v, tile.kv_head, position);
                let scale = of_rows[TILE + position - tile.base];
                sum += row_code(f32::cast_from(v[from + c * v.stride(3)]), scale) * scale;
                position += 1;
            }
        }
        sums[CUBE_POS * d + c] = sum;
        c += CUBE_DIM as usize;
    }
}

#[cube]
fn append_keys<X: Float, E: Numeric>(
    k: &Tensor<X>,
    table: &Tensor<f32>,
    cache: &mut CacheRows<E>,
    tile: &TileTokens,
    #[comptime] plan: AppendBlueprint,
) {
    let (d, pairs) = comptime!((plan.head_dim, plan.pairs));
    let items = items(plan);
    let count = (tile.to - min(tile.from, tile.to)) * items;
    let mut i = UNIT_POS as usize;
    while i < count {
        let position = tile.from + i / items;
        let c = i % items;
        let from = tile.head::<X>(k, tile.kv_head, position);
        let row = (tile.index * tile.capacity + position) * d;
        let angles = tile.angles(table, position, pairs);
        // The rotation rounds to the queries' type first, as for queries.
        if c < pairs.runtime() {
            let (first, second) = rotate_pair::<X>(k, from, k.stride(3), c, &angles);
            cache.keys[row + c] = E::cast_from(X::cast_from(first));
            cache.keys[row + c + pairs] = E::cast_from(X::cast_from(second));
        } else {
            cache.keys[row + c + pairs] = E::cast_from(k[from + (c + pairs) * k.stride(3)]);
        }
        i += CUBE_DIM as usize;
    }
}

/// Appends the values of the tile, and writes their sum without left padding.
#[cube]
fn append_values<X: Float, E: Numeric>(
    v: &Tensor<X>,
    cache: &mut CacheRows<E>,
    sums: &mut [f32],
    tile: &TileTokens,
    #[comptime] plan: AppendBlueprint,
) {
    let d = comptime!(plan.head_dim);
    let mut c = UNIT_POS as usize;
    while c < d.runtime() {
        let mut sum = 0.0f32;
        if tile.room {
            let mut at = tile.from;
            while at < tile.to {
                let mut values = Array::<E>::new(AT_ONCE);
                #[unroll]
                for i in 0..AT_ONCE {
                    let position = min(at + i, tile.to - 1);
                    let from = tile.head::<X>(v, tile.kv_head, position);
                    values[i] = E::cast_from(v[from + c * v.stride(3)]);
                }
                #[unroll]
                for i in 0..AT_ONCE {
                    let position = at + i;
                    if position < tile.to {
                        let value = values[i];
                        cache.values[(tile.index * tile.capacity + position) * d + c] = value;
                        sum += select(position >= tile.start, f32::cast_from(value), 0.0f32);
                    }
                }
                at += AT_ONCE;
            }
        }
        sums[CUBE_POS * d + c] = sum;
        c += CUBE_DIM as usize;
    }
}

/// Returns a component of a key as the cache holds it.
#[cube]
fn key<X: Float, E: Numeric>(
    k: &Tensor<X>,
    table: &Tensor<f32>,
    of_rows: &Shared<[f32]>,
    tile: &TileTokens,
    position: usize,
    c: usize,
    #[comptime] plan: AppendBlueprint,
) -> f32 {
    let x = rotated::<X>(k, table, tile, position, c, plan);
    if comptime!(plan.coded) {
        let scale = of_rows[position - tile.base];
        row_code(f32::cast_from(x), scale) * scale
    } else {
        f32::cast_from(E::cast_from(x))
    }
}

#[cube]
fn append_columns<X: Float, E: Numeric, F: Float>(
    k: &Tensor<X>,
    table: &Tensor<f32>,
    sketch: &mut SketchColumns<F>,
    of_rows: &Shared<[f32]>,
    tile: &TileTokens,
    #[comptime] plan: AppendBlueprint,
) {
    let d = comptime!(plan.head_dim);
    let tokens = tile.to - min(tile.from, tile.to);
    // Neighbouring units write neighbouring positions.
    let mut i = UNIT_POS as usize;
    while i < tokens * d {
        let position = tile.from + i % tokens;
        let c = i / tokens;
        let value = key::<X, E>(k, table, of_rows, tile, position, c, plan);
        sketch.full[(tile.index * d + c) * tile.capacity + position] = F::cast_from(value);
        i += CUBE_DIM as usize;
    }
}

#[cube]
fn append_codes<X: Float, E: Numeric, F: Float>(
    k: &Tensor<X>,
    table: &Tensor<f32>,
    sketch: &mut SketchColumns<F>,
    ranges: &ChannelRanges,
    of_rows: &Shared<[f32]>,
    tile: &TileTokens,
    #[comptime] plan: AppendBlueprint,
) {
    let (d, bits) = comptime!((plan.head_dim, plan.bits));
    let per_word = comptime!(32 / bits);
    let mut i = UNIT_POS as usize;
    while i < comptime!(d * TILE / per_word).runtime() {
        let c = i % d;
        let first = tile.base + i / d * per_word;
        let from = max(first, tile.from);
        let to = min(first + per_word, tile.to);
        if from < to {
            let channel = tile.index * d + c;
            let word = (channel * tile.capacity + first) / per_word;
            let (zero_point, scale) = (ranges.zero_point[channel], ranges.scale[channel]);
            let mut codes = 0u32;
            if from > first {
                let kept = ((from - first) * bits) as u32;
                codes = sketch.codes[word] & ((1u32 << kept) - 1u32);
            }
            for position in from..to {
                let value = key::<X, E>(k, table, of_rows, tile, position, c, plan);
                let shift = ((position - first) * bits) as u32;
                codes |= code_of(value, zero_point, scale, bits) << shift;
            }
            sketch.codes[word] = codes;
        }
        i += CUBE_DIM as usize;
    }
}

/// Adds the sums of all tiles, [B, H_kv, tiles, d], to the sum of V, [B, H_kv, d]. One cube for
/// each batch head, with `lanes` units for each of `d` channels if it has so many.
#[cube(launch_unchecked)]
pub(crate) fn add_sums_kernel(
    sums: &[f32],
    v_sum: &mut [f32],
    batch_heads: u32,
    tiles: u32,
    #[comptime] d: usize,
    #[comptime] units: usize,
) {
    let index = CUBE_POS;
    if index >= batch_heads as usize {
        terminate!();
    }
    let tiles = tiles as usize;
    let lanes = comptime!(if d < units { units / d } else { 1 });
    let mut partial = Shared::<[f32]>::new_slice(comptime!(lanes * d));
    let mut i = UNIT_POS as usize;
    while i < comptime!(lanes * d).runtime() {
        let mut sum = 0.0f32;
        let mut tile = i / d;
        while tile < tiles {
            sum += sums[(index * tiles + tile) * d + i % d];
            tile += lanes;
        }
        partial[i] = sum;
        i += units;
    }
    sync_cube();
    let mut c = UNIT_POS as usize;
    while c < d.runtime() {
        let mut sum = v_sum[index * d + c];
        for lane in 0..lanes.runtime() {
            sum += partial[lane * d + c];
        }
        v_sum[index * d + c] = sum;
        c += units;
    }
}
