//! Rows of x as matrix B of products with [packed weights](super::blocks): halves, and the sums by
//! which the zero points and the minima of the weights are multiplied.
//!
//! The rows, or each 256 of their features, are scaled by a power of two, so that the largest
//! magnitude is in [2^14, 2^15). Numbers in f16 and bf16 then lose nothing above 2^-25 of it.
//! Numbers in f32, and the sums, are two halves: their error is 2^-22.
//!
//! A column is a row of x, or one of its two halves. For each 256 features, the vectors of 16 bytes
//! are [9, columns, members]. The first eight are groups: the two runs of a member. The last has
//! the sums of the groups: those of 2 member and its neighbour, the upper halves and the lower
//! ones. With two scales for each group, these are 4 sums and 4 lower halves.

use burn::tensor::f16;
use cubecl::prelude::*;

use super::blocks::{
    BlockLayout, FEATURES, GROUP, GROUPS, MEMBERS, RUN, Scales, Words, first_of_run,
};
use super::projection::{NormKind, NormWeights};
use super::reduce::{group_sum, max_in_plane, sum_in_plane};
use super::warpgroup::{lane, plane};

/// Vectors of a column and a member for each 256 features.
pub(crate) const VECTORS: usize = GROUPS + 1;
/// Units of a plane.
const PLANE: u32 = 32;
/// The sums are divided by it, to be in the range of f16.
pub(crate) const SUM_UNIT: f32 = 4096.0;

/// The settings that rows are packed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HalfRowsBlueprint {
    /// The norm before the products: none or an RMS norm.
    pub norm: NormKind,
    /// Columns of a row of x: two if its numbers are in f32.
    pub halves: usize,
    /// The weights.
    pub layout: BlockLayout,
    /// Units of the cube.
    pub units: u32,
    /// Parts of a row that a unit packs: the two runs of a member in a group.
    pub parts: usize,
    /// The units have room for more than the features of a row.
    pub ragged: bool,
}

impl HalfRowsBlueprint {
    /// Returns whether rows packed for this plan serve another.
    pub fn serves(&self, other: &Self) -> bool {
        let key = |plan: &Self| {
            let of_bytes = plan.layout.scales == Scales::Bytes;
            let larger = plan.layout.odd_pairs_are_larger();
            (
                plan.norm,
                plan.halves,
                plan.layout.zero_point,
                of_bytes,
                larger,
            )
        };
        key(self) == key(other)
    }

    /// Vectors of a row that a unit loads.
    pub fn vectors(&self) -> usize {
        2 * self.parts
    }

    /// Planes of the cube.
    pub fn planes(&self) -> usize {
        (self.units / PLANE) as usize
    }

    /// Steps of 256 features of a row, in whole rounds of the planes.
    pub fn steps(&self) -> usize {
        self.parts * self.planes()
    }

    /// Numbers that the planes exchange.
    pub fn scratch(&self) -> usize {
        2 * self.planes()
    }
}

/// The rows of x and their norm.
#[derive(CubeType)]
pub(crate) struct FloatRows<'a, E: Float, N: Size> {
    /// [rows, in], in vectors of four.
    pub x: &'a [Vector<E, N>],
    pub norm: &'a NormWeights<Vector<E, N>>,
    /// Rows of x.
    pub rows: usize,
    /// Features of a row.
    pub features: usize,
    pub epsilon: f32,
}

