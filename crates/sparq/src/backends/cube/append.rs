//! What happens to one token of every sequence before attention: its query and key are turned to their position, and key and value are appended.

use cubecl::prelude::*;

/// Turns the query and the key of one token, q [B, H, 1, d] and k [B, H_kv, 1, d], to the position behind the end of each sequence, writes the key and the
/// value v [B, H_kv, 1, d] there, with the key's column of the sketch and the value's part of the running sum, and then moves the end. One cube for
/// each key/value head and its g query heads, which go to `turned` [B, H, 1, d].
///
/// `table` has a row for every position, cosines and then sines of `pairs` angles; with `pairs` = 0 nothing turns. `group` = 0 is an append without queries. A
/// sequence without room for a position is left as it is.
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn append_kernel<X: Float, E: Float>(
    q: &Tensor<X>,
    k: &Tensor<X>,
    v: &Tensor<X>,
    table: &Tensor<f32>,
    turned: &mut [X],
    keys: &mut [E],
    values: &mut [E],
    v_sum: &mut [f32],
    kt: &mut [E],
    codes: &mut [u32],
    lo: &[f32],
    step: &[f32],
    spans: &mut [Atomic<u32>],
    batch: u32,
    kv_heads: u32,
    capacity: u32,
    #[comptime] d: usize,
    #[comptime] group: usize,
    #[comptime] pairs: usize,
    #[comptime] full: bool,
    #[comptime] bits: usize,
    #[define(X, E)] _types: [ElemType; 2],
) {
    let row = CUBE_POS;
    if row >= (batch * kv_heads) as usize {
        terminate!();
    }
    let sequence = row / kv_heads as usize;
    let kv_head = row % kv_heads as usize;
    let capacity = capacity as usize;
    let mut span = Shared::<[u32]>::new_slice(2usize);
    if UNIT_POS == 0 {
        span[0] = spans[sequence].load();
        span[1] = spans[batch as usize + sequence].load();
    }
    sync_cube();
    let start = span[0] as usize;
    let position = span[1] as usize;
    let room = position < capacity;
    // Left padding itself is at position 0.
    let angles = select(position > start, position - start, 0) * table.stride(0);
    if comptime!(group > 0) {
        let first = sequence * q.stride(0) + kv_head * group * q.stride(1);
        for round in 0..comptime!(group * d).runtime().div_ceil(CUBE_DIM as usize) {
            let c = round * CUBE_DIM as usize + UNIT_POS as usize;
            if c < comptime!(group * d).runtime() {
                let head = first + (c / d) * q.stride(1);
                let value = turn::<X>(q, head, q.stride(3), c % d, table, angles, pairs, room);
                turned[row * group * d + c] = X::cast_from(value);
            }
        }
    }
    if room {
        let k_head = sequence * k.stride(0) + kv_head * k.stride(1);
        let v_head = sequence * v.stride(0) + kv_head * v.stride(1);
        for round in 0..d.runtime().div_ceil(CUBE_DIM as usize) {
            let c = round * CUBE_DIM as usize + UNIT_POS as usize;
            if c < d {
                // By way of the queries' type, in which the product is taken.
                let key = X::cast_from(turn::<X>(
                    k,
                    k_head,
                    k.stride(3),
                    c,
                    table,
                    angles,
                    pairs,
                    room,
                ));
                let key = E::cast_from(key);
                let value = E::cast_from(v[v_head + c * v.stride(3)]);
                let channel = row * d + c;
                keys[(row * capacity + position) * d + c] = key;
                values[(row * capacity + position) * d + c] = value;
                if position >= start {
                    v_sum[channel] += f32::cast_from(value);
                }
                if comptime!(full) {
                    kt[channel * capacity + position] = key;
                }
                if comptime!(bits > 0) {
                    let per_word = comptime!(32 / bits);
                    let levels = comptime!(((1u32 << bits) - 1) as f32);
                    let word = (channel * capacity + position) / per_word;
                    let shift = ((position % per_word) * bits) as u32;
                    let scaled = (f32::cast_from(key) - lo[channel]) / step[channel];
                    // Also where the step is 0, which gives NaN or an infinity.
                    let usable = scaled == scaled && step[channel] != 0.0f32;
                    let code = u32::cast_from(clamp(
                        round_half_to_even(select(usable, scaled, 0.0f32)),
                        0.0f32,
                        levels,
                    ));
                    // Codes behind this one belong to positions that hold no token: they become 0.
                    let before = codes[word] & ((1u32 << shift) - 1u32);
                    codes[word] = before | (code << shift);
                }
            }
        }
    }
    // The last cube of a sequence moves its end: all others have read it, since their count comes after.
    sync_cube();
    if UNIT_POS == 0 {
        let counter = comptime!(2usize).runtime() * batch as usize + sequence;
        let done = spans[counter].fetch_add(1u32);
        if done == kv_heads - 1 {
            spans[counter].store(0u32);
            spans[batch as usize + sequence].store(select(room, span[1] + 1, span[1]));
        }
    }
}

/// Component c of a head, turned; see [`Rotary`](crate::ops::Rotary). The head begins at `first` and its row of angles at `angles`.
#[cube]
#[allow(clippy::too_many_arguments)]
fn turn<X: Float>(
    x: &Tensor<X>,
    first: usize,
    stride: usize,
    c: usize,
    table: &Tensor<f32>,
    angles: usize,
    #[comptime] pairs: usize,
    room: bool,
) -> f32 {
    let mut y = f32::cast_from(x[first + c * stride]);
    if comptime!(pairs > 0) {
        // The table need not reach beyond the buffers.
        if c < comptime!(2 * pairs).runtime() && room {
            let partner = (c + pairs) % comptime!(2 * pairs).runtime();
            let other = f32::cast_from(x[first + partner * stride]);
            let cos = table[angles + c % pairs];
            let sin = table[angles + pairs + c % pairs];
            y = y * cos + select(c < pairs, -other, other) * sin;
        }
    }
    y
}

#[cube]
fn round_half_to_even(x: f32) -> f32 {
    let down = x.floor();
    let rest = x - down;
    let odd = down - 2.0f32 * (down * 0.5f32).floor();
    let up = rest > 0.5f32 || (rest == 0.5f32 && odd == 1.0f32);
    select(up, down + 1.0f32, down)
}
