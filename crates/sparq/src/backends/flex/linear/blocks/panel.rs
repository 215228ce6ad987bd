//! Many rows of x: weight rows as lanes.
//!
//! A panel has the codes of as many weight rows as a vector has lanes, four inputs of each in a
//! lane. Its products with the same four elements of a row of x are one instruction, and a sum of
//! integers becomes floats once for a whole run. x is put in the same order: tiles of a few rows,
//! word by word.

use std::cell::Cell;
use std::ops::Range;

use super::formats::{Affine, Format};
use super::{Activations, RUN, Task};
use crate::backends::flex::simd::MAX_LANES;
use crate::backends::flex::simd::integers::Integers;

/// Inputs of a panel at most. It stays in the L1 cache beside a few rows of x.
const MAX_INPUTS: usize = 768;

/// The largest group of blocks.
const MAX_BYTES: usize = 210;

/// Consecutive inputs of a lane.
const WORD: usize = 4;

/// The codes of some weight rows and inputs, with d and e. No vector is in two cache lines.
#[repr(C, align(64))]
struct Panel {
    /// [inputs / 4, lanes, 4].
    codes: [u8; MAX_INPUTS * MAX_LANES],
    /// [runs, lanes].
    d: [f32; MAX_INPUTS / 16 * MAX_LANES],
    /// [runs, lanes].
    e: [f32; MAX_INPUTS / 16 * MAX_LANES],
}

/// Working memory of a thread.
#[derive(Default)]
struct Memory {
    panel: Option<Box<Panel>>,
    tiles: Tiles,
    /// The sums of the rows, [rows, lanes].
    totals: Vec<f32>,
}

thread_local! {
    static MEMORY: Cell<Memory> = Cell::default();
}

/// Rows of x in tiles of `ROWS` rows, block of inputs by block of inputs. The rows past the last
/// are 0.
#[derive(Default)]
struct Tiles {
    /// [tiles, inputs / 4, ROWS, 4] for each block.
    codes: Vec<u8>,
    /// [tiles, runs, ROWS] for each block.
    scales: Vec<f32>,
    /// As `scales`.
    sums: Vec<f32>,
}

/// Multiplies rows with weight rows, panel by panel.
#[inline(always)]
pub(super) fn multiply<S: Integers, F: Format>(simd: S, task: Task<'_>) {
    match S::ROWS {
        2 => multiply_by::<S, F, 2>(simd, task),
        4 => multiply_by::<S, F, 4>(simd, task),
        _ => multiply_by::<S, F, 8>(simd, task),
    }
}

#[inline(always)]
fn multiply_by<S: Integers, F: Format, const M: usize>(simd: S, task: Task<'_>) {
    // Taken and put back: a closure would not be compiled for the instruction set.
    let mut memory = MEMORY.take();
    let mut panel = memory.panel.take().unwrap_or_else(Panel::new);
    let (count, inputs) = (task.rows.len(), task.x.inputs);
    let padded = count.next_multiple_of(M);
    memory.tiles.fill::<F, M>(task.x, &task.rows);
    let row_bytes = task.weight.format.row_bytes(inputs);
    let weights = task.weight.bytes.chunks(S::LANES * row_bytes);
    for (weight, sums) in weights.zip(task.sums.chunks_mut(S::LANES * count)) {
        memory.totals.clear();
        memory.totals.resize(padded * S::LANES, 0.0);
        for start in (0..inputs).step_by(MAX_INPUTS) {
            let block = start..inputs.min(start + MAX_INPUTS);
            panel.fill::<S, F>(simd, weight, row_bytes, &block);
            panel.add::<S, F, M>(simd, &memory.tiles, &block, &mut memory.totals);
        }
        for (lane, sums) in sums.chunks_exact_mut(count).enumerate() {
            for (row, sum) in sums.iter_mut().enumerate() {
                *sum = memory.totals[row * S::LANES + lane];
            }
        }
    }
    memory.panel = Some(panel);
    MEMORY.set(memory);
}

impl Tiles {
    /// Fills the tiles with the rows `rows` of x.
    #[inline(always)]
    fn fill<F: Format, const M: usize>(&mut self, x: &Activations<'_>, rows: &Range<usize>) {
        let (inputs, tiles) = (x.inputs, rows.len().div_ceil(M));
        self.codes.clear();
        self.codes.resize(tiles * M * inputs, 0);
        for numbers in [&mut self.scales, &mut self.sums] {
            numbers.clear();
            numbers.resize(tiles * M * inputs / F::RUN, 0.0);
        }
        for start in (0..inputs).step_by(MAX_INPUTS) {
            let block = start..inputs.min(start + MAX_INPUTS);
            let (width, first) = (block.len(), tiles * M * start);
            for (index, row) in rows.clone().enumerate() {
                let (tile, m) = (index / M, index % M);
                let at = first + tile * M * width;
                let codes = &x.codes(row)[block.clone()];
                let to = &mut self.codes[at..at + M * width];
                for (word, to) in codes.chunks_exact(WORD).zip(to.chunks_exact_mut(M * WORD)) {
                    to[m * WORD..][..WORD].copy_from_slice(word);
                }
                let (at, runs) = (at / F::RUN, width / F::RUN);
                let sums = &x.sums(row, F::RUN)[block.start / F::RUN..][..runs];
                for run in 0..runs {
                    let to = at + run * M + m;
                    self.scales[to] = x.scales(row)[(block.start + run * F::RUN) / RUN];
                    self.sums[to] = sums[run];
                }
            }
        }
    }
}

