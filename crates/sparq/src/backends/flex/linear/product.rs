//! The product of rows in fp32 with weights [out, in].
//!
//! Inputs of an output are consecutive in memory, and so are those of a row: vectors run along the
//! inputs, and the lanes of a sum are added at its end. A tile of up to four rows of x and some
//! weight rows has all its sums in registers.

use std::ops::Range;

use super::blocks::{self, activations::Activations};
use super::rows::{BLOCK_INPUTS, Rows, TILE_ROWS, aligned};
use super::{Matrix, ahead};
use crate::backends::flex::element::Element;
use crate::backends::flex::simd::{Kernel, Level, MAX_LANES, Simd};
use crate::backends::flex::team;
use crate::backends::flex::threads::Threads;

/// Weight rows that are read at once for one tile of x.
const STREAMS: usize = 4;

/// The largest [`Simd::TILE`].
const MAX_TILE: usize = 6;

/// Rows of a block. Their part of a block of inputs stays in the L2 cache.
pub(super) const BLOCK_ROWS: usize = 192;

/// The outputs of a task are a multiple of this number, but for the last task of a weight.
const OUTPUTS: usize = 48;

/// The most outputs of a task.
const MAX_OUTPUTS: usize = 384;

/// The sums of each weight, in the order in which tasks write them: the outputs are divided into
/// chunks, and the rows into blocks, [outputs of the chunk, rows of the block] each.
pub(super) struct Sums<'a> {
    data: &'a [f32],
    rows: usize,
    /// The first row of each block, and the number of rows.
    starts: Vec<usize>,
    chunk: usize,
    outputs: Vec<usize>,
}

/// The sums of consecutive outputs for one row.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    /// Every `stride`-th element is of this row.
    sums: &'a [f32],
    stride: usize,
    /// The first output.
    pub(super) start: usize,
    pub(super) len: usize,
}

impl Part<'_> {
    /// Loads from an index as many sums as there are, at most one vector. Other lanes are 0.
    #[inline(always)]
    pub(super) fn load<S: Simd>(self, simd: S, index: usize) -> S::F {
        if self.stride == 1 {
            return f32::load_at(simd, &self.sums[..self.len], index);
        }
        let mut lanes = [0.0; MAX_LANES];
        let sums = self.sums[index * self.stride..].iter().step_by(self.stride);
        for (lane, sum) in lanes[..S::LANES].iter_mut().zip(sums) {
            *lane = *sum;
        }
        simd.load(&lanes)
    }
}

impl Sums<'_> {
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the number of outputs of each weight.
    pub(super) fn outputs(&self) -> &[usize] {
        &self.outputs
    }

    /// Returns the sums of one weight for one row.
    pub(super) fn row(&self, weight: usize, row: usize) -> impl Iterator<Item = Part<'_>> {
        let before: usize = self.outputs[..weight].iter().sum();
        let sums = &self.data[before * self.rows..];
        let block = self.starts.partition_point(|&start| start <= row) - 1;
        let (first, stride) = (
            self.starts[block],
            self.starts[block + 1] - self.starts[block],
        );
        chunks(self.outputs[weight], self.chunk).map(move |outputs| {
            let start = outputs.start * self.rows + first * outputs.len();
            let block = &sums[start..][..outputs.len() * stride];
            Part {
                sums: &block[row - first..],
                stride,
                start: outputs.start,
                len: outputs.len(),
            }
        })
    }
}

fn chunks(outputs: usize, chunk: usize) -> impl Iterator<Item = Range<usize>> {
    let start = (0..outputs).step_by(chunk);
    start.map(move |start| start..outputs.min(start + chunk))
}

/// The rows of x, for the weights of both kinds.
pub(super) struct Input<'a> {
    pub(super) count: usize,
    pub(super) inputs: usize,
    /// Present if a weight is floats.
    pub(super) floats: Option<Rows<'a>>,
    /// Present if a weight is blocks.
    pub(super) codes: Option<Activations<'a>>,
}

