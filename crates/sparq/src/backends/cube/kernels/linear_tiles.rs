//! Linear layers with many rows, with matrix units.
//!
//! A cube multiplies a tile of rows of x by a tile of rows of the weights. Both pass through shared
//! memory, requested some stages ahead. A plane keeps the sums of 64 rows and 64 rows of weights in
//! registers, and adds bias, activation and residual to them before they are written.
//!
//! With a gate, half of a plane's rows of weights are those of the gate, and the other half the
//! same rows of the layer beside it: a lane holds both products of an output.

use cubecl::prelude::barrier::{copy_async, copy_async_checked};
use cubecl::prelude::*;

use crate::backends::cube::parts::cp_async::{commit_group, wait_groups};
use crate::backends::cube::parts::fragments::{
    COLUMNS, DEPTH, RESULT, ROWS, VECTOR, address_by_columns, address_by_rows, load_columns,
    load_rows, multiply, result_column, result_row, row_stride,
};
use crate::backends::cube::parts::projection::{
    LinearShape, ProjectionBlueprint, Tile, UpToThree, finish, load_addends, locate_tile, row_width,
};

/// Units of a plane.
const PLANE: usize = 32;
/// Blocks of 16 rows of a plane.
const BLOCKS: usize = 4;
/// Pairs of blocks of 8 rows of weights of a plane.
const PAIRS: usize = 4;
/// Rows of a plane.
const PLANE_ROWS: usize = BLOCKS * ROWS;
/// Rows of weights of a plane.
const PLANE_WEIGHTS: usize = PAIRS * 2 * COLUMNS;
/// Products of a stage one after the other.
const STEPS: usize = 4;
/// Vectors of a row in a stage.
const STAGE: usize = STEPS * DEPTH / VECTOR;
/// Tiles of rows that share the weights of cubes which run side by side.
const ROW_TILES_AT_ONCE: usize = 8;

/// The settings that a linear layer with many rows is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LinearTilesBlueprint {
    /// The weights and the epilogue. The norm went before.
    pub projection: ProjectionBlueprint,
    /// Planes with other rows.
    pub row_planes: usize,
    /// Planes with other rows of weights.
    pub weight_planes: usize,
    /// Stages in shared memory: one in use, the others on their way.
    pub stages: usize,
    /// A tile has as many rows and outputs as there are, and a stage as many features. The tiles at
    /// the ends then move inwards, over outputs of their neighbours, and nothing is checked.
    pub whole: bool,
}

impl LinearTilesBlueprint {
    /// Rows of a cube.
    pub fn rows(&self) -> usize {
        self.row_planes * PLANE_ROWS
    }

    /// Rows of weights of a cube.
    fn weights(&self) -> usize {
        self.weight_planes * PLANE_WEIGHTS
    }

    /// Outputs of a plane.
    fn plane_outputs(&self) -> usize {
        match self.projection.gated {
            true => PLANE_WEIGHTS / 2,
            false => PLANE_WEIGHTS,
        }
    }

    /// Outputs of a cube.
    pub fn outputs(&self) -> usize {
        self.weight_planes * self.plane_outputs()
    }

    /// Features of a stage.
    pub fn features(&self) -> usize {
        STAGE * VECTOR
    }

    /// Units of a cube.
    pub fn units(&self) -> usize {
        self.row_planes * self.weight_planes * PLANE
    }

    /// Rows of a stage that the units request at once.
    fn rows_at_once(&self) -> usize {
        self.units() / STAGE
    }

    /// Vectors of a stage.
    fn stage(&self) -> usize {
        (self.rows() + self.weights()) * row_stride(STAGE * VECTOR)
    }

    /// Bytes of shared memory.
    pub fn shared_bytes(&self) -> usize {
        self.stages * self.stage() * 16
    }
}

