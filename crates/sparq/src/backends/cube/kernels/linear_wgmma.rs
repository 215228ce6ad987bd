//! Linear layers with many rows on Hopper GPUs, with `wgmma`.
//!
//! A cube multiplies a tile of rows of x by a tile of rows of the weights, and then the next tile.
//! One unit requests parts of both tiles as bulk copies into a ring of stages in shared memory. Two
//! warpgroups multiply the stages that have arrived, 64 rows each, and add bias, activation and
//! residual to the sums in their registers.
//!
//! The copies change the order of a tile's rows of weights, so that a lane's sums are those of
//! eight outputs in a row: it reads residuals and writes outputs as vectors of 16 bytes.
//!
//! With a gate, half of a tile's rows of weights are those of the gate, and the other half the same
//! rows of the layer beside it: a lane holds both products of an output.

use cubecl::prelude::*;

use crate::backends::cube::parts::fragments::result_row;
use crate::backends::cube::parts::projection::{
    LinearShape, ProjectionBlueprint, Tile, UpToThree, finish, load_addends, locate_tile, row_width,
};
use crate::backends::cube::parts::stage_ring::{StageRing, bytes_of_barriers};
use crate::backends::cube::parts::warpgroup::{
    ALIGNMENT, PLANE, ROWS, UNITS, WIDTH, add_products, address_of, bytes_of, complete, descriptor,
    lane, plane, wait_for_products_before, warpgroup,
};

/// Warpgroups that multiply.
const WARPGROUPS: usize = 2;
/// Rows of a tile.
pub(crate) const TILE_ROWS: usize = WARPGROUPS * ROWS;
/// Units of a cube: those that multiply, and the plane of the one that requests.
pub(crate) const CUBE_UNITS: usize = WARPGROUPS * UNITS + PLANE;
/// Outputs of a lane that lie side by side.
pub(crate) const RUN: usize = 8;
/// Outputs of four lanes that lie side by side.
pub(crate) const BLOCK: usize = 4 * RUN;
/// Tiles of rows that share the weights of cubes which run side by side. So many and as many tiles
/// of outputs are those of all processors of an H100 together.
const ROW_TILES_AT_ONCE: usize = 16;

/// The settings that a linear layer with many rows is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LinearWgmmaBlueprint {
    /// The weights and the epilogue. The norm went before.
    pub projection: ProjectionBlueprint,
    /// Rows of weights of a tile, 128 or 256.
    pub weights: usize,
    /// Stages in shared memory.
    pub stages: usize,
    /// The name of the type in PTX.
    pub element: &'static str,
}

impl LinearWgmmaBlueprint {
    /// Outputs of a tile.
    pub fn outputs(&self) -> usize {
        self.weights / self.layers()
    }

    /// Sums of a lane.
    pub fn sums(&self) -> usize {
        self.weights * ROWS / UNITS
    }

    /// Layers with rows in a tile.
    fn layers(&self) -> usize {
        match self.projection.gated {
            true => 2,
            false => 1,
        }
    }

    /// Elements of a stage.
    fn stage(&self) -> usize {
        (TILE_ROWS + self.weights) * WIDTH
    }

    /// Bytes of shared memory, with the barriers.
    pub fn shared_bytes(&self) -> usize {
        2 * self.stages * self.stage() + bytes_of_barriers(self.stages)
    }
}

/// The weights of a launch, [out / 32, 4, 4, 2, in] each: output 32 a + 8 c + 2 b + d is row
/// [a, b, c, d]. Those past the last are not read.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct WeightMaps<E: CubePrimitive> {
    /// The first, or that of the gate.
    pub first: TensorMap<E, Tiled>,
    /// The second, or that of the layer beside the gate.
    pub second: TensorMap<E, Tiled>,
    /// The third.
    pub third: TensorMap<E, Tiled>,
}