impl Input<'_> {
    /// Divides the rows into blocks of whole tiles. Returns the first tile of each block, and one
    /// past the last.
    fn blocks(&self) -> Vec<usize> {
        let (tiles, count) = (self.tiles(), self.count.div_ceil(BLOCK_ROWS));
        (0..=count).map(|block| tiles * block / count).collect()
    }

    fn tile_rows(&self) -> usize {
        let floats = self.floats.as_ref();
        floats.map_or(TILE_ROWS, |rows| rows.tile_rows)
    }

    fn tiles(&self) -> usize {
        self.count.div_ceil(self.tile_rows())
    }
}

/// Returns the products of the rows with each weight.
pub(super) fn product<'a, T: Element>(
    level: Level,
    input: &Input<'_>,
    weights: &[Matrix<'_, T>],
    memory: &'a mut Vec<f32>,
) -> Sums<'a> {
    let outputs = weights.iter().map(|weight| weight.outputs(input.inputs));
    let outputs: Vec<usize> = outputs.collect();
    let total: usize = outputs.iter().sum();
    let tiles = input.blocks();
    let threads = team::threads();
    // Small tasks share few rows evenly. In large ones, a block of rows serves more outputs.
    let share = if input.tiles() == 1 { 8 } else { 4 };
    let chunk = (total * (tiles.len() - 1) / (share * threads)).next_multiple_of(OUTPUTS);
    let chunk = chunk.clamp(OUTPUTS, MAX_OUTPUTS);

    let data = aligned(memory, input.count * total);
    let starts = tiles
        .iter()
        .map(|tile| input.count.min(tile * input.tile_rows()));
    let starts: Vec<usize> = starts.collect();
    let tasks = tasks(input, weights, [&tiles, &starts], chunk, &mut *data);
    let bytes = weights.iter().map(|weight| weight.area().1);
    let bytes = input.count * bytes.sum::<usize>();
    Threads::new(tasks.len(), bytes).for_each(tasks, |task| match task {
        AnyTask::Floats(task) => level.run(task),
        AnyTask::Blocks(task) => level.run_integers(task),
    });
    if input.tiles() == 1 {
        ahead::note(weights);
    }
    Sums {
        data,
        rows: input.count,
        starts,
        chunk,
        outputs,
    }
}

/// Some rows times some outputs of a weight of either kind.
enum AnyTask<'a, T> {
    Floats(Task<'a, T>),
    Blocks(blocks::Task<'a>),
}

/// Divides the products: `chunk` outputs of a weight and a block of rows each. `tiles` and `starts`
/// are the first tile and row of each block.
fn tasks<'a, T: Element>(
    input: &'a Input<'a>,
    weights: &[Matrix<'a, T>],
    [tiles, starts]: [&[usize]; 2],
    chunk: usize,
    mut rest: &'a mut [f32],
) -> Vec<AnyTask<'a, T>> {
    const PRESENT: &str = "x in the form of each weight";
    let inputs = input.inputs;
    let mut tasks = Vec::new();
    for weight in weights {
        for outputs in chunks(weight.outputs(inputs), chunk) {
            for block in 0..tiles.len() - 1 {
                let rows = starts[block]..starts[block + 1];
                let (sums, after) = rest.split_at_mut(rows.len() * outputs.len());
                rest = after;
                tasks.push(match *weight {
                    Matrix::Floats(weight) => AnyTask::Floats(Task {
                        rows: input.floats.as_ref().expect(PRESENT),
                        tiles: tiles[block]..tiles[block + 1],
                        weight: &weight[outputs.start * inputs..outputs.end * inputs],
                        sums,
                    }),
                    Matrix::Blocks(weight) => AnyTask::Blocks(blocks::Task {
                        x: input.codes.as_ref().expect(PRESENT),
                        rows,
                        weight: weight.rows(outputs.clone(), inputs),
                        sums,
                    }),
                });
            }
        }
    }
    tasks
}

/// The products of some tiles of rows with consecutive weight rows.
struct Task<'a, T> {
    rows: &'a Rows<'a>,
    tiles: Range<usize>,
    /// [outputs, in].
    weight: &'a [T],
    /// [outputs, rows].
    sums: &'a mut [f32],
}