#[cube]
impl<'a, E: Float, N: Size> FloatRows<'a, E, N> {
    pub fn new(
        x: &'a [Vector<E, N>],
        norm: &'a NormWeights<Vector<E, N>>,
        rows: u32,
        features: u32,
        epsilon: f32,
    ) -> FloatRows<'a, E, N> {
        FloatRows::<'a, E, N> {
            x,
            norm,
            rows: rows as usize,
            features: features as usize,
            epsilon,
        }
    }

    /// Loads this unit's vectors of row `row` to those of `loaded` from `to` on.
    pub fn load(
        &self,
        row: usize,
        loaded: &mut Array<Vector<E, N>>,
        #[comptime] to: usize,
        #[comptime] plan: HalfRowsBlueprint,
    ) {
        let vectors = self.features / RUN;
        #[unroll]
        for i in 0..comptime!(plan.vectors()) {
            let mut at = vector_of(i, plan);
            if comptime!(plan.ragged) {
                at = min(at, vectors - 1);
            }
            loaded[comptime!(to + i)] = self.x[row * vectors + at];
        }
    }

    /// Loads this unit's vectors of the norm's scales.
    pub fn load_scales(
        &self,
        loaded: &mut Array<Vector<E, N>>,
        #[comptime] plan: HalfRowsBlueprint,
    ) {
        if comptime!(plan.norm == NormKind::Rms) {
            #[unroll]
            for i in 0..comptime!(plan.vectors()) {
                let mut at = vector_of(i, plan);
                if comptime!(plan.ragged) {
                    at = min(at, self.features / RUN - 1);
                }
                loaded[i] = self.norm.scale[at];
            }
        }
    }

    /// Writes a loaded row of x to the columns of `halves`. All units of the cube call it. Returns
    /// the factor that undoes the scaling.
    #[allow(clippy::too_many_arguments)]
    pub fn pack(
        &self,
        row: usize,
        loaded: &Array<Vector<E, N>>,
        scales: &Array<Vector<E, N>>,
        halves: &mut [Words],
        scratch: &mut Shared<[f32]>,
        #[comptime] from: usize,
        #[comptime] plan: HalfRowsBlueprint,
    ) -> f32 {
        let (values, squares) = self.values(loaded, scales, from, plan);
        let mut largest = 0.0f32;
        #[unroll]
        for i in 0..comptime!(plan.vectors() * RUN) {
            largest = max(largest, values[i].abs());
        }
        let (factor, unscale) = self.factors(largest, squares, scratch, plan);
        #[unroll]
        for i in 0..comptime!(plan.parts) {
            self.pack_part(row, &values, factor, halves, i, plan);
        }
        unscale
    }

    /// Does the same for the steps of this plane, each of which is scaled on its own, without the
    /// factor of the norm: so planes do not wait for each other. Writes the factors that undo the
    /// scaling to `unscales`, [rows, steps], and returns the sum of squares.
    #[allow(clippy::too_many_arguments)]
    pub fn pack_steps(
        &self,
        row: usize,
        loaded: &Array<Vector<E, N>>,
        scales: &Array<Vector<E, N>>,
        halves: &mut [Words],
        unscales: &mut Shared<[f32]>,
        #[comptime] from: usize,
        #[comptime] plan: HalfRowsBlueprint,
    ) -> f32 {
        let (values, squares) = self.values(loaded, scales, from, plan);
        #[unroll]
        for i in 0..comptime!(plan.parts) {
            let mut largest = 0.0f32;
            #[unroll]
            for e in 0..comptime!(2 * RUN) {
                largest = max(largest, values[comptime!(i * 2 * RUN + e)].abs());
            }
            let (scale, unscale) = power_of_two(max_in_plane(largest, PLANE));
            self.pack_part(row, &values, scale, halves, i, plan);
            if lane() == 0 {
                let step = comptime!(i * plan.planes()) + plane();
                unscales[row * comptime!(plan.steps()) + step] = unscale;
            }
        }
        if comptime!(plan.norm == NormKind::Rms) {
            sum_in_plane(squares, PLANE)
        } else {
            squares
        }
    }

    /// Returns the numbers of this unit's parts, by the scales of the norm, and the sum of the
    /// squares before it.
    fn values(
        &self,
        loaded: &Array<Vector<E, N>>,
        scales: &Array<Vector<E, N>>,
        #[comptime] from: usize,
        #[comptime] plan: HalfRowsBlueprint,
    ) -> (Array<f32>, f32) {
        let mut values = Array::<f32>::new(comptime!(plan.vectors() * RUN));
        let mut squares = 0.0f32;
        #[unroll]
        for i in 0..comptime!(plan.vectors()) {
            #[unroll]
            for e in 0..RUN {
                let mut value = f32::cast_from(loaded[comptime!(from + i)].extract(e));
                if comptime!(plan.ragged) {
                    // Zeros past the last feature.
                    let inside = vector_of(i, plan) < self.features / RUN;
                    value = select(inside, value, 0.0f32);
                }
                if comptime!(plan.norm == NormKind::Rms) {
                    squares += value * value;
                    value *= f32::cast_from(scales[i].extract(e));
                }
                values[comptime!(i * RUN + e)] = value;
            }
        }
        (values, squares)
    }

    /// Writes part `i` of this unit, multiplied by a factor.
    fn pack_part(
        &self,
        row: usize,
        values: &Array<f32>,
        factor: f32,
        halves: &mut [Words],
        #[comptime] i: usize,
        #[comptime] plan: HalfRowsBlueprint,
    ) {
        let columns = self.rows * plan.halves;
        let parts = self.features.div_ceil(FEATURES) * comptime!(GROUPS * MEMBERS);
        // Whole planes have work or none.
        let part = comptime!(i * plan.units as usize) + UNIT_POS as usize;
        if part < parts {
            let (group, member) = (part / MEMBERS, part % MEMBERS);
            let mut rest = Array::<f32>::new(comptime!(2 * RUN));
            #[unroll]
            for e in 0..comptime!(2 * RUN) {
                rest[e] = values[comptime!(i * 2 * RUN + e)] * factor;
            }
            #[unroll]
            for half in 0..comptime!(plan.halves) {
                let column = row * comptime!(plan.halves) + half;
                let first = group / GROUPS * VECTORS * columns + column;
                let at = (first + group % GROUPS * columns) * MEMBERS + member;
                let (vector, rounded) = halves_of(&rest, plan);
                halves[at] = vector;
                let sums = sums_of(&rounded, plan);
                if part % 8 == 0 {
                    let at = (first + GROUPS * columns) * MEMBERS + group % GROUPS / 2;
                    halves[at] = sums;
                }
                #[unroll]
                for e in 0..comptime!(2 * RUN) {
                    rest[e] -= rounded[e];
                }
            }
        }
    }

    /// Returns the factor of a row with its norm, and the one that undoes its scaling, from the
    /// largest magnitude and the sum of squares of each unit.
    fn factors(
        &self,
        largest: f32,
        squares: f32,
        scratch: &mut Shared<[f32]>,
        #[comptime] plan: HalfRowsBlueprint,
    ) -> (f32, f32) {
        let planes = comptime!((plan.units / PLANE) as usize);
        let has_norm = comptime!(plan.norm == NormKind::Rms);
        let largest = max_in_plane(largest, PLANE);
        let mut squares = squares;
        if comptime!(has_norm) {
            squares = sum_in_plane(squares, PLANE);
        }
        // Another unit may still read those of the row before.
        sync_cube();
        if lane() == 0 {
            scratch[plane()] = largest;
            if comptime!(has_norm) {
                scratch[planes + plane()] = squares;
            }
        }
        sync_cube();
        let mut largest = 0.0f32;
        let mut squares = 0.0f32;
        #[unroll]
        for plane in 0..planes {
            largest = max(largest, scratch[plane]);
            if comptime!(has_norm) {
                squares += scratch[comptime!(planes + plane)];
            }
        }
        let mut norm = 1.0f32;
        if comptime!(has_norm) {
            norm = rms_factor(squares, self.features, self.epsilon);
        }
        let (scale, unscale) = power_of_two(largest * norm);
        (norm * scale, unscale)
    }
}

