//! Few rows of x: a dot product of each with every weight row.

use super::activations::{FOUR, HALF};
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
const AHEAD: usize = 6144;

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
    if count == 1 && weight.row_bytes >= F::BYTES {
        let x = Rows::<1>::new::<F>(x, rows.start);
        while sums.len() >= STREAMS {
            tile::<S, F, 1, STREAMS>(simd, &x, &weight, sums);
            sums = &mut sums[STREAMS..];
            weight.skip(STREAMS);
        }
    }
    let mut padded = [0; MAX_BYTES];
    for sums in sums.chunks_exact_mut(count) {
        let mut row = 0;
        while row < count {
            let (first, sums) = (rows.start + row, &mut sums[row..]);
            let weight = match weight.row_bytes < F::BYTES {
                true => weight.padded(&mut padded[..F::BYTES]),
                false => weight.first(),
            };
            row += match sums.len() {
                1 => tile::<S, F, 1, 1>(simd, &Rows::new::<F>(x, first), &weight, sums),
                2 | 3 => tile::<S, F, 2, 1>(simd, &Rows::new::<F>(x, first), &weight, sums),
                _ => tile::<S, F, 4, 1>(simd, &Rows::new::<F>(x, first), &weight, sums),
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

impl<'a> Weight<'a> {
    #[inline(always)]
    fn skip(&mut self, rows: usize) {
        self.bytes = &self.bytes[rows * self.row_bytes..];
    }

    #[inline(always)]
    fn first(&self) -> Self {
        Self { ..*self }
    }

    /// Returns the first row as a whole group. Blocks of zeros have d = e = 0.
    #[inline(always)]
    fn padded<'b>(&self, group: &'b mut [u8]) -> Weight<'b> {
        group[..self.row_bytes].copy_from_slice(&self.bytes[..self.row_bytes]);
        Weight {
            row_bytes: group.len(),
            bytes: group,
        }
    }

    /// Returns `len` bytes of a row.
    #[inline(always)]
    fn group(&self, row: usize, at: usize, len: usize) -> &'a [u8] {
        &self.bytes[row * self.row_bytes + at..][..len]
    }
}

/// M rows of x.
struct Rows<'a, const M: usize> {
    x: Group<'a, M>,
    /// The runs of the inputs.
    runs: usize,
    /// The last four runs if the last group is incomplete.
    last: [Last; M],
}