impl<T: Element> Kernel for Task<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        if self.rows.tiles() > 1 {
            return match S::TILE {
                1 => self.blocks::<S, 1>(simd),
                3 => self.blocks::<S, 3>(simd),
                _ => self.blocks::<S, MAX_TILE>(simd),
            };
        }
        match self.rows.count {
            1 => self.streams::<S, 1, STREAMS>(simd),
            2 => self.streams::<S, 2, STREAMS>(simd),
            3 => self.streams::<S, 3, STREAMS>(simd),
            5 if S::LANES == MAX_LANES => self.streams::<S, 5, STREAMS>(simd),
            6 if S::LANES == MAX_LANES => self.streams::<S, 6, STREAMS>(simd),
            7 if S::LANES == MAX_LANES => self.streams::<S, 7, 3>(simd),
            8 if S::LANES == MAX_LANES => self.streams::<S, 8, 3>(simd),
            _ => self.streams::<S, TILE_ROWS, STREAMS>(simd),
        }
    }
}

impl<T: Element> Task<'_, T> {
    /// Multiplies a single tile of M rows with N weight rows at once, and reads each weight from
    /// memory once.
    #[inline(always)]
    fn streams<S: Simd, const M: usize, const N: usize>(self, simd: S) {
        let inputs = self.rows.inputs;
        let mut groups = self.weight.chunks_exact(N * inputs);
        let mut output = 0;
        for group in &mut groups {
            let sums = &mut self.sums[output * M..];
            stream_blocks::<S, T, M, N>(simd, self.rows, group, sums);
            output += N;
        }
        for row in groups.remainder().chunks_exact(inputs) {
            let sums = &mut self.sums[output * M..];
            stream_blocks::<S, T, M, 1>(simd, self.rows, row, sums);
            output += 1;
        }
    }

    /// Multiplies many rows by blocks of inputs. A group of N weight rows is widened once for all
    /// rows of the task.
    #[inline(always)]
    fn blocks<S: Simd, const N: usize>(self, simd: S) {
        let mut memory = Group([0.0; MAX_TILE * BLOCK_INPUTS]);
        let (inputs, width) = (self.rows.inputs, self.rows.width);
        let outputs = self.weight.len() / inputs;
        let top = self.tiles.start * self.rows.tile_rows;
        let count = self.sums.len() / outputs;
        for start in (0..width).step_by(self.rows.block) {
            let block = start..width.min(start + self.rows.block);
            let group = &mut memory.0[..N * block.len()];
            for output in (0..outputs).step_by(N) {
                let weight = &self.weight[output * inputs..];
                widen::<S, T, N>(simd, weight, inputs, block.clone(), group);
                for tile in self.tiles.clone() {
                    let (first, rows) = self.rows.tile(tile);
                    let x = self.rows.part(tile, &block);
                    let sums = &mut self.sums[output * count + first - top..];
                    let add = start > 0;
                    match rows {
                        1 => write(simd, tile_sums::<S, 1, N>(simd, x, group), sums, count, add),
                        2 => write(simd, tile_sums::<S, 2, N>(simd, x, group), sums, count, add),
                        3 => write(simd, tile_sums::<S, 3, N>(simd, x, group), sums, count, add),
                        _ => write(
                            simd,
                            tile_sums::<S, TILE_ROWS, N>(simd, x, group),
                            sums,
                            count,
                            add,
                        ),
                    }
                }
            }
        }
    }
}

/// Memory for a widened group of weight rows. No vector is in two cache lines.
#[repr(align(64))]
struct Group([f32; MAX_TILE * BLOCK_INPUTS]);

/// Adds the lanes of the sums of a tile, and writes or adds them to N outputs that are `stride`
/// apart, M sums each. Leaves out outputs past the end.
#[inline(always)]
fn write<S: Simd, const M: usize, const N: usize>(
    simd: S,
    tile: [[S::F; N]; M],
    to: &mut [f32],
    stride: usize,
    add: bool,
) {
    if M == 1 && N == STREAMS && to.len() >= N {
        let mut four = [simd.splat(0.0); STREAMS];
        four[..N].copy_from_slice(&tile[0]);
        let sums = simd.sums(four);
        for (to, sum) in to.iter_mut().zip(sums) {
            *to = if add { *to + sum } else { sum };
        }
        return;
    }
    for (n, to) in to.chunks_mut(stride).enumerate().take(N) {
        let mut first = 0;
        while first < M {
            let mut four = [simd.splat(0.0); 4];
            let count = (M - first).min(4);
            for m in 0..count {
                four[m] = tile[first + m][n];
            }
            let sums = simd.sums(four);
            let to = &mut to[first..first + count];
            for m in 0..count {
                to[m] = if add { to[m] + sums[m] } else { sums[m] };
            }
            first += count;
        }
    }
}

