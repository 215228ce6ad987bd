//! Rows of x in signed bytes: [`Activations`].

use super::{FEW_ROWS, RUN};
use crate::backends::flex::linear::rows::Rows;
use crate::backends::flex::simd::integers::{IntegerKernel, Integers};
use crate::backends::flex::simd::{CACHE_LINE, Level};
use crate::backends::flex::threads::Threads;

/// Elements of a half run, which is one vector of 16 lanes or two of 8.
pub(super) const HALF: usize = RUN / 2;

/// The runs whose halves are together.
pub(super) const FOUR: usize = 4;

/// The elements of a row are padded to a multiple of this number, the weights of the largest block.
const PADDED: usize = 256;

/// Rows of x: element i of run r is `scale[r] * code[i]`, and the rest past the inputs is 0.
pub(in super::super) struct Activations<'a> {
    pub(super) count: usize,
    pub(super) inputs: usize,
    /// Bytes from a row of codes to the next. Not a multiple of a large power of two: rows would
    /// share a few sets of the caches.
    pitch: usize,
    codes: &'a [u8],
    /// The codes of each four runs in the order of [`Format::halves`](super::formats::Format): the
    /// first half of each run, then the second ones. Only of few rows.
    halves: &'a [u8],
    /// The runs of a padded row.
    runs: usize,
    scales: &'a [f32],
    /// The sums of the elements of each run, and of each half run.
    sums: [&'a [f32]; 2],
}

/// Memory of [`Activations`].
#[derive(Default)]
pub(in super::super) struct Memory {
    codes: Vec<u8>,
    halves: Vec<u8>,
    scales: Vec<f32>,
    sums: [Vec<f32>; 2],
}

impl Activations<'_> {
    /// Returns the codes of a row.
    #[inline(always)]
    pub(super) fn codes(&self, row: usize) -> &[u8] {
        &self.codes[row * self.pitch..][..self.runs * RUN]
    }

    /// Returns the codes of a row, of few, in halves.
    #[inline(always)]
    pub(super) fn halves(&self, row: usize) -> &[u8] {
        &self.halves[row * self.pitch..][..self.runs * RUN]
    }

    /// Returns the scale of each run of a row.
    #[inline(always)]
    pub(super) fn scales(&self, row: usize) -> &[f32] {
        &self.scales[row * self.runs..][..self.runs]
    }

    /// Returns the sums of each `run` elements of a row, 32 or 16.
    #[inline(always)]
    pub(super) fn sums(&self, row: usize, run: usize) -> &[f32] {
        let (index, count) = match run {
            RUN => (0, self.runs),
            _ => (1, 2 * self.runs),
        };
        &self.sums[index][row * count..][..count]
    }
}

/// Rounds rows, which are in order: one tile and one block each.
pub(in super::super) fn quantize<'a>(
    level: Level,
    rows: &Rows<'_>,
    memory: &'a mut Memory,
) -> Activations<'a> {
    let (count, width) = (rows.count, rows.width);
    let padded = rows.inputs.next_multiple_of(PADDED);
    let (runs, pitch) = (padded / RUN, padded + CACHE_LINE);
    let [whole, half] = &mut memory.sums;
    for (memory, len) in [
        (&mut memory.scales, count * runs),
        (&mut *whole, count * runs),
        (&mut *half, count * runs * 2),
    ] {
        if memory.len() < len {
            *memory = vec![0.0; len];
        }
    }
    let few = if count <= FEW_ROWS { count } else { 0 };
    for (memory, rows) in [(&mut memory.codes, count), (&mut memory.halves, few)] {
        if memory.len() < rows * pitch {
            *memory = vec![0; rows * pitch];
        }
    }
    let scales = memory.scales.chunks_mut(runs);
    let sums = whole.chunks_mut(runs).zip(half.chunks_mut(2 * runs));
    let codes = memory.codes.chunks_mut(pitch);
    let mut halves = memory.halves.chunks_mut(pitch).take(few);
    let tasks = codes.zip(scales).zip(sums).take(count).enumerate();
    let tasks = tasks.map(|(row, ((codes, scales), (whole, half)))| Quantize {
        x: rows.part(row, &(0..width)),
        codes,
        halves: halves.next(),
        scales,
        sums: [whole, half],
    });
    let threads = Threads::new(count, 4 * count * width);
    threads.for_each(tasks.collect(), |task| level.run_integers(task));
    Activations {
        count,
        inputs: rows.inputs,
        pitch,
        codes: &memory.codes,
        halves: &memory.halves,
        runs,
        scales: &memory.scales,
        sums: [&*whole, &*half],
    }
}

/// Rounds one row.
struct Quantize<'a> {
    /// Whole half runs.
    x: &'a [f32],
    codes: &'a mut [u8],
    halves: Option<&'a mut [u8]>,
    scales: &'a mut [f32],
    sums: [&'a mut [f32]; 2],
}

impl IntegerKernel for Quantize<'_> {
    #[inline(always)]
    fn run<S: Integers>(mut self, simd: S) {
        for run in 0..self.scales.len() {
            let x = &self.x[(run * RUN).min(self.x.len())..self.x.len().min((run + 1) * RUN)];
            self.round_run(simd, run, x);
        }
    }
}

impl Quantize<'_> {
    #[inline(always)]
    fn round_run<S: Integers>(&mut self, simd: S, run: usize, x: &[f32]) {
        // Smaller numbers count as 0: their reciprocal would be infinite.
        const SMALLEST: f32 = 1e-30;
        let zero = simd.splat(0.0);
        let (mut largest, mut poison) = (zero, zero);
        for x in x.chunks_exact(S::LANES) {
            let x = simd.load(x);
            largest = simd.max(largest, simd.max(x, simd.sub(zero, x)));
            // NaN if an element is not finite.
            poison = simd.mul_add(x, zero, poison);
        }
        let largest = simd.largest(largest);
        let inverse = if largest > SMALLEST {
            127.0 / largest
        } else {
            0.0
        };
        let scale = if largest > SMALLEST {
            largest / 127.0
        } else {
            0.0
        };
        let scale = scale + simd.sum(poison);
        let codes = &mut self.codes[run * RUN..][..RUN];
        if x.len() < RUN {
            codes.fill(0);
        }
        let mut sums = [0.0; 2];
        for (half, x) in x.chunks_exact(HALF).enumerate() {
            for (at, x) in x.chunks_exact(S::LANES).enumerate() {
                let code = simd.round(simd.mul(simd.load(x), simd.splat(inverse)));
                simd.store_rounded(code, &mut codes[half * HALF + at * S::LANES..]);
                sums[half] += simd.sum(code);
            }
        }
        if let Some(halves) = &mut self.halves {
            let four = &mut halves[run / FOUR * FOUR * RUN..][..FOUR * RUN];
            for (half, codes) in codes.chunks_exact(HALF).enumerate() {
                let at = half * FOUR * HALF + run % FOUR * HALF;
                four[at..at + HALF].copy_from_slice(codes);
            }
        }
        self.scales[run] = scale;
        self.sums[0][run] = scale * (sums[0] + sums[1]);
        for (half, sum) in sums.into_iter().enumerate() {
            self.sums[1][2 * run + half] = scale * sum;
        }
    }
}
