//! Few rows of x: a dot product of each with every weight row.

use super::formats::{Affine, Format};
use super::{Activations, RUN, Task};
use crate::backends::flex::simd::CACHE_LINE;
use crate::backends::flex::simd::integers::Integers;

/// Bytes by which weights are fetched ahead.
const AHEAD: usize = 2048;

/// The largest group of blocks.
const MAX_BYTES: usize = 210;

/// Multiplies rows with weight rows, each of which stays in the L1 cache meanwhile.
#[inline(always)]
pub(super) fn multiply<S: Integers, F: Format>(simd: S, task: Task<'_>) {
    let count = task.rows.len();
    let row_bytes = task.weight.format.row_bytes(task.x.inputs);
    for (output, sums) in task.sums.chunks_exact_mut(count).enumerate() {
        let weight = &task.weight.bytes[output * row_bytes..];
        let mut row = 0;
        while row < count {
            let (first, sums) = (task.rows.start + row, &mut sums[row..]);
            row += match sums.len() {
                1 => tile::<S, F, 1>(simd, task.x, first, weight, row_bytes, sums),
                2 | 3 => tile::<S, F, 2>(simd, task.x, first, weight, row_bytes, sums),
                _ => tile::<S, F, 4>(simd, task.x, first, weight, row_bytes, sums),
            };
        }
    }
}

/// M rows of x.
struct Rows<'a, const M: usize> {
    codes: [&'a [u8]; M],
    scales: [&'a [f32]; M],
    sums: [&'a [f32]; M],
}

/// The sums of M rows of x.
struct Partial<S: Integers, const M: usize> {
    /// d times products; two, since a sum waits for its last addition.
    products: [[S::F; 2]; M],
    /// e times sums of x.
    constants: [S::Four; M],
}

/// Writes the products of M rows of x with the first row of `weight`. Returns M.
#[inline(always)]
fn tile<S: Integers, F: Format, const M: usize>(
    simd: S,
    x: &Activations<'_>,
    first: usize,
    weight: &[u8],
    row_bytes: usize,
    sums: &mut [f32],
) -> usize {
    let mut rows = Rows {
        codes: [&[][..]; M],
        scales: [&[][..]; M],
        sums: [&[][..]; M],
    };
    for m in 0..M {
        rows.codes[m] = x.codes(first + m);
        rows.scales[m] = x.scales(first + m);
        rows.sums[m] = x.sums(first + m, F::RUN);
    }
    let mut partial = Partial::<S, M> {
        products: [[simd.splat(0.0); 2]; M],
        constants: [simd.four_splat(0.0); M],
    };
    let groups = row_bytes / F::BYTES;
    for index in 0..groups {
        let start = index * F::BYTES;
        for line in 0..F::BYTES.div_ceil(CACHE_LINE) {
            simd.prefetch(weight, start + AHEAD + line * CACHE_LINE);
        }
        let group = &weight[start..][..F::BYTES];
        add_group::<S, F, M>(simd, group, &rows, index, &mut partial);
    }
    let rest = &weight[groups * F::BYTES..row_bytes];
    if !rest.is_empty() {
        // Blocks of zeros have d = e = 0.
        let mut padded = [0; MAX_BYTES];
        padded[..rest.len()].copy_from_slice(rest);
        add_group::<S, F, M>(simd, &padded[..F::BYTES], &rows, groups, &mut partial);
    }
    for m in 0..M {
        let products = simd.add(partial.products[m][0], partial.products[m][1]);
        let mut constants = [0.0; 4];
        simd.four_store(partial.constants[m], &mut constants);
        let [a, b, c, d] = constants;
        sums[m] = simd.sum(products) + ((a + b) + (c + d));
    }
    M
}

/// Adds the products of M rows with a group of weights.
#[inline(always)]
fn add_group<S: Integers, F: Format, const M: usize>(
    simd: S,
    group: &[u8],
    rows: &Rows<'_, M>,
    index: usize,
    partial: &mut Partial<S, M>,
) {
    let Affine { d, e } = F::affine(simd, group);
    let (parts, fours) = (F::WEIGHTS / RUN, F::WEIGHTS / F::RUN / 4);
    // d times the scales of x.
    let mut scales = [d; M];
    for m in 0..M {
        let of_x = &rows.scales[m][index * parts..][..parts];
        let sums = &rows.sums[m][index * 4 * fours..][..4 * fours];
        for four in 0..fours {
            let of_x = match F::RUN {
                RUN => simd.four_load(&of_x[4 * four..]),
                _ => simd.four_doubled(&of_x[2 * four..]),
            };
            scales[m][four] = simd.four_mul(d[four], of_x);
            let sums = simd.four_load(&sums[4 * four..]);
            partial.constants[m] = simd.four_mul_add(e[four], sums, partial.constants[m]);
        }
    }
    for vector in 0..parts / S::PARTS {
        let codes = F::codes(simd, group, vector);
        let (part, step) = F::place::<S>(vector);
        for m in 0..M {
            let x = &rows.codes[m][index * F::WEIGHTS..][..F::WEIGHTS];
            let x = match step {
                1 => simd.load_bytes(&x[part * RUN..]),
                _ => simd.load_parts(&x[part * RUN..], step * RUN),
            };
            let products = F::products(simd, simd.zeros(), codes, x);
            let scale = match F::RUN {
                RUN => simd.spread_two(scales[m][part / 4], part % 4, (part + step) % 4),
                _ => simd.spread_four(scales[m][part / 2], part % 2 * 2),
            };
            let sum = &mut partial.products[m][vector % 2];
            *sum = simd.mul_add(simd.to_floats(products), scale, *sum);
        }
    }
}
