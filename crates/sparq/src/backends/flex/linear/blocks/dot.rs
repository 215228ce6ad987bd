//! Few rows of x: a dot product of each with every weight row.

use super::formats::{Affine, Format};
use super::{Activations, RUN, Task};
use crate::backends::flex::simd::CACHE_LINE;
use crate::backends::flex::simd::integers::Integers;

/// Weight rows that are multiplied at once with a single row of x. They share its loads, and the
/// addition of the lanes.
const STREAMS: usize = 4;

/// The most sums of a tile.
const MAX_TILE: usize = 4;

/// Bytes by which weights are fetched ahead, at least.
const AHEAD: usize = 2048;

/// The largest group of blocks.
const MAX_BYTES: usize = 210;

/// Multiplies rows with weight rows, each of which stays in the L1 cache meanwhile.
#[inline(always)]
pub(super) fn multiply<S: Integers, F: Format>(simd: S, task: Task<'_>) {
    let Task {
        x,
        rows,
        weight,
        mut sums,
    } = task;
    let mut weight = Weight {
        bytes: weight.bytes,
        row_bytes: weight.format.row_bytes(x.inputs),
    };
    let count = rows.len();
    while count == 1 && sums.len() >= STREAMS {
        tile::<S, F, 1, STREAMS>(simd, x, rows.start, &weight, sums);
        sums = &mut sums[STREAMS..];
        weight.skip(STREAMS);
    }
    for sums in sums.chunks_exact_mut(count) {
        let mut row = 0;
        while row < count {
            let (first, sums) = (rows.start + row, &mut sums[row..]);
            row += match sums.len() {
                1 => tile::<S, F, 1, 1>(simd, x, first, &weight, sums),
                2 | 3 => tile::<S, F, 2, 1>(simd, x, first, &weight, sums),
                _ => tile::<S, F, 4, 1>(simd, x, first, &weight, sums),
            };
        }
        weight.skip(1);
    }
}

/// Consecutive weight rows.
struct Weight<'a> {
    bytes: &'a [u8],
    row_bytes: usize,
}

impl Weight<'_> {
    #[inline(always)]
    fn skip(&mut self, rows: usize) {
        self.bytes = &self.bytes[rows * self.row_bytes..];
    }

    /// Returns the bytes from `at` on of a row, at most `len`.
    #[inline(always)]
    fn part(&self, row: usize, at: usize, len: usize) -> &[u8] {
        let len = len.min(self.row_bytes - at);
        &self.bytes[row * self.row_bytes + at..][..len]
    }
}

/// M rows of x.
struct Rows<'a, const M: usize> {
    codes: [&'a [u8]; M],
    scales: [&'a [f32]; M],
    sums: [&'a [f32]; M],
}

/// A group of blocks of a weight row.
struct Group<'a> {
    bytes: &'a [u8],
    /// The place of its first run in a row of x.
    run: usize,
    /// The number of its last runs that are added. The others are in the sums already.
    /// [`ALL`] unless the group is the last one of a row.
    added: usize,
}

/// The runs of a group of blocks of 32 weights. Larger blocks are groups of their own.
const ALL: usize = 4;

/// The sums of M rows of x with a weight row.
#[derive(Clone, Copy)]
struct Partial<S: Integers, const M: usize> {
    /// d times products; two, since a sum waits for its last addition.
    products: [[S::F; 2]; M],
    /// e times sums of x.
    constants: [S::Four; M],
}

/// Writes the products of M rows of x with the first N weight rows, [N, M]. Returns M.
#[inline(always)]
fn tile<S: Integers, F: Format, const M: usize, const N: usize>(
    simd: S,
    x: &Activations<'_>,
    first: usize,
    weight: &Weight<'_>,
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
    let mut partial = [Partial::<S, M> {
        products: [[simd.splat(0.0); 2]; M],
        constants: [simd.four_splat(0.0); M],
    }; N];
    let row_bytes = weight.row_bytes;
    // From the start of a later tile on.
    let ahead = AHEAD.next_multiple_of(N * row_bytes);
    let whole = row_bytes / F::BYTES;
    for index in 0..whole {
        for line in 0..(N * F::BYTES).div_ceil(CACHE_LINE) {
            let at = index * N * F::BYTES + line * CACHE_LINE;
            simd.prefetch(weight.bytes, ahead + at);
        }
        for n in 0..N {
            let group = Group {
                bytes: weight.part(n, index * F::BYTES, F::BYTES),
                run: index * F::WEIGHTS / RUN,
                added: ALL,
            };
            add_group::<S, F, M>(simd, &group, &rows, &mut partial[n]);
        }
    }
    // Only a group of blocks of 32 weights can be incomplete.
    let rest = row_bytes % F::BYTES;
    let blocks = rest * ALL / F::BYTES;
    for n in 0..N {
        if rest == 0 {
            break;
        }
        let mut padded = [0; MAX_BYTES];
        let group = match whole {
            0 => {
                // Blocks of zeros have d = e = 0.
                padded[..rest].copy_from_slice(weight.part(n, 0, rest));
                Group {
                    bytes: &padded[..F::BYTES],
                    run: 0,
                    added: ALL,
                }
            }
            _ => Group {
                bytes: weight.part(n, row_bytes - F::BYTES, F::BYTES),
                run: (whole - 1) * ALL + blocks,
                added: blocks,
            },
        };
        add_group::<S, F, M>(simd, &group, &rows, &mut partial[n]);
    }
    let mut products = [simd.splat(0.0); MAX_TILE];
    let mut constants = [simd.four_splat(0.0); MAX_TILE];
    for n in 0..N {
        for m in 0..M {
            let [even, odd] = partial[n].products[m];
            products[n * M + m] = simd.add(even, odd);
            constants[n * M + m] = partial[n].constants[m];
        }
    }
    let (products, constants) = (simd.sums(products), simd.four_sums(constants));
    for i in 0..M * N {
        sums[i] = products[i] + constants[i];
    }
    M
}

/// Adds the products of M rows with a group of weights.
#[inline(always)]
fn add_group<S: Integers, F: Format, const M: usize>(
    simd: S,
    group: &Group<'_>,
    rows: &Rows<'_, M>,
    partial: &mut Partial<S, M>,
) {
    let Affine { mut d, mut e } = F::affine(simd, group.bytes);
    if group.added < ALL {
        const FACTORS: [f32; 2 * ALL] = [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0];
        let factors = simd.four_load(&FACTORS[group.added..]);
        (d[0], e[0]) = (simd.four_mul(d[0], factors), simd.four_mul(e[0], factors));
    }
    let (parts, fours) = (F::WEIGHTS / RUN, F::WEIGHTS / F::RUN / 4);
    // d times the scales of x.
    let mut scales = [d; M];
    for m in 0..M {
        let of_x = &rows.scales[m][group.run..][..parts];
        let sums = &rows.sums[m][group.run * (RUN / F::RUN)..][..4 * fours];
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
        let codes = F::codes(simd, group.bytes, vector);
        let (part, step) = F::place::<S>(vector);
        for m in 0..M {
            let x = &rows.codes[m][group.run * RUN..][..F::WEIGHTS];
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
