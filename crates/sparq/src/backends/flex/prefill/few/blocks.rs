//! Blocks of positions that the rows of several queries attend to: [`Blocks`].
//!
//! Four K rows or V rows at a time are widened into registers once, and multiplied with the rows of
//! all queries one after the other. Each row has the sums of a decode step, in the same order.

#![allow(
    clippy::needless_range_loop,
    reason = "a closure or an iterator would not reliably be compiled for the instruction set"
)]

use crate::backends::flex::attend::{BLOCK, update_softmax};
use crate::backends::flex::element::{RowElement, Rows};
use crate::backends::flex::online_softmax::{OnlineSoftmax, bound};
use crate::backends::flex::prefill::panel::with_vectors;
use crate::backends::flex::simd::{Kernel, MAX_LANES, Simd};

/// K rows or V rows that are in registers at once. A decode step adds the lanes of as many dot
/// products in one reduction.
const ROWS: usize = 4;

/// Consecutive whole blocks of positions, and the rows of queries that attend to all of them.
pub(super) struct Blocks<'a, T> {
    /// The queries over sqrt(d), [rows, width].
    pub(super) q: &'a [f32],
    /// [positions, d], with whole vectors in d.
    pub(super) keys: Rows<'a, T>,
    /// [positions, d].
    pub(super) values: Rows<'a, T>,
    pub(super) dim: usize,
    pub(super) width: usize,
    pub(super) softcap: Option<f32>,
    /// Of the rows.
    pub(super) state: &'a mut OnlineSoftmax,
    pub(super) memory: &'a mut Memory,
}

/// Working memory of [`Blocks`].
pub(super) struct Memory {
    /// The logits of a block, then its weights, [rows, BLOCK].
    weights: Vec<f32>,
    /// Sums of dot products over the components so far, [rows, ROWS, lanes].
    dots: Vec<f32>,
}

impl Memory {
    pub(super) fn new(rows: usize) -> Self {
        Self {
            weights: vec![0.0; rows * BLOCK],
            dots: vec![0.0; rows * ROWS * MAX_LANES],
        }
    }
}

impl<T: RowElement> Kernel for Blocks<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let positions = self.keys.elements.len() / self.dim;
        for block in (0..positions / BLOCK * BLOCK).step_by(BLOCK) {
            for first in (0..BLOCK).step_by(ROWS) {
                let place = Place { block, first };
                let mut at = 0;
                while at < self.dim {
                    let count = ((self.dim - at) / S::LANES).min(S::VECTORS);
                    with_vectors!(S, count, N => self.add_dots::<S, N>(simd, place, at));
                    at += count * S::LANES;
                }
            }
            if let Some(softcap) = self.softcap {
                bound(simd, &mut self.memory.weights, softcap);
            }
            self.update(simd);
            for first in (0..BLOCK).step_by(ROWS) {
                let place = Place { block, first };
                let mut at = 0;
                while at < self.dim {
                    let count = ((self.dim - at) / S::LANES).min(S::VECTORS);
                    with_vectors!(S, count, N => self.add_values::<S, N>(simd, place, at));
                    at += count * S::LANES;
                }
            }
        }
    }
}

impl<T: RowElement> Blocks<'_, T> {
    /// Adds N vectors of components from `at` on to the dot products of all rows with four keys,
    /// [ROWS, d], and writes the logits from `first` on after the last components.
    #[inline(always)]
    fn add_dots<S: Simd, const N: usize>(&mut self, simd: S, place: Place, at: usize) {
        let of_keys = load::<S, T, N>(simd, self.keys, place, at);
        let first = place.first;
        let end = at + N * S::LANES;
        let Memory { weights, dots } = &mut *self.memory;
        let rows = self.q.chunks_exact(self.width);
        let rows = rows.zip(weights.chunks_exact_mut(BLOCK));
        for ((q, logits), partial) in rows.zip(dots.chunks_exact_mut(ROWS * MAX_LANES)) {
            let q = &q[at..end];
            let mut dots = [simd.splat(0.0); ROWS];
            if at > 0 {
                for i in 0..ROWS {
                    dots[i] = simd.load(&partial[i * S::LANES..]);
                }
            }
            for v in 0..N {
                let q = simd.load(&q[v * S::LANES..]);
                for i in 0..ROWS {
                    dots[i] = simd.mul_add(q, of_keys[i][v], dots[i]);
                }
            }
            if end == self.dim {
                logits[first..first + ROWS].copy_from_slice(&simd.sums(dots));
                continue;
            }
            for i in 0..ROWS {
                simd.store(dots[i], &mut partial[i * S::LANES..]);
            }
        }
    }

    /// Turns the logits of a block into weights, and updates the state of all rows.
    #[inline(always)]
    fn update<S: Simd>(&mut self, simd: S) {
        let OnlineSoftmax {
            largest,
            weight,
            sum,
            ..
        } = &mut *self.state;
        let rows = largest.iter_mut().zip(weight);
        let rows = rows.zip(sum.chunks_exact_mut(self.width));
        let weights = self.memory.weights.chunks_exact_mut(BLOCK);
        for (((largest, weight), sum), weights) in rows.zip(weights) {
            let kept = update_softmax(simd, weights, largest, weight);
            if kept != 1.0 {
                let kept = simd.splat(kept);
                for part in sum.chunks_exact_mut(S::LANES) {
                    simd.store(simd.mul(simd.load(part), kept), part);
                }
            }
        }
    }

    /// Adds N vectors of components from `at` on of four weighted values, [ROWS, d], to the sums of
    /// all rows.
    #[inline(always)]
    fn add_values<S: Simd, const N: usize>(&mut self, simd: S, place: Place, at: usize) {
        let of_values = load::<S, T, N>(simd, self.values, place, at);
        let first = place.first;
        let weights = self.memory.weights.chunks_exact(BLOCK);
        for (weights, sum) in weights.zip(self.state.sum.chunks_exact_mut(self.width)) {
            let weights = &weights[first..first + ROWS];
            let sum = &mut sum[at..at + N * S::LANES];
            let mut sums = [simd.splat(0.0); N];
            for v in 0..N {
                sums[v] = simd.load(&sum[v * S::LANES..]);
            }
            for i in 0..ROWS {
                let weight = simd.splat(weights[i]);
                for v in 0..N {
                    sums[v] = simd.mul_add(weight, of_values[i][v], sums[v]);
                }
            }
            for v in 0..N {
                simd.store(sums[v], &mut sum[v * S::LANES..]);
            }
        }
    }
}

/// Four rows of a block.
#[derive(Clone, Copy)]
struct Place {
    /// The first position of the block.
    block: usize,
    /// The first row in the block.
    first: usize,
}

/// Loads N vectors from `at` on of four rows.
#[inline(always)]
fn load<S: Simd, T: RowElement, const N: usize>(
    simd: S,
    rows: Rows<'_, T>,
    place: Place,
    at: usize,
) -> [[S::F; N]; ROWS] {
    let mut loaded = [[simd.splat(0.0); N]; ROWS];
    for i in 0..ROWS {
        let row = rows.row(place.block + place.first + i);
        for v in 0..N {
            loaded[i][v] = row.load(simd, at + v * S::LANES);
        }
    }
    loaded
}
