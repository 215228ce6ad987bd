//! Many rows of x: weight rows as lanes.
//!
//! A panel has the codes of as many weight rows as a vector has lanes, four inputs of each in a
//! lane. Its products with the same four elements of a row of x are one instruction, and a sum of
//! integers becomes floats once for a whole run.

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
    /// The sums of the rows, [rows, lanes].
    totals: Vec<f32>,
}

thread_local! {
    static MEMORY: Cell<Memory> = Cell::default();
}

impl Panel {
    fn new() -> Box<Self> {
        Box::new(Self {
            codes: [0; MAX_INPUTS * MAX_LANES],
            d: [0.0; MAX_INPUTS / 16 * MAX_LANES],
            e: [0.0; MAX_INPUTS / 16 * MAX_LANES],
        })
    }
}

/// Multiplies rows with weight rows, panel by panel.
#[inline(always)]
pub(super) fn multiply<S: Integers, F: Format>(simd: S, task: Task<'_>) {
    // Taken and put back: a closure would not be compiled for the instruction set.
    let mut memory = MEMORY.take();
    let mut panel = memory.panel.take().unwrap_or_else(Panel::new);
    let (count, inputs) = (task.rows.len(), task.x.inputs);
    let row_bytes = task.weight.format.row_bytes(inputs);
    let weights = task.weight.bytes.chunks(S::LANES * row_bytes);
    for (weight, sums) in weights.zip(task.sums.chunks_mut(S::LANES * count)) {
        memory.totals.clear();
        memory.totals.resize(count * S::LANES, 0.0);
        for start in (0..inputs).step_by(MAX_INPUTS) {
            let block = start..inputs.min(start + MAX_INPUTS);
            panel.fill::<S, F>(simd, weight, row_bytes, &block);
            let first = task.rows.start;
            panel.multiply::<S, F>(simd, task.x, first, &block, &mut memory.totals);
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

impl Panel {
    /// Fills the panel with the inputs `block` of weight rows, whose lanes past the last have d = e
    /// = 0.
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
            // A group in the cache line after next is on its way.
            simd.prefetch(weight, (lane + 2) * row_bytes + groups.start * F::BYTES);
            for (at, index) in groups.clone().enumerate() {
                let start = index * F::BYTES;
                match row.get(start..start + F::BYTES) {
                    Some(group) => self.put::<S, F>(simd, group, at, lane),
                    None => {
                        let mut padded = [0; MAX_BYTES];
                        padded[..row_bytes - start].copy_from_slice(&row[start..]);
                        self.put::<S, F>(simd, &padded[..F::BYTES], at, lane);
                    }
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
            for run in 0..4 {
                let place = (at * runs + 4 * four + run) * S::LANES + lane;
                self.d[place] = numbers[0][run];
                self.e[place] = numbers[1][run];
            }
        }
        let mut bytes = [0; WORD * MAX_LANES];
        for vector in 0..F::WEIGHTS / RUN / S::PARTS {
            simd.store_bytes(F::codes(simd, group, vector), &mut bytes);
            let (first, step) = F::place::<S>(vector);
            for part in 0..S::PARTS {
                let words = (at * F::WEIGHTS + (first + part * step) * RUN) / WORD;
                let bytes = &bytes[part * RUN..][..RUN];
                for (word, bytes) in bytes.as_chunks::<WORD>().0.iter().enumerate() {
                    let place = ((words + word) * S::LANES + lane) * WORD;
                    self.codes[place..][..WORD].copy_from_slice(bytes);
                }
            }
        }
    }

    /// Adds the products with the rows of x from `first` on to their totals, [rows, lanes].
    #[inline(always)]
    fn multiply<S: Integers, F: Format>(
        &self,
        simd: S,
        x: &Activations<'_>,
        first: usize,
        block: &Range<usize>,
        totals: &mut [f32],
    ) {
        let mut row = first;
        let tiles = totals.chunks_exact_mut(S::ROWS * S::LANES);
        for totals in tiles {
            match S::ROWS {
                2 => self.add::<S, F, 2>(simd, x, row, block, totals),
                4 => self.add::<S, F, 4>(simd, x, row, block, totals),
                _ => self.add::<S, F, 8>(simd, x, row, block, totals),
            }
            row += S::ROWS;
        }
        let done = (row - first) * S::LANES;
        for totals in totals[done..].chunks_exact_mut(S::LANES) {
            self.add::<S, F, 1>(simd, x, row, block, totals);
            row += 1;
        }
    }

    /// Adds the products of the panel with M rows of x to their totals, [M, lanes].
    #[inline(always)]
    fn add<S: Integers, F: Format, const M: usize>(
        &self,
        simd: S,
        x: &Activations<'_>,
        first: usize,
        block: &Range<usize>,
        totals: &mut [f32],
    ) {
        let inputs = block.len();
        let mut codes = [&[][..]; M];
        let mut scales = [&[][..]; M];
        let mut sums = [&[][..]; M];
        let mut floats = [simd.splat(0.0); M];
        for m in 0..M {
            codes[m] = &x.codes(first + m)[block.start..][..inputs];
            scales[m] = &x.scales(first + m)[block.start / RUN..][..inputs / RUN];
            sums[m] = &x.sums(first + m, F::RUN)[block.start / F::RUN..][..inputs / F::RUN];
            floats[m] = simd.load(&totals[m * S::LANES..]);
        }
        for run in 0..inputs / F::RUN {
            let mut integers = [simd.zeros(); M];
            for word in 0..F::RUN / WORD {
                let at = run * F::RUN / WORD + word;
                let weights = simd.load_bytes(&self.codes[at * WORD * S::LANES..]);
                for m in 0..M {
                    let x = simd.splat_word(&codes[m][at * WORD..]);
                    integers[m] = F::products(simd, integers[m], weights, x);
                }
            }
            let d = simd.load(&self.d[run * S::LANES..]);
            let e = simd.load(&self.e[run * S::LANES..]);
            for m in 0..M {
                let scale = simd.mul(d, simd.splat(scales[m][run * F::RUN / RUN]));
                let sum = simd.mul_add(simd.to_floats(integers[m]), scale, floats[m]);
                floats[m] = simd.mul_add(e, simd.splat(sums[m][run]), sum);
            }
        }
        for m in 0..M {
            simd.store(floats[m], &mut totals[m * S::LANES..]);
        }
    }
}
