//! The codes of a key sketch; see [`sketch`](crate::sketch).

use cubecl::prelude::*;

/// The range of each channel, [B, H_kv, d]; in use if codes are written.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct ChannelRanges {
    /// The key that code 0 stands for.
    pub zero_point: Box<[f32]>,
    /// The difference between neighbouring codes.
    pub scale: Box<[f32]>,
}

/// Returns the code of a key.
#[cube]
pub(crate) fn code_of(key: f32, zero_point: f32, scale: f32, #[comptime] bits: usize) -> u32 {
    let levels = comptime!(((1u32 << bits) - 1) as f32);
    let scaled = (key - zero_point) / scale;
    // A scale of 0 gives NaN or an infinity.
    let usable = scaled == scaled && scale != 0.0f32;
    u32::cast_from(clamp(
        round_half_to_even(select(usable, scaled, 0.0f32)),
        0.0f32,
        levels,
    ))
}

#[cube]
pub(crate) fn round_half_to_even(x: f32) -> f32 {
    let down = x.floor();
    let rest = x - down;
    let odd = down - 2.0f32 * (down * 0.5f32).floor();
    let up = rest > 0.5f32 || (rest == 0.5f32 && odd == 1.0f32);
    select(up, down + 1.0f32, down)
}
