//! The append of one token to every sequence.

use cubecl::prelude::*;

/// Writes the key and value of one token, k and v [B, H_kv, 1, d], behind the end of every sequence, with its column of the sketch and its part of the
/// running sum, and then moves the end. One cube for each key/value head.
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn append_kernel<X: Float, E: Float>(
    k: &Tensor<X>,
    v: &Tensor<X>,
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
    let mut c = UNIT_POS as usize;
    while c < d {
        let key = E::cast_from(k[sequence * k.stride(0) + kv_head * k.stride(1) + c * k.stride(3)]);
        let value =
            E::cast_from(v[sequence * v.stride(0) + kv_head * v.stride(1) + c * v.stride(3)]);
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
        c += CUBE_DIM as usize;
    }
    // The last cube of a sequence moves its end: all others have read it, since their count comes after.
    sync_cube();
    if UNIT_POS == 0 {
        let counter = comptime!(2usize).runtime() * batch as usize + sequence;
        let done = spans[counter].fetch_add(1u32);
        if done == kv_heads - 1 {
            spans[counter].store(0u32);
            spans[batch as usize + sequence].store(span[1] + 1);
        }
    }
}

#[cube]
fn round_half_to_even(x: f32) -> f32 {
    let down = x.floor();
    let rest = x - down;
    let odd = down - 2.0f32 * (down * 0.5f32).floor();
    let up = rest > 0.5f32 || (rest == 0.5f32 && odd == 1.0f32);
    select(up, down + 1.0f32, down)
}
