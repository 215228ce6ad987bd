//! Few rows of x: a dot product of each with every weight row.
//!
//! The rows of a tile are put side by side, group by group of blocks, so that a group of weights is
//! decoded once for all of them.

use std::cell::Cell;

use super::activations::HALF;
use super::formats::{Affine, Format};
use super::{Activations, RUN, Task};
use crate::backends::flex::simd::integers::Integers;
use crate::backends::flex::simd::{CACHE_LINE, MAX_LANES};

/// Weight rows that are multiplied at once with a single row of x. They share its loads, and the
/// addition of the lanes.
const STREAMS: usize = 4;

/// Vectors whose lanes are added at once.
const SUMS: usize = 4;

/// Rows of a tile, at most, with the registers of the widest vectors.
const MAX_ROWS: usize = 6;

/// Bytes by which weights are fetched ahead, at least.
const AHEAD: usize = 6144;

/// The largest group of blocks.
const MAX_BYTES: usize = 210;

thread_local! {
    static TILE: Cell<Tile> = Cell::default();
}

/// Multiplies rows with weight rows, each of which is read once for a tile.
#[inline(always)]
pub(super) fn multiply<S: Integers, F: Format>(simd: S, task: Task<'_>) {
    let most = if S::LANES == MAX_LANES { MAX_ROWS } else { 4 };
    let count = task.rows.len();
    let tiles = count.div_ceil(most);
    // Taken and put back: a closure would not be compiled for the instruction set.
    let mut tile = TILE.take();
    let mut first = 0;
    for index in 0..tiles {
        let rows = (count - first).div_ceil(tiles - index);
        tile.fill::<S, F>(simd, task.x, task.rows.start + first, rows);
        let outputs = task.sums.len() / count;
        let sums = &mut task.sums[first * outputs..(first + rows) * outputs];
        let weight = Weight {
            bytes: task.weight.bytes,
            row_bytes: task.weight.format.row_bytes(task.x.inputs),
        };
        match rows {
            1 => multiply_tile::<S, F, 1, STREAMS>(simd, &tile, weight, sums),
            2 => multiply_tile::<S, F, 2, 1>(simd, &tile, weight, sums),
            3 => multiply_tile::<S, F, 3, 1>(simd, &tile, weight, sums),
            5 if S::LANES == MAX_LANES => multiply_tile::<S, F, 5, 1>(simd, &tile, weight, sums),
            MAX_ROWS if S::LANES == MAX_LANES => {
                multiply_tile::<S, F, MAX_ROWS, 1>(simd, &tile, weight, sums);
            }
            _ => multiply_tile::<S, F, 4, 1>(simd, &tile, weight, sums),
        }
        first += rows;
    }
    TILE.set(tile);
}