/// Writes the sums of M rows of x, a whole tile, with N weight rows [N, in] in their own type.
///
/// Sums of blocks of inputs are added, as for many rows: the result of a row does not depend on the
/// number of rows.
#[inline(always)]
fn stream_blocks<S: Simd, T: Element, const M: usize, const N: usize>(
    simd: S,
    rows: &Rows<'_>,
    weight: &[T],
    to: &mut [f32],
) {
    for start in (0..rows.width).step_by(rows.block) {
        let block = start..rows.width.min(start + rows.block);
        let x = rows.part(0, &block);
        let sums = stream::<S, T, M, N>(simd, x, weight, rows.inputs, start);
        write(simd, sums, to, M, start > 0);
    }
}

/// Returns the sums of a block of inputs, from input `index` on.
#[inline(always)]
fn stream<S: Simd, T: Element, const M: usize, const N: usize>(
    simd: S,
    x: &[f32],
    weight: &[T],
    inputs: usize,
    mut index: usize,
) -> [[S::F; N]; M] {
    let mut sums = [[simd.splat(0.0); N]; M];
    // x may have one vector of zeros more.
    let vectors = (inputs - index).div_ceil(S::LANES);
    for x in x.chunks_exact(M * S::LANES).take(vectors) {
        let mut vectors = [simd.splat(0.0); N];
        for (n, vector) in vectors.iter_mut().enumerate() {
            // The next rows, which the processor would not fetch ahead across pages.
            simd.prefetch(weight, (N + n) * inputs + index);
            *vector = T::load_at(simd, &weight[n * inputs..(n + 1) * inputs], index);
        }
        multiply_add(simd, x, &vectors, &mut sums);
        index += S::LANES;
    }
    sums
}

/// Returns the sums of M rows of x [width / lanes, M, lanes] with N widened weight rows
/// [width / lanes, N, lanes].
#[inline(always)]
fn tile_sums<S: Simd, const M: usize, const N: usize>(
    simd: S,
    x: &[f32],
    weight: &[f32],
) -> [[S::F; N]; M] {
    let mut sums = [[simd.splat(0.0); N]; M];
    let weights = weight.chunks_exact(N * S::LANES);
    for (x, weight) in x.chunks_exact(M * S::LANES).zip(weights) {
        let mut vectors = [simd.splat(0.0); N];
        for (n, vector) in vectors.iter_mut().enumerate() {
            *vector = simd.load(&weight[n * S::LANES..]);
        }
        multiply_add(simd, x, &vectors, &mut sums);
    }
    sums
}

/// Adds the products of one vector of M rows, [M, lanes], and of N weight rows.
#[inline(always)]
fn multiply_add<S: Simd, const M: usize, const N: usize>(
    simd: S,
    x: &[f32],
    weights: &[S::F; N],
    sums: &mut [[S::F; N]; M],
) {
    for m in 0..M {
        let x = simd.load(&x[m * S::LANES..]);
        for n in 0..N {
            sums[m][n] = simd.mul_add(x, weights[n], sums[m][n]);
        }
    }
}

/// Widens the inputs of a block of the first N weight rows to [block / lanes, N, lanes]. Missing
/// rows and inputs are 0.
#[inline(always)]
fn widen<S: Simd, T: Element, const N: usize>(
    simd: S,
    weight: &[T],
    inputs: usize,
    block: Range<usize>,
    to: &mut [f32],
) {
    let count = N.min(weight.len() / inputs);
    if count < N {
        to.fill(0.0);
    }
    for (n, row) in weight.chunks_exact(inputs).take(count).enumerate() {
        for (slot, index) in to
            .chunks_exact_mut(N * S::LANES)
            .zip(block.clone().step_by(S::LANES))
        {
            // The next group, while this one is multiplied.
            simd.prefetch(weight, (N + n) * inputs + index);
            let vector = match index < inputs {
                true => T::load_at(simd, row, index),
                false => simd.splat(0.0),
            };
            simd.store(vector, &mut slot[n * S::LANES..]);
        }
    }
}
