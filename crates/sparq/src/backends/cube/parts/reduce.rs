//! Reductions and prefix sums over groups of units, planes and the cube.
//!
//! `plane` is the smallest plane size of the device, or 1 on a device without plane operations:
//! the same code then runs with planes of one unit.
//!
//! Where units share the rounds of a loop, every unit runs the same number of rounds. A software
//! Vulkan (lavapipe of Mesa 22.3) loses units whose loops before a barrier differ in length.

use cubecl::prelude::*;

/// Sums over `width` neighbouring units, each of which receives the sum. `width` is a power of two
/// and at most the plane size.
#[cube]
pub(crate) fn group_sum(value: f32, #[comptime] width: u32) -> f32 {
    let mut sum = value;
    #[unroll]
    for i in 0..comptime!(width.ilog2()) {
        sum += plane_shuffle_xor(sum, 1u32 << i);
    }
    sum
}

/// Returns whether every plane has `plane` units. A reduction over a plane is then a fixed number
/// of shuffles. The device's own operation is a loop where its compiler does not know the plane
/// size.
#[cube]
fn has_fixed_size(#[comptime] plane: u32) -> comptime_type!(bool) {
    let properties = comptime::device_properties();
    comptime!(plane > 1 && properties.hardware.plane_size_max == plane)
}

/// Returns the number of units in a plane; 1 without plane operations.
#[cube]
pub(crate) fn plane_dim(#[comptime] plane: u32) -> u32 {
    let known = has_fixed_size(plane);
    if comptime!(known || plane == 1) {
        plane.runtime()
    } else {
        PLANE_DIM
    }
}

/// Returns this unit's number in its plane.
#[cube]
pub(crate) fn plane_lane(#[comptime] plane: u32) -> u32 {
    if comptime!(plane > 1) {
        UNIT_POS_PLANE
    } else {
        0u32.runtime()
    }
}

/// Returns the number of this unit's plane in the cube.
#[cube]
pub(crate) fn plane_index(#[comptime] plane: u32) -> u32 {
    if comptime!(plane > 1) {
        PLANE_POS
    } else {
        UNIT_POS
    }
}

/// Sums over the units of a plane, each of which receives the sum.
#[cube]
pub(crate) fn sum_in_plane(value: f32, #[comptime] plane: u32) -> f32 {
    let known = has_fixed_size(plane);
    if comptime!(known) {
        group_sum(value, plane)
    } else if comptime!(plane > 1) {
        plane_sum(value)
    } else {
        value
    }
}

/// Returns the largest value of a plane to each of its units.
#[cube]
pub(crate) fn max_in_plane(value: f32, #[comptime] plane: u32) -> f32 {
    let known = has_fixed_size(plane);
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

/// Returns the inclusive prefix sum over the units of a plane.
#[cube]
fn inclusive_sum_in_plane(value: u32, #[comptime] plane: u32) -> u32 {
    let known = has_fixed_size(plane);
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

/// Sums over all units of the cube. `scratch` holds one number for each plane.
#[cube]
pub(crate) fn cube_sum(
    value: f32,
    scratch: &mut Shared<[f32]>,
    #[comptime] units: u32,
    #[comptime] plane: u32,
) -> f32 {
    let part = sum_in_plane(value, plane);
    // Another unit may still read the result of an earlier call.
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

/// Returns the largest value of the cube. `scratch` holds one number for each plane.
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

/// The exclusive prefix sum of a unit, and the sum over the cube.
#[derive(CubeType)]
pub(crate) struct PrefixSum {
    /// The sum over the units before this one.
    pub before: u32,
    /// The sum over all units.
    pub total: u32,
}

/// Sums over the units before this one and over all units of the cube. `partial` holds one number
/// for each unit.
#[cube]
pub(crate) fn prefix_sum(
    own: u32,
    partial: &mut Shared<[u32]>,
    #[comptime] units: u32,
    #[comptime] plane: u32,
) -> PrefixSum {
    if comptime!(plane > 1) {
        let within = inclusive_sum_in_plane(own, plane);
        let lanes = plane_dim(plane);
        if UNIT_POS_PLANE == lanes - 1 {
            partial[PLANE_POS as usize] = within;
        }
        sync_cube();
        let mut before = within - own;
        let mut total = 0u32;
        for other in 0..comptime!(units).runtime() / lanes {
            let sum = partial[other as usize];
            before += select(other < PLANE_POS, sum, 0u32);
            total += sum;
        }
        PrefixSum { before, total }
    } else {
        let unit = UNIT_POS as usize;
        partial[unit] = own;
        sync_cube();
        // Hillis-Steele scan: the distance doubles in each round.
        #[unroll]
        for i in 0..comptime!(units.ilog2()) {
            let distance = comptime!(1usize << i);
            let mut sum = partial[unit];
            if unit >= distance {
                sum += partial[unit - distance];
            }
            sync_cube();
            partial[unit] = sum;
            sync_cube();
        }
        PrefixSum {
            before: partial[unit] - own,
            total: partial[comptime!(units as usize - 1)],
        }
    }
}
