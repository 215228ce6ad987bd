//! The rows of x: normalized, widened to fp32, and put in the order of the product.

use std::ops::Range;

use crate::backends::flex::element::Element;
use crate::backends::flex::simd::{CACHE_LINE, Kernel, Level, MAX_LANES, Simd};
use crate::backends::flex::threads::Threads;

/// Rows of x in a tile of the product, at most, if there are several tiles.
pub(super) const TILE_ROWS: usize = 4;

/// The most rows of a single tile, with the registers of the widest vectors.
const FEW_ROWS: usize = 8;

/// Inputs of a block, at most. A group of weight rows, widened, then stays in the L1 cache.
pub(super) const BLOCK_INPUTS: usize = 768;

/// A norm of a row, with parameters [in].
#[derive(Clone, Copy)]
pub(in super::super) enum Norm<'a> {
    None,
    Rms {
        weight: &'a [f32],
        epsilon: f32,
    },
    Layer {
        weight: &'a [f32],
        bias: &'a [f32],
        epsilon: f32,
    },
}

/// Rows by blocks of inputs. A block has tiles of equal height, the last one lower:
/// [block / lanes, height, lanes] each.
///
/// A block is one stream of memory. Rows apart would share a few sets of the caches, since their
/// distance is often a multiple of a large power of two.
pub(super) struct Rows<'a> {
    data: &'a [f32],
    pub(super) count: usize,
    pub(super) inputs: usize,
    /// `inputs` rounded up to whole vectors of any level. The elements past `inputs` are 0.
    pub(super) width: usize,
    pub(super) tile_rows: usize,
    /// Inputs of a block, but for the last one.
    pub(super) block: usize,
}

impl Rows<'_> {
    pub(super) fn tiles(&self) -> usize {
        self.count.div_ceil(self.tile_rows)
    }

    /// Returns the first row of a tile, and the number of its rows.
    #[inline(always)]
    pub(super) fn tile(&self, tile: usize) -> (usize, usize) {
        let first = tile * self.tile_rows;
        (first, self.tile_rows.min(self.count - first))
    }

    /// Returns the part of a tile in a block.
    #[inline(always)]
    pub(super) fn part(&self, tile: usize, block: &Range<usize>) -> &[f32] {
        let (first, rows) = self.tile(tile);
        let start = self.count * block.start + first * block.len();
        &self.data[start..start + rows * block.len()]
    }
}

impl Norm<'_> {
    /// Returns the normalized rows of x [rows, in].
    pub(super) fn apply<'a, T: Element>(
        &self,
        level: Level,
        x: &[T],
        inputs: usize,
        memory: &'a mut Vec<f32>,
    ) -> Rows<'a> {
        let count = x.len() / inputs;
        // As few tiles as possible, of equal height.
        let tiles = match level.lanes() == MAX_LANES && count <= FEW_ROWS {
            true => 1,
            false => count.div_ceil(TILE_ROWS),
        };
        let tile_rows = count.div_ceil(tiles);
        let width = inputs.next_multiple_of(MAX_LANES);
        let block = width.div_ceil(width.div_ceil(BLOCK_INPUTS));
        let block = block.next_multiple_of(MAX_LANES);
        self.tiles(level, x, inputs, [tile_rows, block], memory)
    }

    /// As [`apply`](Self::apply), one row after the other.
    pub(super) fn apply_in_order<'a, T: Element>(
        &self,
        level: Level,
        x: &[T],
        inputs: usize,
        memory: &'a mut Vec<f32>,
    ) -> Rows<'a> {
        let width = inputs.next_multiple_of(MAX_LANES);
        self.tiles(level, x, inputs, [1, width], memory)
    }

    /// Returns the normalized x [rows, in] in its own type.
    pub(in super::super) fn normalize<T: Element>(
        &self,
        level: Level,
        x: &[T],
        inputs: usize,
    ) -> Vec<T> {
        let mut memory = Vec::new();
        let rows = self.apply_in_order(level, x, inputs, &mut memory);
        let width = rows.width;
        let mut output = vec![T::default(); x.len()];
        let threads = Threads::new(rows.count, size_of_val(x));
        let outputs: Vec<_> = output.chunks_mut(inputs).enumerate().collect();
        threads.for_each(outputs, |(row, output)| {
            let row = rows.part(row, &(0..width));
            level.run(Narrow { row, output });
        });
        output
    }

    fn tiles<'a, T: Element>(
        &self,
        level: Level,
        x: &[T],
        inputs: usize,
        [tile_rows, block]: [usize; 2],
        memory: &'a mut Vec<f32>,
    ) -> Rows<'a> {
        let count = x.len() / inputs;
        let width = inputs.next_multiple_of(MAX_LANES);
        let data = aligned(memory, count * width);
        let mut tiles: Vec<_> = x
            .chunks(tile_rows * inputs)
            .map(|x| Normalize {
                norm: *self,
                x,
                inputs,
                blocks: Vec::new(),
            })
            .collect();
        let mut rest = &mut *data;
        for start in (0..width).step_by(block) {
            let len = block.min(width - start);
            let (parts, after) = rest.split_at_mut(count * len);
            rest = after;
            for (tile, part) in tiles.iter_mut().zip(parts.chunks_mut(tile_rows * len)) {
                tile.blocks.push(part);
            }
        }
        Threads::new(count, size_of_val(x)).for_each(tiles, |tile| level.run(tile));
        Rows {
            data,
            count,
            inputs,
            width,
            tile_rows,
            block,
        }
    }
}