impl Panel {
    fn new() -> Box<Self> {
        Box::new(Self {
            codes: [0; MAX_INPUTS * MAX_LANES],
            d: [0.0; MAX_INPUTS / 16 * MAX_LANES],
            e: [0.0; MAX_INPUTS / 16 * MAX_LANES],
        })
    }

    /// Fills the panel with the inputs `block` of weight rows. Lanes past the last have d = e = 0.
    #[inline(always)]
    fn fill<S: Integers, F: Format>(
        &mut self,
        simd: S,
        weight: &[u8],
        row_bytes: usize,
        block: &Range<usize>,
    ) {
        let lanes = weight.len() / row_bytes;
        if lanes < S::LANES {
            self.d.fill(0.0);
            self.e.fill(0.0);
        }
        let groups = block.start / F::WEIGHTS..block.end.div_ceil(F::WEIGHTS);
        for (lane, row) in weight.chunks_exact(row_bytes).enumerate() {
            for (at, index) in groups.clone().enumerate() {
                let start = index * F::BYTES;
                if start + F::BYTES <= row.len() {
                    self.put::<S, F>(simd, &row[start..start + F::BYTES], at, lane);
                } else {
                    let mut padded = [0; MAX_BYTES];
                    padded[..row_bytes - start].copy_from_slice(&row[start..]);
                    self.put::<S, F>(simd, &padded[..F::BYTES], at, lane);
                }
            }
        }
    }

    /// Writes group `at` of a lane.
    #[inline(always)]
    fn put<S: Integers, F: Format>(&mut self, simd: S, group: &[u8], at: usize, lane: usize) {
        let Affine { d, e } = F::affine(simd, group);
        let runs = F::WEIGHTS / F::RUN;
        for four in 0..runs / 4 {
            let mut numbers = [[0.0; 4]; 2];
            simd.four_store(d[four], &mut numbers[0]);
            simd.four_store(e[four], &mut numbers[1]);
            let first = (at * runs + 4 * four) * S::LANES;
            let d = &mut self.d[first..][..4 * S::LANES];
            let e = &mut self.e[first..][..4 * S::LANES];
            for run in 0..4 {
                d[run * S::LANES + lane] = numbers[0][run];
                e[run * S::LANES + lane] = numbers[1][run];
            }
        }
        let mut bytes = [0; WORD * MAX_LANES];
        for vector in 0..F::WEIGHTS / RUN / S::PARTS {
            simd.store_bytes(F::codes(simd, group, vector), &mut bytes);
            let (first, step) = F::place::<S>(vector);
            for part in 0..S::PARTS {
                let start = (at * F::WEIGHTS + (first + part * step) * RUN) * S::LANES;
                let to = &mut self.codes[start..][..RUN * S::LANES];
                let words = bytes[part * RUN..][..RUN].as_chunks::<WORD>().0;
                for word in 0..RUN / WORD {
                    to[(word * S::LANES + lane) * WORD..][..WORD].copy_from_slice(&words[word]);
                }
            }
        }
    }

    /// Adds the products with the inputs `block` of all tiles to their totals, [rows, lanes].
    #[inline(always)]
    fn add<S: Integers, F: Format, const M: usize>(
        &self,
        simd: S,
        tiles: &Tiles,
        block: &Range<usize>,
        totals: &mut [f32],
    ) {
        let (width, rows) = (block.len(), totals.len() / S::LANES);
        let codes = &tiles.codes[rows * block.start..][..rows * width];
        let first = rows * block.start / F::RUN;
        let scales = &tiles.scales[first..][..rows * width / F::RUN];
        let sums = &tiles.sums[first..][..rows * width / F::RUN];
        let runs = width / F::RUN;
        let tiles = codes.chunks_exact(M * width).zip(
            scales
                .chunks_exact(M * runs)
                .zip(sums.chunks_exact(M * runs)),
        );
        for (totals, (codes, (scales, sums))) in totals.chunks_exact_mut(M * S::LANES).zip(tiles) {
            self.add_tile::<S, F, M>(simd, codes, scales, sums, totals);
        }
    }

    /// Adds the products with a tile.
    #[inline(always)]
    fn add_tile<S: Integers, F: Format, const M: usize>(
        &self,
        simd: S,
        codes: &[u8],
        scales: &[f32],
        sums: &[f32],
        totals: &mut [f32],
    ) {
        let mut floats = [simd.splat(0.0); M];
        for m in 0..M {
            floats[m] = simd.load(&totals[m * S::LANES..]);
        }
        let weights = self.codes.chunks_exact(F::RUN * S::LANES);
        let affine = self
            .d
            .chunks_exact(S::LANES)
            .zip(self.e.chunks_exact(S::LANES));
        let x = scales.chunks_exact(M).zip(sums.chunks_exact(M));
        let runs = codes.chunks_exact(M * F::RUN).zip(weights);
        for ((codes, weights), ((d, e), (scales, sums))) in runs.zip(affine.zip(x)) {
            let mut integers = [simd.zeros(); M];
            for word in 0..F::RUN / WORD {
                let weights = simd.load_bytes(&weights[word * WORD * S::LANES..]);
                for m in 0..M {
                    let x = simd.splat_word(&codes[(word * M + m) * WORD..]);
                    integers[m] = F::products(simd, integers[m], weights, x);
                }
            }
            let (d, e) = (simd.load(d), simd.load(e));
            for m in 0..M {
                let scale = simd.mul(d, simd.splat(scales[m]));
                let sum = simd.mul_add(simd.to_floats(integers[m]), scale, floats[m]);
                floats[m] = simd.mul_add(e, simd.splat(sums[m]), sum);
            }
        }
        for m in 0..M {
            simd.store(floats[m], &mut totals[m * S::LANES..]);
        }
    }
}
