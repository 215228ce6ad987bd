//! The product of rows with weights in blocks.
//!
//! x is rounded to signed bytes with a scale for each run of 32 elements. A weight is d code + e
//! with an unsigned code, and d and e for each run of 32 or 16 weights, in every format. A run of a
//! product is therefore d times a sum of products of bytes, plus e times a sum of x, and that sum
//! is computed once for all weights.
//!
//! | module | content |
//! |---|---|
//! | [`activations`] | x in bytes |
//! | [`formats`] | the codes, d and e of each format |
//! | [`dot`] | few rows: every block is read once, as it is stored |
//! | [`panel`] | many rows: codes of a few weight rows are put in the order of the product |

#![allow(
    clippy::needless_range_loop,
    reason = "a closure or an iterator would not reliably be compiled for the instruction set"
)]

pub(super) mod activations;
mod dot;
mod formats;
mod panel;

use std::ops::Range;

use self::activations::Activations;
use self::formats::{Format, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use crate::backends::flex::simd::integers::{IntegerKernel, Integers};
use crate::ops::BlockFormat;

/// Elements of x and weights that share their scale at most.
const RUN: usize = 32;

/// The most rows of x for which the codes of a weight are not put in another order.
///
/// A row of so few has the same sum as alone, bit for bit.
const FEW_ROWS: usize = 16;

/// Consecutive rows of a weight in blocks.
#[derive(Clone, Copy)]
pub(in super::super) struct Blocks<'a> {
    pub(in super::super) format: BlockFormat,
    /// Whole rows.
    pub(in super::super) bytes: &'a [u8],
}

impl<'a> Blocks<'a> {
    /// Returns the number of rows of `inputs` weights.
    pub(super) fn outputs(self, inputs: usize) -> usize {
        self.bytes.len() / self.format.row_bytes(inputs).max(1)
    }

    /// Returns some of the rows.
    pub(super) fn rows(self, rows: Range<usize>, inputs: usize) -> Self {
        let row = self.format.row_bytes(inputs);
        Self {
            bytes: &self.bytes[rows.start * row..rows.end * row],
            ..self
        }
    }
}

/// The products of some rows of x with consecutive weight rows.
pub(super) struct Task<'a> {
    pub(super) x: &'a Activations<'a>,
    pub(super) rows: Range<usize>,
    pub(super) weight: Blocks<'a>,
    /// [outputs, rows].
    pub(super) sums: &'a mut [f32],
}

impl IntegerKernel for Task<'_> {
    #[inline(always)]
    fn run<S: Integers>(self, simd: S) {
        match self.weight.format {
            BlockFormat::Q8_0 => self.multiply::<S, Q8_0>(simd),
            BlockFormat::Q4_0 => self.multiply::<S, Q4_0>(simd),
            BlockFormat::Q4_1 => self.multiply::<S, Q4_1>(simd),
            BlockFormat::Q5_0 => self.multiply::<S, Q5_0>(simd),
            BlockFormat::Q5_1 => self.multiply::<S, Q5_1>(simd),
            BlockFormat::Q4_K => self.multiply::<S, Q4K>(simd),
            BlockFormat::Q5_K => self.multiply::<S, Q5K>(simd),
            BlockFormat::Q6_K => self.multiply::<S, Q6K>(simd),
        }
    }
}

impl Task<'_> {
    #[inline(always)]
    fn multiply<S: Integers, F: Format>(self, simd: S) {
        if self.x.count > FEW_ROWS {
            return panel::multiply::<S, F>(simd, self);
        }
        dot::multiply::<S, F>(simd, self);
    }
}
