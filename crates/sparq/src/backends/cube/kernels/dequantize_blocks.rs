//! Floats of packed weights: a whole matrix for products with many rows, or the rows of an
//! embedding table.

use cubecl::prelude::*;

use crate::backends::cube::parts::blocks::{
    BlockLayout, FEATURES, GROUP, MEMBERS, ROWS, RUN, first_of_run, weights_of_member,
};

/// Writes rows of a matrix of packed weights to `out` [rows, features], a unit for the eight
/// weights of a group that one lane of a tile holds. `indices` are the rows if `indexed`; otherwise
/// they are the first ones, in order.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(crate) fn dequantize_blocks_kernel<E: Float, I: Int, N: Size>(
    tiles: &[u32],
    indices: &[I],
    out: &mut [Vector<E, N>],
    rows: u32,
    outputs: u32,
    features: u32,
    #[comptime] indexed: bool,
    #[comptime] layout: BlockLayout,
    #[define(E, I)] _types: [ElemType; 2],
) {
    let features = features as usize;
    let of_row = features / GROUP * MEMBERS;
    let at = CUBE_POS * CUBE_DIM as usize + UNIT_POS as usize;
    let (to, part) = (at / of_row, at % of_row);
    if to >= rows as usize {
        terminate!();
    }
    let mut row = to;
    if comptime!(indexed) {
        row = min(u32::cast_from(indices[to]), outputs - 1) as usize;
    }
    let (group, member) = (part / MEMBERS, part % MEMBERS);
    let groups = comptime!(FEATURES / GROUP);
    let tile = row / ROWS * features.div_ceil(FEATURES) + group / groups;
    let weights = weights_of_member(
        tiles,
        tile * comptime!(layout.words()),
        row % ROWS,
        group % groups,
        member,
        layout,
    );
    #[unroll]
    for run in 0..2usize {
        let mut four = Vector::<E, N>::new(E::from_int(0));
        #[unroll]
        for i in 0..RUN {
            four.insert(i, E::cast_from(weights[comptime!(run * RUN + i)]));
        }
        let first = to * features + group * GROUP + first_of_run(run.runtime(), member);
        out[first / RUN] = four;
    }
}
