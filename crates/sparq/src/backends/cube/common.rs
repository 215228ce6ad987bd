//! What the kernels share: sums over groups of units, the geometry of a launch, the span of a sequence.
//!
//! `plane` is the smallest size that a plane has on the device, and 1 where plane operations are missing: the same code then runs with groups of one unit.
//!
//! Where units share the steps of a loop, all of them go through as many rounds: a software Vulkan (Mesa 22.3) loses units whose loops are of unequal
//! length before a barrier.

use cubecl::prelude::*;

/// The largest finite score; see the degenerate input of [`reference`](mod@crate::ops::reference).
pub(crate) const LARGEST: f32 = f32::MAX;

/// Sum over `width` neighbouring units, a power of two no larger than a plane; each of them receives it.
#[cube]
pub(crate) fn group_sum(value: f32, #[comptime] width: u32) -> f32 {
    let mut sum = value;
    #[unroll]
    for i in 0..comptime!(width.ilog2()) {
        sum += plane_shuffle_xor(sum, 1u32 << i);
    }
    sum
}

/// Whether all planes have `plane` units. Sums over a plane are then so many shuffles; the device's own are loops, where the compiler does not know the size.
#[cube]
fn of_one_size(#[comptime] plane: u32) -> comptime_type!(bool) {
    let properties = comptime::device_properties();
    comptime!(plane > 1 && properties.hardware.plane_size_max == plane)
}

/// Units in a plane; 1 where planes are not used.
#[cube]
pub(crate) fn plane_dim(#[comptime] plane: u32) -> u32 {
    let known = of_one_size(plane);
    if comptime!(known || plane == 1) {
        plane.runtime()
    } else {
        PLANE_DIM
    }
}

/// This unit's place in its plane.
#[cube]
pub(crate) fn plane_lane(#[comptime] plane: u32) -> u32 {
    if comptime!(plane > 1) {
        UNIT_POS_PLANE
    } else {
        0u32.runtime()
    }
}

/// The place of this unit's plane in the cube.
#[cube]
pub(crate) fn plane_index(#[comptime] plane: u32) -> u32 {
    if comptime!(plane > 1) {
        PLANE_POS
    } else {
        UNIT_POS
    }
}

/// Sum over the units of a plane.
#[cube]
pub(crate) fn sum_in_plane(value: f32, #[comptime] plane: u32) -> f32 {
    let known = of_one_size(plane);
    if comptime!(known) {
        group_sum(value, plane)
    } else if comptime!(plane > 1) {
        plane_sum(value)
    } else {
        value
    }
}

/// The largest value of the units of a plane.
#[cube]
pub(crate) fn max_in_plane(value: f32, #[comptime] plane: u32) -> f32 {
    let known = of_one_size(plane);
    if comptime!(known) {
        let mut largest = value;
        #[unroll]
        for i in 0..comptime!(plane.ilog2()) {
            largest = max(largest, plane_shuffle_xor(largest, 1u32 << i));
        }
        largest
    } else if comptime!(plane > 1) {
        plane_max(value)
    } else {
        value
    }
}

/// Sum over the units of a plane up to and with this one.
#[cube]
pub(crate) fn sum_up_to_here(value: u32, #[comptime] plane: u32) -> u32 {
    let known = of_one_size(plane);
    if comptime!(known) {
        let mut sum = value;
        #[unroll]
        for i in 0..comptime!(plane.ilog2()) {
            let before = plane_shuffle_up(sum, comptime!(1u32 << i));
            sum += select(UNIT_POS_PLANE >= comptime!(1u32 << i), before, 0u32);
        }
        sum
    } else if comptime!(plane > 1) {
        plane_inclusive_sum(value)
    } else {
        value
    }
}

/// Sum over all units of the cube; `scratch` has room for a number from every plane.
#[cube]
pub(crate) fn cube_sum(
    value: f32,
    scratch: &mut Shared<[f32]>,
    #[comptime] units: u32,
    #[comptime] plane: u32,
) -> f32 {
    let part = sum_in_plane(value, plane);
    // Whoever still reads an earlier result has to be done.
    sync_cube();
    if plane_lane(plane) == 0 {
        scratch[plane_index(plane) as usize] = part;
    }
    sync_cube();
    let mut total = 0.0f32;
    for i in 0..units / plane_dim(plane) {
        total += scratch[i as usize];
    }
    total
}

/// The largest value of all units of the cube; `scratch` has room for a number from every plane.
#[cube]
pub(crate) fn cube_max(
    value: f32,
    scratch: &mut Shared<[f32]>,
    #[comptime] units: u32,
    #[comptime] plane: u32,
) -> f32 {
    let part = max_in_plane(value, plane);
    sync_cube();
    if plane_lane(plane) == 0 {
        scratch[plane_index(plane) as usize] = part;
    }
    sync_cube();
    let mut largest = scratch[0];
    for i in 1..units / plane_dim(plane) {
        largest = max(largest, scratch[i as usize]);
    }
    largest
}

/// A score with NaN replaced by the lowest and infinities by the largest finite numbers.
#[cube]
pub(crate) fn finite(score: f32) -> f32 {
    let number = select(score == score, score, -LARGEST);
    clamp(number, -LARGEST, LARGEST)
}

/// The score where there is no position: negative infinity.
///
/// WGSL has no literal for it. Of the targets, WGSL alone has no memory scope across cubes.
#[cube]
pub(crate) fn no_score() -> f32 {
    let properties = comptime::device_properties();
    if comptime!(properties.features.device_memory_scope) {
        f32::NEG_INFINITY.runtime()
    } else {
        f32::reinterpret(0xFF80_0000u32.runtime())
    }
}

/// Bits that order like the number: for finite scores, a larger score has the larger key, and no key is 0.
#[cube]
pub(crate) fn order_key(score: f32) -> u32 {
    let bits = u32::reinterpret(score);
    select(bits >= 0x8000_0000u32, !bits, bits | 0x8000_0000u32)
}

/// Where a key/value head's positions are.
#[derive(CubeType)]
pub(crate) struct Place {
    /// Which sequence of the batch.
    pub sequence: usize,
    /// Which of its key/value heads.
    pub kv_head: usize,
    /// The first valid position.
    pub start: usize,
    /// One past the last valid position; never before `start`.
    pub end: usize,
}

/// The place of `row`, which counts the key/value heads of all sequences; `spans` as in [`CacheTensors`](crate::ops::CacheTensors).
#[cube]
pub(crate) fn locate(spans: &[u32], row: usize, batch: u32, kv_heads: u32) -> Place {
    let sequence = row / kv_heads as usize;
    let start = spans[sequence] as usize;
    Place {
        sequence,
        kv_head: row % kv_heads as usize,
        start,
        end: max(spans[batch as usize + sequence] as usize, start),
    }
}

/// Number `at` of vectors of four.
#[cube]
pub(crate) fn number_of<T: Numeric>(vectors: &[Vector<T, Const<4>>], at: usize) -> T {
    let four = vectors[at / 4];
    let lane = at % 4;
    let mut number = four.extract(0usize);
    #[unroll]
    for e in 1..4usize {
        number = select(lane == e, four.extract(e), number);
    }
    number
}