/// Multiplies x [rows, in] by up to three weights [out, in] and writes [rows, outputs].
///
/// Vectors of x and of the weights have eight elements. Every weight has an even number of outputs.
/// `tiles` counts the tiles of outputs of all weights.
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn linear_tiles_kernel<E: Float, N: Size>(
    x: &[Vector<E, N>],
    weights: &UpToThree<Vector<E, N>>,
    biases: &UpToThree<E>,
    residual: &[Vector<E, Const<2>>],
    out: &mut [Vector<E, Const<2>>],
    shape: &LinearShape,
    tiles: u32,
    #[comptime] plan: LinearTilesBlueprint,
    #[define(E)] _type: ElemType,
) {
    let (row_tile, output_tile) = place_of_cube(shape, tiles as usize, plan);
    let tile = locate_tile(
        shape,
        output_tile,
        comptime!(plan.outputs()),
        plan.projection,
    );
    if !tile.exists {
        terminate!();
    }
    let mut tile = tile;
    let mut first_row = row_tile * comptime!(plan.rows());
    if comptime!(plan.whole) {
        first_row = min(first_row, shape.rows as usize - comptime!(plan.rows()));
        tile.first = min(tile.first, tile.count - comptime!(plan.outputs()));
    }
    let source = Source::<E, N>::new(x, weights, &tile, first_row, shape);
    let count = source.vectors.div_ceil(STAGE);
    let mut shared =
        Shared::<[Vector<E, N>]>::new_aligned_slice(comptime!(plan.stages * plan.stage()), 16usize);
    #[unroll]
    for stage in 0..comptime!(plan.stages - 1) {
        if stage < count {
            #[unroll]
            for part in 0..STEPS {
                source.request(&mut shared, stage, stage, part, plan);
            }
        }
        commit_group();
    }
    let mut sums = Array::<f32>::new(comptime!(BLOCKS * PAIRS * 2 * RESULT));
    #[unroll]
    for i in 0..comptime!(BLOCKS * PAIRS * 2 * RESULT) {
        sums[i] = 0.0f32;
    }
    let mut done = 0usize;
    let mut stage = 0usize;
    let mut free = comptime!(plan.stages - 1).runtime();
    while done < count {
        wait_groups(comptime!(plan.stages - 2));
        sync_cube();
        let next = done + comptime!(plan.stages - 1);
        #[unroll]
        for part in 0..STEPS {
            add_step::<E, N>(&mut sums, &shared, stage, part, plan);
            // Between the products, which take the time of the requests.
            if next < count {
                source.request(&mut shared, next, free, part, plan);
            }
        }
        commit_group();
        free = stage;
        stage += 1;
        if stage == comptime!(plan.stages) {
            stage = 0usize;
        }
        done += 1;
    }
    write::<E>(&sums, biases, residual, out, &tile, first_row, shape, plan);
}

/// Returns the tile of rows and the tile of outputs of this cube.
///
/// Cubes that run side by side share few tiles of rows and few of weights, which the L2 cache
/// holds.
#[cube]
fn place_of_cube(
    shape: &LinearShape,
    tiles: usize,
    #[comptime] plan: LinearTilesBlueprint,
) -> (usize, usize) {
    let row_tiles = (shape.rows as usize).div_ceil(comptime!(plan.rows()));
    let at_once = ROW_TILES_AT_ONCE * tiles;
    let first = CUBE_POS / at_once * ROW_TILES_AT_ONCE;
    let place = CUBE_POS % at_once;
    // A grid may have a few cubes too many.
    let size = max(
        min(max(row_tiles, first) - first, ROW_TILES_AT_ONCE),
        1usize,
    );
    let output_tile = select(first < row_tiles, place / size, tiles);
    (first + place % size, output_tile)
}

/// The rows of x and of the weights of a cube.
#[derive(CubeType)]
struct Source<'a, E: Float, N: Size> {
    x: &'a [Vector<E, N>],
    weights: &'a UpToThree<Vector<E, N>>,
    /// The number of the weight.
    weight: u32,
    /// This unit's first row of x.
    row: usize,
    /// Rows of x.
    rows: usize,
    /// This unit's first row of the weight.
    output: usize,
    /// Rows of the weight.
    outputs: usize,
    /// Vectors of a row.
    vectors: usize,
    /// Vectors between two rows of the weight.
    pitch: usize,
}

