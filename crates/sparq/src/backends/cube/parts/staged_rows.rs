//! Rows of x in shared memory, with their norm: the units of a cube share its arithmetic, and a
//! product reads numbers that need no conversion.

use cubecl::prelude::*;

use super::projection::{LinearShape, NormKind, NormWeights};
use super::reduce::cube_sum;

/// Four numbers of a normed row.
pub(crate) type Four = Vector<f32, Const<4>>;

/// The sizes that staging is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct StageBlueprint {
    /// The norm.
    pub norm: NormKind,
    /// Rows of a cube.
    pub rows: usize,
    /// Vectors of a row; 0 if no rows are staged.
    pub vectors: usize,
    /// Units of a cube.
    pub units: u32,
    /// See [`reduce`](super::reduce).
    pub plane: u32,
}

impl StageBlueprint {
    /// Vectors of a row that a unit norms.
    fn each(&self) -> usize {
        self.vectors.div_ceil(self.units as usize)
    }
}

/// Norms the rows of x from `begin` on, [rows, N / 4, vectors]: the first four numbers of all
/// vectors come before their next four, so that neighbouring units read neighbouring banks. Past
/// the last row it norms that again. Ends with a barrier if rows are staged.
#[cube]
pub(crate) fn stage_rows<E: Float, N: Size>(
    x: &[Vector<E, N>],
    norm: &NormWeights<Vector<E, N>>,
    shape: &LinearShape,
    begin: usize,
    #[comptime] plan: StageBlueprint,
) -> Shared<[Four]> {
    let n = N::value();
    let vectors = comptime!(plan.vectors);
    let mut staged = Shared::<[Four]>::new_slice(comptime!((plan.rows * vectors * n / 4).max(1)));
    if comptime!(vectors > 0) {
        let planes = comptime!((plan.units / plan.plane) as usize);
        let mut scratch = Shared::<[f32]>::new_slice(planes);
        let features = f32::cast_from(shape.features);
        #[unroll]
        for r in 0..plan.rows {
            let row = min(begin + r, shape.rows as usize - 1) * vectors;
            let mut own = part_of_unit::<E, N>(x, row, plan);
            if comptime!(plan.norm == NormKind::Layer) {
                let total = sum_of_unit(&own, n, false, plan);
                let mean = cube_sum(total, &mut scratch, plan.units, plan.plane) / features;
                #[unroll]
                for i in 0..comptime!(plan.each() * n) {
                    own[i] -= mean;
                }
            }
            let squares = sum_of_unit(&own, n, true, plan);
            let squares = cube_sum(squares, &mut scratch, plan.units, plan.plane) / features;
            let factor = 1.0f32 / (squares + shape.epsilon).sqrt();
            #[unroll]
            for i in 0..comptime!(plan.each()) {
                let at = vector_of_unit(i, plan);
                if at < vectors {
                    #[unroll]
                    for f in 0..comptime!(n / 4) {
                        let four = scaled_four::<E, N>(&own, norm, factor, at, i, f, plan);
                        staged[comptime!((r * n / 4 + f) * vectors) + at] = four;
                    }
                }
            }
        }
        sync_cube();
    }
    staged
}

/// Returns the number of this unit's vector `i` in a row. It may be past the end.
#[cube]
fn vector_of_unit(#[comptime] i: usize, #[comptime] plan: StageBlueprint) -> usize {
    comptime!(i * plan.units as usize) + UNIT_POS as usize
}

/// Loads this unit's vectors of the row whose first vector is `row`. Past the end of the row it
/// loads its last vector.
#[cube]
fn part_of_unit<E: Float, N: Size>(
    x: &[Vector<E, N>],
    row: usize,
    #[comptime] plan: StageBlueprint,
) -> Array<f32> {
    let n = N::value();
    let mut own = Array::<f32>::new(comptime!(plan.each() * n));
    #[unroll]
    for i in 0..comptime!(plan.each()) {
        let last = comptime!(plan.vectors - 1).runtime();
        let vector = x[row + min(vector_of_unit(i, plan), last)];
        #[unroll]
        for e in 0..n {
            own[comptime!(i * n + e)] = f32::cast_from(vector.extract(e));
        }
    }
    own
}

/// Sums this unit's numbers of a row, in vectors of `n`, or their squares.
#[cube]
fn sum_of_unit(
    own: &Array<f32>,
    #[comptime] n: usize,
    #[comptime] squares: bool,
    #[comptime] plan: StageBlueprint,
) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..comptime!(plan.each()) {
        let known = vector_of_unit(i, plan) < plan.vectors;
        #[unroll]
        for e in 0..n {
            let mut value = own[comptime!(i * n + e)];
            if comptime!(squares) {
                value *= value;
            }
            sum += select(known, value, 0.0f32);
        }
    }
    sum
}

/// Scales four numbers of this unit's vector `i`, which is vector `at` of the row.
#[cube]
fn scaled_four<E: Float, N: Size>(
    own: &Array<f32>,
    norm: &NormWeights<Vector<E, N>>,
    factor: f32,
    at: usize,
    #[comptime] i: usize,
    #[comptime] f: usize,
    #[comptime] plan: StageBlueprint,
) -> Four {
    let n = N::value();
    let scale = norm.scale[at];
    let mut four = Four::new(0.0f32);
    #[unroll]
    for e in 0..4usize {
        let c = comptime!(f * 4 + e);
        let value = own[comptime!(i * n + c)] * factor;
        let mut y = value * f32::cast_from(scale.extract(c));
        if comptime!(plan.norm == NormKind::Layer) {
            y += f32::cast_from(norm.shift[at].extract(c));
        }
        four.insert(e, y);
    }
    four
}