/// Returns elements that start with a cache line, so that no vector is in two lines. Their values
/// are unspecified.
pub(super) fn aligned(memory: &mut Vec<f32>, len: usize) -> &mut [f32] {
    const LINE: usize = CACHE_LINE / size_of::<f32>();
    if memory.len() < len + LINE {
        // Not resized: that would copy.
        *memory = vec![0.0; len + LINE];
    }
    let start = memory.as_ptr().align_offset(CACHE_LINE).min(LINE);
    &mut memory[start..start + len]
}

/// Writes the normalized rows of a tile.
struct Normalize<'a, T> {
    norm: Norm<'a>,
    /// [height, in].
    x: &'a [T],
    inputs: usize,
    /// [block / lanes, height, lanes] each.
    blocks: Vec<&'a mut [f32]>,
}

impl<T: Element> Kernel for Normalize<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let height = self.x.len() / self.inputs;
        for (row, x) in self.x.chunks_exact(self.inputs).enumerate() {
            let (shift, scale) = self.norm.statistics(simd, x);
            let (shift, scale) = (simd.splat(-shift), simd.splat(scale));
            let blocks = self.blocks.iter_mut();
            let slots = blocks.flat_map(|block| {
                let slots = block.chunks_exact_mut(S::LANES);
                slots.skip(row).step_by(height)
            });
            for (vector, slot) in slots.enumerate() {
                let index = vector * S::LANES;
                if index >= self.inputs {
                    simd.store(simd.splat(0.0), slot);
                    continue;
                }
                let value = T::load_at(simd, x, index);
                let value = match self.norm {
                    Norm::None => value,
                    Norm::Rms { weight, .. } => {
                        simd.mul(simd.mul(value, scale), f32::load_at(simd, weight, index))
                    }
                    Norm::Layer { weight, bias, .. } => simd.mul_add(
                        simd.mul(simd.add(value, shift), scale),
                        f32::load_at(simd, weight, index),
                        f32::load_at(simd, bias, index),
                    ),
                };
                simd.store(value, slot);
            }
        }
    }
}

impl Norm<'_> {
    /// Returns the value to subtract from the elements of a row, and then the factor.
    #[inline(always)]
    fn statistics<S: Simd, T: Element>(&self, simd: S, x: &[T]) -> (f32, f32) {
        let count = x.len() as f32;
        match *self {
            Norm::None => (0.0, 1.0),
            Norm::Rms { epsilon, .. } => {
                let mean = squares(simd, x, 0.0) / count;
                (0.0, 1.0 / (mean + epsilon).sqrt())
            }
            Norm::Layer { epsilon, .. } => {
                let mean = sum(simd, x) / count;
                let variance = squares(simd, x, mean) / count;
                (mean, 1.0 / (variance + epsilon).sqrt())
            }
        }
    }
}

#[inline(always)]
fn sum<S: Simd, T: Element>(simd: S, x: &[T]) -> f32 {
    let mut sum = simd.splat(0.0);
    for index in (0..x.len()).step_by(S::LANES) {
        sum = simd.add(sum, T::load_at(simd, x, index));
    }
    simd.sum(sum)
}

/// Returns the sum of (x - mean)^2.
#[inline(always)]
fn squares<S: Simd, T: Element>(simd: S, x: &[T], mean: f32) -> f32 {
    let shift = simd.splat(-mean);
    let mut sum = simd.splat(0.0);
    let vectors = x.chunks_exact(S::LANES);
    let rest = vectors.remainder();
    for vector in vectors {
        let centered = simd.add(T::load(simd, vector), shift);
        sum = simd.mul_add(centered, centered, sum);
    }
    let mut total = simd.sum(sum);
    for value in rest {
        let centered = value.widen() - mean;
        total += centered * centered;
    }
    total
}

/// Rounds a row to the type of the output.
struct Narrow<'a, T> {
    row: &'a [f32],
    output: &'a mut [T],
}

impl<T: Element> Kernel for Narrow<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for index in (0..self.output.len()).step_by(S::LANES) {
            let value = simd.load(&self.row[index..]);
            T::store_at(simd, value, self.output, index);
        }
    }
}
