//! Scores: their finite range, and integer keys that order like them.

use cubecl::prelude::*;

/// The largest finite score; see the degenerate input of [`reference`](mod@crate::ops::reference).
pub(crate) const LARGEST_SCORE: f32 = f32::MAX;

/// Replaces NaN by the lowest finite number, and infinities by the nearest finite one.
#[cube]
pub(crate) fn finite(score: f32) -> f32 {
    let number = select(score == score, score, -LARGEST_SCORE);
    clamp(number, -LARGEST_SCORE, LARGEST_SCORE)
}

/// Returns negative infinity, the score of a place without a position.
///
/// WGSL has no literal for it. It is the only target without a memory scope across cubes.
#[cube]
pub(crate) fn no_score() -> f32 {
    let properties = comptime::device_properties();
    if comptime!(properties.features.device_memory_scope) {
        f32::NEG_INFINITY.runtime()
    } else {
        f32::reinterpret(0xFF80_0000u32.runtime())
    }
}

/// Returns bits that order like the score. The key of a finite score is never 0.
#[cube]
pub(crate) fn order_key(score: f32) -> u32 {
    let bits = u32::reinterpret(score);
    select(bits >= 0x8000_0000u32, !bits, bits | 0x8000_0000u32)
}

/// Returns element `index` of a buffer of vectors of four.
#[cube]
pub(crate) fn element_of<T: Numeric>(vectors: &[Vector<T, Const<4>>], index: usize) -> T {
    let four = vectors[index / 4];
    let lane = index % 4;
    let mut element = four.extract(0usize);
    #[unroll]
    for e in 1..4usize {
        element = select(lane == e, four.extract(e), element);
    }
    element
}