/// Writes the products of M rows with all weight rows, N at a time, to `sums` [M, outputs].
#[inline(always)]
fn multiply_tile<S: Integers, F: Format, const M: usize, const N: usize>(
    simd: S,
    x: &Tile,
    mut weight: Weight<'_>,
    sums: &mut [f32],
) {
    let outputs = sums.len() / M;
    let whole = weight.row_bytes >= F::BYTES;
    let mut output = 0;
    while N > 1 && whole && output + N <= outputs {
        let found = products::<S, F, M, N>(simd, x, &weight);
        for (row, found) in found.iter().enumerate() {
            sums[row * outputs + output..][..N].copy_from_slice(found);
        }
        weight.skip(N);
        output += N;
    }
    let mut padded = [0; MAX_BYTES];
    while output < outputs {
        let row = match whole {
            true => weight.first(),
            false => weight.padded(&mut padded[..F::BYTES]),
        };
        let found = products::<S, F, M, 1>(simd, x, &row);
        for (row, [found]) in found.into_iter().enumerate() {
            sums[row * outputs + output] = found;
        }
        weight.skip(1);
        output += 1;
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

/// Rows of x side by side. A last group that is not whole begins within the group before it, and
/// has scales of 0 there.
#[derive(Default)]
struct Tile {
    /// [groups, rows, weights], in the order of the codes of weights.
    codes: Vec<u8>,
    /// [groups, rows, runs].
    scales: Vec<f32>,
    /// [groups, rows, runs of the format].
    sums: Vec<f32>,
}

/// The x of a group for some rows.
struct Group<'a> {
    codes: &'a [u8],
    scales: &'a [f32],
    sums: &'a [f32],
}

impl Tile {
    /// Takes `rows` rows from `first` on.
    #[inline(always)]
    fn fill<S: Integers, F: Format>(
        &mut self,
        simd: S,
        x: &Activations<'_>,
        first: usize,
        rows: usize,
    ) {
        let (runs, parts) = (x.inputs / RUN, F::WEIGHTS / RUN);
        let halved = F::halves(simd, &[0; MAX_BYTES]).is_some();
        self.codes.clear();
        self.scales.clear();
        self.sums.clear();
        for group in 0..runs.div_ceil(parts) {
            // x is padded, so a single group is whole.
            let whole = (group + 1) * parts <= runs || group == 0;
            let run = if whole { group * parts } else { runs - parts };
            let at = |run: usize| run * RUN / F::RUN;
            for row in first..first + rows {
                let codes = &x.codes(row)[run * RUN..][..F::WEIGHTS];
                match (halved, whole) {
                    (false, _) => self.codes.extend_from_slice(codes),
                    (true, true) => {
                        let halves = &x.halves(row)[run * RUN..][..F::WEIGHTS];
                        self.codes.extend_from_slice(halves);
                    }
                    (true, false) => {
                        for half in 0..2 {
                            let halves = codes.chunks_exact(HALF).skip(half).step_by(2);
                            halves.for_each(|half| self.codes.extend_from_slice(half));
                        }
                    }
                }
                let scales = self.scales.len();
                let sums = self.sums.len();
                self.scales
                    .extend_from_slice(&x.scales(row)[run..run + parts]);
                let of_runs = &x.sums(row, F::RUN)[at(run)..at(run + parts)];
                self.sums.extend_from_slice(of_runs);
                if !whole {
                    let twice = group * parts - run;
                    self.scales[scales..scales + twice].fill(0.0);
                    self.sums[sums..sums + at(twice)].fill(0.0);
                }
            }
        }
    }

    /// Returns the groups of `rows` rows.
    #[inline(always)]
    fn groups<F: Format>(&self, rows: usize) -> impl Iterator<Item = Group<'_>> {
        let codes = self.codes.chunks_exact(rows * F::WEIGHTS);
        let scales = self.scales.chunks_exact(rows * (F::WEIGHTS / RUN));
        let sums = self.sums.chunks_exact(rows * (F::WEIGHTS / F::RUN));
        let groups = codes.zip(scales).zip(sums);
        groups.map(|((codes, scales), sums)| Group {
            codes,
            scales,
            sums,
        })
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

/// Returns the products of M rows of x with the first N weight rows.
#[inline(always)]
fn products<S: Integers, F: Format, const M: usize, const N: usize>(
    simd: S,
    x: &Tile,
    weight: &Weight<'_>,
) -> [[f32; N]; M] {
    let mut partial = [Partial::<S, M> {
        products: [[simd.splat(0.0); 2]; M],
        constants: [simd.four_splat(0.0); M],
    }; N];
    let row_bytes = weight.row_bytes;
    // From the start of a later tile on.
    let ahead = AHEAD.next_multiple_of(N * row_bytes);
    for (index, x) in x.groups::<F>(M).enumerate() {
        for line in 0..(N * F::BYTES).div_ceil(CACHE_LINE) {
            let at = index * N * F::BYTES + line * CACHE_LINE;
            simd.prefetch(weight.bytes, ahead + at);
        }
        let start = (index * F::BYTES).min(row_bytes - F::BYTES);
        for n in 0..N {
            let group = weight.group(n, start, F::BYTES);
            add_group::<S, F, M>(simd, group, &x, &mut partial[n]);
        }
    }
    let mut found = [[0.0; N]; M];
    let mut first = 0;
    while first < M * N {
        let mut products = [simd.splat(0.0); SUMS];
        let mut constants = [simd.four_splat(0.0); SUMS];
        let count = (M * N - first).min(SUMS);
        for i in 0..count {
            let (m, n) = ((first + i) / N, (first + i) % N);
            let [even, odd] = partial[n].products[m];
            products[i] = simd.add(even, odd);
            constants[i] = partial[n].constants[m];
        }
        let (products, constants) = (simd.sums(products), simd.four_sums(constants));
        for i in 0..count {
            found[(first + i) / N][(first + i) % N] = products[i] + constants[i];
        }
        first += count;
    }
    found
}

/// Adds the products of M rows with a group of weights.
#[inline(always)]
fn add_group<S: Integers, F: Format, const M: usize>(
    simd: S,
    group: &[u8],
    x: &Group<'_>,
    partial: &mut Partial<S, M>,
) {
    let Affine { d, e } = F::affine(simd, group);
    let (parts, fours) = (F::WEIGHTS / RUN, F::WEIGHTS / F::RUN / 4);
    // d times the scales of x.
    let mut scales = [d; M];
    for m in 0..M {
        let of_x = &x.scales[m * parts..][..parts];
        let sums = &x.sums[m * 4 * fours..][..4 * fours];
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
            let x = &x.codes[m * F::WEIGHTS..][..F::WEIGHTS];
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
            let x = &x.codes[m * F::WEIGHTS..][..F::WEIGHTS];
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