/// Returns the factor of an RMS norm.
#[cube]
pub(crate) fn rms_factor(squares: f32, features: usize, epsilon: f32) -> f32 {
    let mean = squares / f32::cast_from(features as u32);
    1.0f32 / (mean + epsilon).sqrt()
}

/// Returns the power of two that scales the largest magnitude into [2^14, 2^15), and its inverse.
#[cube]
fn power_of_two(largest: f32) -> (f32, f32) {
    let exponent = u32::reinterpret(largest) >> 23u32;
    let field = min(268u32 - exponent, 253u32);
    let scale = f32::reinterpret(field << 23u32);
    (scale, f32::reinterpret((254u32 - field) << 23u32))
}

/// Returns this unit's vector number `i` of a row: the runs of its parts, one part after the other.
#[cube]
fn vector_of(#[comptime] i: usize, #[comptime] plan: HalfRowsBlueprint) -> usize {
    let part = comptime!(i / 2 * plan.units as usize) + UNIT_POS as usize;
    let run = first_of_run(comptime!(i % 2).runtime(), part % MEMBERS);
    (part / MEMBERS * GROUP + run) / RUN
}

/// Rounds eight numbers to halves: a vector of four pairs, and the rounded numbers.
#[cube]
fn halves_of(values: &Array<f32>, #[comptime] plan: HalfRowsBlueprint) -> (Words, Array<f32>) {
    let mut rounded = Array::<f32>::new(comptime!(2 * RUN));
    let mut vector = Words::new(0u32);
    #[unroll]
    for pair in 0..4usize {
        // The codes of odd pairs may be 16 times as large.
        let larger = comptime!(plan.layout.odd_pairs_are_larger() && pair % 2 == 1);
        let factor = comptime!(if larger { 0.0625f32 } else { 1.0 });
        let mut halves = Vector::<f16, Const<2>>::new(f16::new(0.0));
        #[unroll]
        for i in 0..2usize {
            let at = comptime!(2 * pair + i);
            let number = f32::cast_from(f16::cast_from(values[at]));
            rounded[at] = number;
            halves.insert(i, f16::cast_from(number * factor));
        }
        vector.insert(pair, u32::reinterpret(halves));
    }
    (vector, rounded)
}