#[cube]
impl<'a, E: Float, N: Size> Source<'a, E, N> {
    fn new(
        x: &'a [Vector<E, N>],
        weights: &'a UpToThree<Vector<E, N>>,
        tile: &Tile,
        first_row: usize,
        shape: &LinearShape,
    ) -> Source<'a, E, N> {
        let unit = UNIT_POS as usize / STAGE;
        Source::<'a, E, N> {
            x,
            weights,
            weight: tile.weight,
            row: first_row + unit,
            rows: shape.rows as usize,
            output: tile.first + unit,
            outputs: tile.count,
            vectors: shape.features as usize / VECTOR,
            pitch: shape.pitch as usize / VECTOR,
        }
    }

    /// Requests part `part` of the rows, features from 64 `step` on, for stage `stage`.
    fn request(
        &self,
        shared: &mut Shared<[Vector<E, N>]>,
        step: usize,
        stage: usize,
        #[comptime] part: usize,
        #[comptime] plan: LinearTilesBlueprint,
    ) {
        let at_once = comptime!(plan.rows_at_once());
        let stride = comptime!(row_stride(STAGE * VECTOR));
        let first = stage * comptime!(plan.stage()) + UNIT_POS as usize / STAGE * stride;
        #[unroll]
        for round in 0..comptime!((plan.rows() + plan.weights()) / at_once) {
            if comptime!(round % STEPS == part) {
                let base = comptime!(round * at_once);
                let target = first + comptime!(base * stride);
                if comptime!(base < plan.rows()) {
                    self.request_row(
                        self.x,
                        shared,
                        self.row + base,
                        self.rows,
                        self.vectors,
                        step,
                        target,
                        plan,
                    );
                } else {
                    self.request_weight(shared, step, target, comptime!(base - plan.rows()), plan);
                }
            }
        }
    }

    /// Requests this unit's vector of its row number `base` of the weights.
    fn request_weight(
        &self,
        shared: &mut Shared<[Vector<E, N>]>,
        step: usize,
        target: usize,
        #[comptime] base: usize,
        #[comptime] plan: LinearTilesBlueprint,
    ) {
        let (weights, count, pitch) = (self.weights, self.outputs, self.pitch);
        if comptime!(plan.projection.gated) {
            let half = comptime!(PLANE_WEIGHTS / 2);
            let output = self.output + comptime!(base / PLANE_WEIGHTS * half + base % half);
            if comptime!(base % PLANE_WEIGHTS < half) {
                self.request_row(
                    &weights.first,
                    shared,
                    output,
                    count,
                    pitch,
                    step,
                    target,
                    plan,
                );
            } else {
                self.request_row(
                    &weights.second,
                    shared,
                    output,
                    count,
                    pitch,
                    step,
                    target,
                    plan,
                );
            }
        } else {
            let output = self.output + base;
            if self.weight == 0u32 {
                self.request_row(
                    &weights.first,
                    shared,
                    output,
                    count,
                    pitch,
                    step,
                    target,
                    plan,
                );
            }
            if comptime!(plan.projection.weights > 1) {
                if self.weight == 1u32 {
                    self.request_row(
                        &weights.second,
                        shared,
                        output,
                        count,
                        pitch,
                        step,
                        target,
                        plan,
                    );
                }
            }
            if comptime!(plan.projection.weights > 2) {
                if self.weight == 2u32 {
                    self.request_row(
                        &weights.third,
                        shared,
                        output,
                        count,
                        pitch,
                        step,
                        target,
                        plan,
                    );
                }
            }
        }
    }

    /// Requests this unit's vector of a row for the row of a stage that begins at `target`. Past
    /// the last row and the last feature it becomes zeros.
    #[allow(clippy::too_many_arguments)]
    fn request_row(
        &self,
        source: &[Vector<E, N>],
        shared: &mut Shared<[Vector<E, N>]>,
        row: usize,
        rows: usize,
        pitch: usize,
        step: usize,
        target: usize,
        #[comptime] plan: LinearTilesBlueprint,
    ) {
        let column = UNIT_POS as usize % STAGE;
        let at = step * STAGE + column;
        let target = target + column;
        if comptime!(plan.whole) {
            let from = row * pitch + at;
            copy_async(
                &source[from..from + 1],
                &mut shared[target..target + 1],
                comptime!(VECTOR as u32),
            );
        } else {
            let valid = select(row < rows && at < self.vectors, 1usize, 0usize);
            let from = min(row, rows - 1) * pitch + min(at, self.vectors - 1);
            copy_async_checked(
                &source[from..from + valid],
                &mut shared[target..target + 1],
                comptime!(VECTOR as u32),
            );
        }
    }
}