/// The x of a group, or of all groups.
struct Group<'a, const M: usize> {
    codes: [&'a [u8]; M],
    /// The codes in halves.
    halves: [&'a [u8]; M],
    scales: [&'a [f32]; M],
    sums: [&'a [f32]; M],
}

/// Four runs of x.
#[derive(Clone, Copy)]
struct Last {
    halves: [u8; FOUR * RUN],
    /// 0 for runs of whole groups.
    scales: [f32; FOUR],
    sums: [f32; FOUR],
}

impl<'a, const M: usize> Rows<'a, M> {
    #[inline(always)]
    fn new<F: Format>(x: &'a Activations<'_>, first: usize) -> Self {
        let mut rows = Rows {
            x: Group::empty(),
            runs: x.inputs / RUN,
            last: [Last {
                halves: [0; FOUR * RUN],
                scales: [0.0; FOUR],
                sums: [0.0; FOUR],
            }; M],
        };
        let incomplete = rows.runs % FOUR;
        for m in 0..M {
            let (codes, scales) = (x.codes(first + m), x.scales(first + m));
            let sums = x.sums(first + m, F::RUN);
            rows.x.codes[m] = codes;
            rows.x.halves[m] = x.halves(first + m);
            rows.x.scales[m] = scales;
            rows.x.sums[m] = sums;
            // Larger blocks than those of 32 weights are groups of their own.
            if incomplete == 0 || rows.runs < FOUR {
                continue;
            }
            let last = &mut rows.last[m];
            for i in FOUR - incomplete..FOUR {
                let run = rows.runs - FOUR + i;
                (last.scales[i], last.sums[i]) = (scales[run], sums[run]);
            }
            let codes = &codes[(rows.runs - FOUR) * RUN..][..FOUR * RUN];
            for (i, half) in codes.chunks_exact(HALF).enumerate() {
                let at = (i % 2 * FOUR + i / 2) * HALF;
                last.halves[at..at + HALF].copy_from_slice(half);
            }
        }
        rows
    }

    /// Returns the x of a group.
    #[inline(always)]
    fn group<F: Format>(&self, index: usize) -> Group<'_, M> {
        let run = index * (F::WEIGHTS / RUN);
        let mut group = Group::empty();
        for m in 0..M {
            group.codes[m] = &self.x.codes[m][run * RUN..];
            group.halves[m] = &self.x.halves[m][run * RUN..];
            group.scales[m] = &self.x.scales[m][run..];
            group.sums[m] = &self.x.sums[m][run * (RUN / F::RUN)..];
        }
        group
    }

    /// Returns the x of the last four runs.
    #[inline(always)]
    fn last(&self) -> Group<'_, M> {
        let mut group = Group::empty();
        for m in 0..M {
            let last = &self.last[m];
            group.codes[m] = &self.x.codes[m][(self.runs - FOUR) * RUN..];
            group.halves[m] = &last.halves;
            group.scales[m] = &last.scales;
            group.sums[m] = &last.sums;
        }
        group
    }
}

impl<const M: usize> Group<'_, M> {
    #[inline(always)]
    fn empty() -> Self {
        Group {
            codes: [&[]; M],
            halves: [&[]; M],
            scales: [&[]; M],
            sums: [&[]; M],
        }
    }
}

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
    x: &Rows<'_, M>,
    weight: &Weight<'_>,
    sums: &mut [f32],
) -> usize {
    let mut partial = [Partial::<S, M> {
        products: [[simd.splat(0.0); 2]; M],
        constants: [simd.four_splat(0.0); M],
    }; N];
    let row_bytes = weight.row_bytes;
    // From the start of a later tile on.
    let ahead = AHEAD.next_multiple_of(N * row_bytes);
    for index in 0..row_bytes.div_ceil(F::BYTES) {
        for line in 0..(N * F::BYTES).div_ceil(CACHE_LINE) {
            let at = index * N * F::BYTES + line * CACHE_LINE;
            simd.prefetch(weight.bytes, ahead + at);
        }
        // The last group may begin within the group before it.
        let (start, end) = (index * F::BYTES, (index + 1) * F::BYTES);
        let (start, x) = match end <= row_bytes {
            true => (start, x.group::<F>(index)),
            false => (row_bytes - F::BYTES, x.last()),
        };
        for n in 0..N {
            let group = weight.group(n, start, F::BYTES);
            add_group::<S, F, M>(simd, group, &x, &mut partial[n]);
        }
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
    group: &[u8],
    x: &Group<'_, M>,
    partial: &mut Partial<S, M>,
) {
    let Affine { d, e } = F::affine(simd, group);
    let (parts, fours) = (F::WEIGHTS / RUN, F::WEIGHTS / F::RUN / 4);
    // d times the scales of x.
    let mut scales = [d; M];
    for m in 0..M {
        let (of_x, sums) = (&x.scales[m][..parts], &x.sums[m][..4 * fours]);
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
    if let Some(halves) = F::halves(simd, group) {
        for m in 0..M {
            let x = &x.halves[m][..F::WEIGHTS];
            let first = F::products(simd, simd.zeros(), halves[0], simd.load_bytes(x));
            let x = simd.load_bytes(&x[F::WEIGHTS / 2..]);
            let products = F::products(simd, first, halves[1], x);
            let scale = simd.spread_four(scales[m][0], 0);
            let sum = &mut partial.products[m][0];
            *sum = simd.mul_add(simd.to_floats(products), scale, *sum);
        }
        return;
    }
    for vector in 0..parts / S::PARTS {
        let codes = F::codes(simd, group, vector);
        let (part, step) = F::place::<S>(vector);
        for m in 0..M {
            let x = &x.codes[m][..F::WEIGHTS];
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