/// Returns the vector of the sums of 64 features, of which each of eight neighbouring units passes
/// eight.
#[cube]
fn sums_of(rounded: &Array<f32>, #[comptime] plan: HalfRowsBlueprint) -> Words {
    let factor = comptime!(sum_factor(plan.layout) / SUM_UNIT);
    let mut runs = Array::<f32>::new(2usize);
    #[unroll]
    for run in 0..2usize {
        let mut sum = 0.0f32;
        #[unroll]
        for i in 0..RUN {
            sum += rounded[comptime!(run * RUN + i)];
        }
        runs[run] = group_sum(sum, comptime!(MEMBERS as u32)) * factor;
    }
    let mut vector = Words::new(0u32);
    if comptime!(plan.layout.scales == Scales::Bytes) {
        let next = plane_shuffle_xor(runs[0], comptime!(MEMBERS as u32));
        let after = plane_shuffle_xor(runs[1], comptime!(MEMBERS as u32));
        let (upper, lower) = upper_and_lower(runs[0], runs[1]);
        vector.insert(0usize, upper);
        vector.insert(2usize, lower);
        let (upper, lower) = upper_and_lower(next, after);
        vector.insert(1usize, upper);
        vector.insert(3usize, lower);
    } else {
        let sum = runs[0] + runs[1];
        let next = plane_shuffle_xor(sum, comptime!(MEMBERS as u32));
        let (upper, lower) = upper_and_lower(sum, next);
        vector.insert(0usize, upper);
        vector.insert(1usize, lower);
    }
    vector
}

/// Returns two numbers as two halves each.
#[cube]
fn upper_and_lower(first: f32, second: f32) -> (u32, u32) {
    let mut numbers = Array::<f32>::new(2usize);
    numbers[0] = first;
    numbers[1] = second;
    let mut uppers = Vector::<f16, Const<2>>::new(f16::new(0.0));
    let mut lowers = Vector::<f16, Const<2>>::new(f16::new(0.0));
    #[unroll]
    for i in 0..2usize {
        let upper = f16::cast_from(numbers[i]);
        uppers.insert(i, upper);
        lowers.insert(i, f16::cast_from(numbers[i] - f32::cast_from(upper)));
    }
    (u32::reinterpret(uppers), u32::reinterpret(lowers))
}

/// The factor of the sums: a weight is scale (code - zero point) or scale code + minimum.
fn sum_factor(layout: BlockLayout) -> f32 {
    match layout.zero_point {
        0 => 1.0,
        zero_point => -(zero_point as f32),
    }
}
