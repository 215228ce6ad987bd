//! Matrix products of tiles in shared memory, with `ldmatrix` and `mma.m16n8k16`.
//!
//! Lane l of the instruction holds
//! - rows l / 4 and l / 4 + 8 of A and of the result;
//! - columns 2 (l % 4) and its neighbour of A, and both again 8 further on; the same rows of B;
//! - column l / 4 of B, and columns 2 (l % 4) and its neighbour of the result.
//!
//! The result of one product therefore is A of the next: columns 16 j .. 16 j + 16 of two results
//! are block j of A.
//!
//! `ldmatrix` loads four matrices of 8 x 8: lane l passes the address of row l % 8 of matrix l / 8
//! and receives columns 2 (l % 4) and its neighbour of row l / 4 of each.

use cubecl::cmma::{MatrixIdent, MmaDefinition};
use cubecl::prelude::*;

/// Rows of A and of the result.
pub(crate) const ROWS: usize = 16;
/// Columns of B and of the result.
pub(crate) const COLUMNS: usize = 8;
/// Columns of A and rows of B.
pub(crate) const DEPTH: usize = 16;
/// Elements of the vectors of a tile: a row of an 8 x 8 matrix.
pub(crate) const VECTOR: usize = 8;
/// Numbers of a result that a lane holds.
pub(crate) const RESULT: usize = 4;

/// Returns the vectors between the rows of a tile with `width` elements in a row.
///
/// The number is odd, so that the vectors at one place of eight rows are in different banks.
pub(crate) fn row_stride(width: usize) -> usize {
    (width / VECTOR) | 1
}

/// Returns the row and the vector of a 16 x 16 block whose address lane `lane` passes for
/// [`load_rows`] and [`load_transposed`].
#[cube]
pub(crate) fn address_by_rows(lane: u32) -> (u32, u32) {
    (lane % 16, lane / 16)
}

/// Returns the row and the vector of a 16 x 16 block whose address lane `lane` passes for
/// [`load_columns`].
#[cube]
pub(crate) fn address_by_columns(lane: u32) -> (u32, u32) {
    (lane % 8 + lane / 16 * 8, lane / 8 % 2)
}

/// Returns this lane's row of block 0 of the result, its first; the second is 8 further on.
#[cube]
pub(crate) fn result_row(lane: u32) -> u32 {
    lane / 4
}

/// Returns this lane's first column of the result; the second is its neighbour.
#[cube]
pub(crate) fn result_column(lane: u32) -> u32 {
    lane % 4 * 2
}

#[cube]
fn load_four<E: Float, N: Size>(
    tile: &Shared<[Vector<E, N>]>,
    at: usize,
    #[comptime] transpose: bool,
) -> Array<Vector<E, Const<2>>> {
    let product = MmaDefinition::<E, E, f32>::new(ROWS, COLUMNS, DEPTH);
    product.load_matrix::<Vector<E, N>, Const<2>>(
        &tile[at..at + 1],
        MatrixIdent::A,
        4usize,
        transpose,
    )
}

/// Loads the 16 x 16 block of A whose address [`address_by_rows`] gives.
#[cube]
pub(crate) fn load_rows<E: Float, N: Size>(
    tile: &Shared<[Vector<E, N>]>,
    at: usize,
) -> Array<Vector<E, Const<2>>> {
    load_four::<E, N>(tile, at, false)
}

/// Loads two neighbouring B of 16 x 8 from a tile whose rows are their columns, as those of K are.
/// [`address_by_columns`] gives the address.
#[cube]
pub(crate) fn load_columns<E: Float, N: Size>(
    tile: &Shared<[Vector<E, N>]>,
    at: usize,
) -> Array<Vector<E, Const<2>>> {
    load_four::<E, N>(tile, at, false)
}

/// Loads two neighbouring B of 16 x 8 from a tile whose rows are their rows, as those of V are.
/// [`address_by_rows`] gives the address.
#[cube]
pub(crate) fn load_transposed<E: Float, N: Size>(
    tile: &Shared<[Vector<E, N>]>,
    at: usize,
) -> Array<Vector<E, Const<2>>> {
    load_four::<E, N>(tile, at, true)
}

/// Adds the product of block `block` of `a` and of half `half` of the two B in `b` to the four sums
/// from `at` on.
#[cube]
pub(crate) fn multiply<E: Float>(
    sums: &mut Array<f32>,
    a: &Array<Vector<E, Const<2>>>,
    b: &Array<Vector<E, Const<2>>>,
    #[comptime] block: usize,
    #[comptime] half: usize,
    #[comptime] at: usize,
) {
    let product = MmaDefinition::<E, E, f32>::new(ROWS, COLUMNS, DEPTH);
    let mut left = Array::<Vector<E, Const<2>>>::new(4usize);
    #[unroll]
    for x in 0..4usize {
        left[x] = a[comptime!(4 * block + x)];
    }
    let mut right = Array::<Vector<E, Const<2>>>::new(2usize);
    #[unroll]
    for x in 0..2usize {
        right[x] = b[comptime!(2 * half + x)];
    }
    let mut before = Array::<Vector<f32, Const<2>>>::new(2usize);
    #[unroll]
    for x in 0..2usize {
        let mut two = Vector::<f32, Const<2>>::new(0.0f32);
        two.insert(0usize, sums[comptime!(at + 2 * x)]);
        two.insert(1usize, sums[comptime!(at + 2 * x + 1)]);
        before[x] = two;
    }
    let after = product.execute(&left, &right, &before);
    #[unroll]
    for x in 0..2usize {
        sums[comptime!(at + 2 * x)] = after[x].extract(0usize);
        sums[comptime!(at + 2 * x + 1)] = after[x].extract(1usize);
    }
}

/// Returns 2^x, to about 2^-22.
#[cube]
pub(crate) fn power_of_two(x: f32) -> f32 {
    let y: f32;
    gpu_asm!("ex2.approx.ftz.f32 {y}, {x};", y = out(_) y, x = in(_) x, options(nomem));
    y
}

/// Returns the largest of the four lanes that hold a row of a result.
#[cube]
pub(crate) fn max_in_row(value: f32) -> f32 {
    let two = max(value, plane_shuffle_xor(value, 1u32));
    max(two, plane_shuffle_xor(two, 2u32))
}

/// Returns the sum over the four lanes that hold a row of a result.
#[cube]
pub(crate) fn sum_in_row(value: f32) -> f32 {
    let two = value + plane_shuffle_xor(value, 1u32);
    two + plane_shuffle_xor(two, 2u32)
}