/// Multiplies x [rows, in] by up to three weights [out, in] and writes [rows, outputs].
///
/// `S` is the sums of a lane. Every weight has a multiple of [`BLOCK`] outputs. `tiles` counts the
/// tiles of outputs of all weights.
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn linear_wgmma_kernel<E: Float, S: Size>(
    x: &TensorMap<E, Tiled>,
    weights: &WeightMaps<E>,
    biases: &UpToThree<E>,
    residual: &[Vector<E, Const<RUN>>],
    out: &mut [Vector<E, Const<RUN>>],
    shape: &LinearShape,
    tiles: u32,
    #[comptime] plan: LinearWgmmaBlueprint,
    #[define(E)] _type: ElemType,
) {
    let mut stages = Stages::<E>::new(plan);
    let steps = (shape.features as usize).div_ceil(WIDTH);
    let row_tiles = (shape.rows as usize).div_ceil(TILE_ROWS);
    let requests = UNIT_POS as usize >= comptime!(WARPGROUPS * UNITS);
    let mut index = CUBE_POS;
    while index < row_tiles * tiles as usize {
        let (row_tile, output_tile) = place_of_tile(index, row_tiles, tiles as usize);
        let tile = locate_tile(
            shape,
            output_tile,
            comptime!(plan.outputs()),
            plan.projection,
        );
        let first_row = row_tile * TILE_ROWS;
        if requests {
            if lane() == 0u32 {
                stages.request(x, weights, &tile, first_row, steps, plan);
            }
        } else {
            let sums = stages.multiply::<S>(steps, plan);
            write::<E, S>(sums, biases, residual, out, &tile, first_row, shape, plan);
        }
        index += CUBE_COUNT;
    }
}

/// Returns the tile of rows and the tile of outputs with an index.
///
/// Tiles of cubes that run side by side share few tiles of rows and few of weights, which the L2
/// cache holds.
#[cube]
fn place_of_tile(index: usize, row_tiles: usize, tiles: usize) -> (usize, usize) {
    let at_once = ROW_TILES_AT_ONCE * tiles;
    let first = index / at_once * ROW_TILES_AT_ONCE;
    let place = index % at_once;
    let size = min(row_tiles - first, ROW_TILES_AT_ONCE);
    (first + place % size, place / size)
}

/// A place among the stages, each of rows of x and, after them, rows of weights.
#[derive(CubeType)]
struct Stages<E: Float> {
    tiles: Shared<[E]>,
    ring: StageRing,
}

#[cube]
impl<E: Float> Stages<E> {
    fn new(#[comptime] plan: LinearWgmmaBlueprint) -> Stages<E> {
        let size = comptime!(plan.stages * plan.stage());
        Stages::<E> {
            tiles: Shared::<[E]>::new_aligned_slice(size, ALIGNMENT),
            ring: StageRing::new(plan.stages, comptime!(WARPGROUPS * UNITS)),
        }
    }

    /// Requests the stages of a tile, each as soon as it is free. Past the last row and the last
    /// feature they are zeros.
    fn request(
        &mut self,
        x: &TensorMap<E, Tiled>,
        weights: &WeightMaps<E>,
        tile: &Tile,
        first_row: usize,
        steps: usize,
        #[comptime] plan: LinearWgmmaBlueprint,
    ) {
        let block = (tile.first / BLOCK) as i32;
        for step in 0..steps {
            let barrier = self.ring.refill(comptime!(2 * plan.stage()));
            let column = (step * WIDTH) as i32;
            let rows = self.ring.stage * comptime!(plan.stage());
            let first = rows + comptime!(TILE_ROWS * WIDTH);
            let second = first + comptime!(plan.outputs() * WIDTH);
            let end = rows + comptime!(plan.stage());
            barrier.tma_load_2d(x, &mut self.tiles[rows..first], first_row as i32, column);
            if comptime!(plan.projection.gated) {
                let target = &mut self.tiles[first..second];
                barrier.tma_load_5d(&weights.first, target, block, 0, 0, 0, column);
                let target = &mut self.tiles[second..end];
                barrier.tma_load_5d(&weights.second, target, block, 0, 0, 0, column);
            } else {
                let target = &mut self.tiles[first..end];
                if tile.weight == 0u32 {
                    barrier.tma_load_5d(&weights.first, target, block, 0, 0, 0, column);
                }
                if comptime!(plan.projection.weights > 1) {
                    if tile.weight == 1u32 {
                        barrier.tma_load_5d(&weights.second, target, block, 0, 0, 0, column);
                    }
                }
                if comptime!(plan.projection.weights > 2) {
                    if tile.weight == 2u32 {
                        barrier.tma_load_5d(&weights.third, target, block, 0, 0, 0, column);
                    }
                }
            }
            self.ring.advance();
        }
    }

