//! Linear layers with a norm before the product, and an activation and the residual stream after
//! it.
//!
//! Three passes, each over all threads: [`rows`] normalizes x and widens it to fp32, [`product`]
//! multiplies, and [`epilogue`] finishes the sums. The weights [out, in] are read as they are
//! stored: once for a few rows, and once per block of rows otherwise. Sums are in fp32. For weights
//! in blocks x is rounded to bytes, and [`blocks`] multiplies.

mod ahead;
mod blocks;
pub(super) mod buffers;
mod epilogue;
mod product;
mod rows;

use std::cell::Cell;

pub(super) use self::blocks::Blocks;
use self::epilogue::Epilogue;
use self::product::Input;
pub(super) use self::rows::Norm;
use super::element::Element;
use super::simd::Level;
use crate::ops::Activation;

/// The most sums, and the most elements of x, that are kept at a time if there are many rows.
const MAX_SUMS: usize = 1 << 23;

/// A weight [out, in].
#[derive(Clone, Copy)]
pub(super) enum Matrix<'a, T> {
    /// Floats of x's type.
    Floats(&'a [T]),
    /// Blocks of a few bits.
    Blocks(Blocks<'a>),
}

impl<T> Matrix<'_, T> {
    /// Returns the number of rows.
    fn outputs(&self, inputs: usize) -> usize {
        match self {
            Self::Floats(weight) => weight.len() / inputs.max(1),
            Self::Blocks(weight) => weight.outputs(inputs),
        }
    }

    /// Returns the address and the bytes.
    fn area(&self) -> (usize, usize) {
        match self {
            Self::Floats(weight) => (weight.as_ptr().addr(), size_of_val(*weight)),
            Self::Blocks(weight) => (weight.bytes.as_ptr().addr(), weight.bytes.len()),
        }
    }

    fn is_blocks(&self) -> bool {
        matches!(self, Self::Blocks(_))
    }
}

/// A linear layer: the weight [out, in] and the bias [out].
#[derive(Clone, Copy)]
pub(super) struct Layer<'a, T> {
    pub(super) weight: Matrix<'a, T>,
    pub(super) bias: Option<&'a [f32]>,
}

/// The operation on the outputs of the layers.
#[derive(Clone, Copy)]
pub(super) enum Combine {
    /// Side by side.
    Concatenate,
    /// The activation of the first layer, multiplied by the second.
    Gated(Activation),
    /// The activation of the only layer.
    Activated(Activation),
}

/// One call of the operation.
pub(super) struct Problem<'a, T> {
    pub(super) level: Level,
    /// x, [rows, in].
    pub(super) x: &'a [T],
    pub(super) inputs: usize,
    pub(super) norm: Norm<'a>,
    pub(super) layers: &'a [Layer<'a, T>],
    pub(super) combine: Combine,
    /// Added to the output, of the same shape.
    pub(super) residual: Option<&'a [T]>,
}

/// Working memory, kept by the calling thread: fresh memory costs a page fault per 4 KiB.
#[derive(Default)]
struct Memory {
    rows: Vec<f32>,
    rows_in_order: Vec<f32>,
    codes: blocks::activations::Memory,
    sums: Vec<f32>,
}

thread_local! {
    static MEMORY: Cell<Memory> = Cell::default();
}

impl<T: Element> Problem<'_, T> {
    /// Returns the shape of the output, [rows, out], or `None` if a size is 0 or does not fit.
    pub(super) fn shape(&self) -> Option<[usize; 2]> {
        let outputs_of = |layer: &Layer<'_, T>| layer.weight.outputs(self.inputs);
        let first = outputs_of(&self.layers[0]);
        let outputs = match self.combine {
            Combine::Concatenate => self.total(),
            Combine::Gated(_) | Combine::Activated(_) => first,
        };
        let shape = [self.x.len() / self.inputs.max(1), outputs];
        let equal = self.layers.iter().all(|layer| outputs_of(layer) == first);
        let fits = matches!(self.combine, Combine::Concatenate) || equal;
        let len = shape[0] * outputs;
        let fits = fits && self.residual.is_none_or(|residual| residual.len() == len);
        (len > 0 && fits).then_some(shape)
    }

    /// Returns the output, [rows, out]. The [shape](Self::shape) must not be `None`.
    pub(super) fn run(&self) -> Vec<T> {
        let Some([rows, outputs]) = self.shape() else {
            return Vec::new();
        };
        let total = self.total();
        let mut output = vec![T::default(); rows * outputs];
        // While a pass waits for other threads, its thread may start on another call, and that one
        // gets new memory.
        let mut memory = MEMORY.take();
        let band = (MAX_SUMS / total.max(self.inputs)).max(product::BLOCK_ROWS);
        let mut first = 0;
        for (x, output) in self
            .x
            .chunks(band * self.inputs)
            .zip(output.chunks_mut(band * outputs))
        {
            let residual = self.residual.map(|all| &all[first * outputs..]);
            self.band(x, residual, output, &mut memory);
            first += band;
        }
        MEMORY.set(memory);
        output
    }

    /// Returns the outputs of all layers.
    fn total(&self) -> usize {
        let outputs = self.layers.iter();
        outputs.map(|layer| layer.weight.outputs(self.inputs)).sum()
    }

    /// Writes the output of some rows.
    fn band(&self, x: &[T], residual: Option<&[T]>, output: &mut [T], memory: &mut Memory) {
        let (level, inputs) = (self.level, self.inputs);
        let weights: Vec<Matrix<'_, T>> = self.layers.iter().map(|layer| layer.weight).collect();
        let floats = weights.iter().any(|weight| !weight.is_blocks());
        let floats = floats.then(|| self.norm.apply(level, x, inputs, &mut memory.rows));
        let codes = weights.iter().any(Matrix::is_blocks).then(|| {
            let rows = self
                .norm
                .apply_in_order(level, x, inputs, &mut memory.rows_in_order);
            blocks::activations::quantize(level, &rows, &mut memory.codes)
        });
        let input = Input {
            count: x.len() / inputs,
            inputs,
            floats,
            codes,
        };
        let sums = product::product(level, &input, &weights, &mut memory.sums);
        let biases: Vec<Option<&[f32]>> = self.layers.iter().map(|layer| layer.bias).collect();
        let epilogue = Epilogue {
            biases: &biases,
            combine: self.combine,
            residual,
        };
        epilogue.finish(self.level, &sums, output);
    }
}

#[cfg(test)]
mod tests;
