//! K rows or V rows in floats from codes, for attention of many queries.

use cubecl::prelude::*;

use crate::backends::cube::parts::row_codes::{PER_WORD, code_at};

/// Writes the first `len` positions of every batch head to `out` [B, H_kv, `len`, d], a unit for
/// each of the words [B, H_kv, S_max, d/4]. `scales` are [B, H_kv, S_max].
#[cube(launch_unchecked, address_type = "dynamic")]
pub(crate) fn dequantize_rows_kernel<E: Float, N: Size>(
    words: &[u32],
    scales: &[f32],
    out: &mut [Vector<E, N>],
    rows: u32,
    len: u32,
    capacity: u32,
    #[comptime] of_row: usize,
    #[define(E)] _type: ElemType,
) {
    let at = CUBE_POS * CUBE_DIM as usize + UNIT_POS as usize;
    let row = at / of_row;
    if row >= rows as usize {
        terminate!();
    }
    let (head, position) = (row / len as usize, row % len as usize);
    let from = head * capacity as usize + position;
    let word = words[from * of_row + at % of_row];
    let scale = scales[from];
    let mut four = Vector::<E, N>::new(E::from_int(0));
    #[unroll]
    for i in 0..PER_WORD {
        four.insert(i, E::cast_from(code_at(word, comptime!(i as u32)) * scale));
    }
    out[at] = four;
}