    /// Returns the sums of a tile.
    fn multiply<S: Size>(
        &mut self,
        steps: usize,
        #[comptime] plan: LinearWgmmaBlueprint,
    ) -> Vector<f32, S> {
        let tiles = address_of(&self.tiles[0..1]);
        let rows = tiles + warpgroup() * comptime!(bytes_of(ROWS) as u32);
        let weights = tiles + comptime!(bytes_of(TILE_ROWS) as u32);
        let mut sums = Vector::<f32, S>::new(0.0f32);
        let mut before = self.ring.stage;
        for step in 0..steps {
            self.ring.wait();
            let stage = self.ring.stage;
            let at = stage as u32 * comptime!(2 * plan.stage() as u32);
            let (a, b) = (descriptor(rows + at), descriptor(weights + at));
            sums = add_products::<S>(sums, a, b, plan.element);
            wait_for_products_before();
            if step > 0 {
                self.ring.release(before);
            }
            before = stage;
            self.ring.advance();
        }
        let sums = complete::<S>(sums);
        self.ring.release(before);
        sums
    }
}

/// Writes the outputs of this lane's sums.
#[cube]
#[allow(clippy::too_many_arguments)]
fn write<E: Float, S: Size>(
    sums: Vector<f32, S>,
    biases: &UpToThree<E>,
    residual: &[Vector<E, Const<RUN>>],
    out: &mut [Vector<E, Const<RUN>>],
    tile: &Tile,
    first_row: usize,
    shape: &LinearShape,
    #[comptime] plan: LinearWgmmaBlueprint,
) {
    let width = row_width(shape, plan.projection);
    let first_row =
        first_row + plane() * comptime!(ROWS * PLANE / UNITS) + result_row(lane()) as usize;
    let first = tile.first + lane() as usize % 4 * RUN;
    // The residual is added in vectors.
    let without = comptime!(ProjectionBlueprint {
        residual: false,
        ..plan.projection
    });
    #[unroll]
    for block in 0..comptime!(plan.outputs() / BLOCK) {
        let output = first + comptime!(block * BLOCK);
        #[unroll]
        for half in 0..2usize {
            let row = first_row + comptime!(8 * half);
            if output < tile.count && row < shape.rows as usize {
                let at = (row * width + tile.before + output) / RUN;
                let mut added = Vector::<E, Const<RUN>>::empty();
                if comptime!(plan.projection.residual) {
                    added = residual[at];
                }
                let mut outputs = Vector::<f32, Const<RUN>>::empty();
                #[unroll]
                for i in 0..RUN {
                    let mut addends =
                        load_addends::<E>(biases, &biases.first, tile, output + i, 0usize, without);
                    if comptime!(plan.projection.residual) {
                        addends.residual = f32::cast_from(added.extract(i));
                    }
                    // Two sums of each of four groups of columns.
                    let gate = comptime!((block * 4 + i / 2) * 4 + half * 2 + i % 2);
                    let up = comptime!(gate + plan.sums() / 2 * (plan.layers() - 1));
                    let sum = finish(
                        sums.extract(gate),
                        sums.extract(up),
                        &addends,
                        plan.projection,
                    );
                    outputs.insert(i, sum);
                }
                out[at] = Vector::cast_from(outputs);
            }
        }
    }
}