/// Adds the products of 16 features of a stage.
#[cube]
fn add_step<E: Float, N: Size>(
    sums: &mut Array<f32>,
    shared: &Shared<[Vector<E, N>]>,
    stage: usize,
    #[comptime] step: usize,
    #[comptime] plan: LinearTilesBlueprint,
) {
    let stride = comptime!(row_stride(STAGE * VECTOR));
    let plane = UNIT_POS as usize / PLANE;
    let first = stage * comptime!(plan.stage());
    let (row, vector) = address_by_rows(UNIT_POS_PLANE);
    let row = plane / comptime!(plan.weight_planes) * PLANE_ROWS + row as usize;
    let left = first + row * stride + vector as usize;
    let (row, vector) = address_by_columns(UNIT_POS_PLANE);
    let row = plane % comptime!(plan.weight_planes) * PLANE_WEIGHTS + row as usize;
    let right = first + (comptime!(plan.rows()) + row) * stride + vector as usize;
    let mut a = Array::<Vector<E, Const<2>>>::new(comptime!(4 * BLOCKS));
    #[unroll]
    for block in 0..BLOCKS {
        let at = left + comptime!(block * ROWS * stride + 2 * step);
        let loaded = load_rows::<E, N>(shared, at);
        #[unroll]
        for i in 0..4usize {
            a[comptime!(4 * block + i)] = loaded[i];
        }
    }
    #[unroll]
    for pair in 0..PAIRS {
        let at = right + comptime!(pair * 2 * COLUMNS * stride + 2 * step);
        let b = load_columns::<E, N>(shared, at);
        #[unroll]
        for block in 0..BLOCKS {
            #[unroll]
            for half in 0..2usize {
                let to = comptime!(((block * PAIRS + pair) * 2 + half) * RESULT);
                multiply::<E>(sums, &a, &b, block, half, to);
            }
        }
    }
}

/// Writes the outputs of this lane's sums.
#[cube]
#[allow(clippy::too_many_arguments)]
fn write<E: Float>(
    sums: &Array<f32>,
    biases: &UpToThree<E>,
    residual: &[Vector<E, Const<2>>],
    out: &mut [Vector<E, Const<2>>],
    tile: &Tile,
    first_row: usize,
    shape: &LinearShape,
    #[comptime] plan: LinearTilesBlueprint,
) {
    let plane = UNIT_POS as usize / PLANE;
    let width = row_width(shape, plan.projection);
    let first_row = first_row
        + plane / comptime!(plan.weight_planes) * PLANE_ROWS
        + result_row(UNIT_POS_PLANE) as usize;
    let first = tile.first
        + plane % comptime!(plan.weight_planes) * comptime!(plan.plane_outputs())
        + result_column(UNIT_POS_PLANE) as usize;
    // The residual is added in pairs.
    let without = comptime!(ProjectionBlueprint {
        residual: false,
        ..plan.projection
    });
    #[unroll]
    for n in 0..comptime!(plan.plane_outputs() / COLUMNS) {
        let output = first + comptime!(n * COLUMNS);
        if output < tile.count {
            let mut low = load_addends::<E>(biases, &biases.first, tile, output, 0usize, without);
            let mut high =
                load_addends::<E>(biases, &biases.first, tile, output + 1, 0usize, without);
            #[unroll]
            for row in 0..comptime!(2 * BLOCKS) {
                let place = first_row + comptime!(row * ROWS / 2);
                if place < shape.rows as usize {
                    let at = (place * width + tile.before + output) / 2;
                    if comptime!(plan.projection.residual) {
                        let added = residual[at];
                        low.residual = f32::cast_from(added.extract(0usize));
                        high.residual = f32::cast_from(added.extract(1usize));
                    }
                    let gate = comptime!((row / 2 * PAIRS * 2 + n) * RESULT + row % 2 * 2);
                    let up = comptime!(if plan.projection.gated {
                        gate + PAIRS * RESULT
                    } else {
                        gate
                    });
                    let left = finish(sums[gate], sums[up], &low, plan.projection);
                    let right = finish(
                        sums[comptime!(gate + 1)],
                        sums[comptime!(up + 1)],
                        &high,
                        plan.projection,
                    );
                    let mut two = Vector::<f32, Const<2>>::new(left);
                    two.insert(1usize, right);
                    out[at] = Vector::cast_from(two);
                }
            }
        }
    }
}
