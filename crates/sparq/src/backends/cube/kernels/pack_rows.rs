//! Rows of x as the halves that [`linear_blocks`](super::linear_blocks) multiplies, where its cubes
//! would take longer to make them each for itself.

use cubecl::prelude::*;

use crate::backends::cube::parts::blocks::Words;
use crate::backends::cube::parts::half_rows::{FloatRows, HalfRowsBlueprint};
use crate::backends::cube::parts::projection::NormWeights;

/// Normalizes and packs the rows of x [rows, in], a cube for each. `unscales` [rows] are the
/// factors that undo their scaling.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(crate) fn pack_rows_kernel<E: Float, N: Size>(
    x: &[Vector<E, N>],
    norm: &NormWeights<Vector<E, N>>,
    halves: &mut [Words],
    unscales: &mut [f32],
    rows: u32,
    features: u32,
    epsilon: f32,
    #[comptime] plan: HalfRowsBlueprint,
    #[define(E)] _type: ElemType,
) {
    let row = CUBE_POS;
    if row >= rows as usize {
        terminate!();
    }
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(plan.scratch()));
    let floats = FloatRows::<E, N>::new(x, norm, rows, features, epsilon);
    let mut loaded = Array::<Vector<E, N>>::new(comptime!(plan.vectors()));
    let mut scales = Array::<Vector<E, N>>::new(comptime!(plan.vectors()));
    floats.load(row, &mut loaded, 0usize, plan);
    floats.load_scales(&mut scales, plan);
    let unscale = floats.pack(row, &loaded, &scales, halves, &mut scratch, 0usize, plan);
    if UNIT_POS == 0 {
        unscales[row] = unscale;
    }
}
