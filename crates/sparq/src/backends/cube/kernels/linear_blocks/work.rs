//! The tiles of a cube, and the weights that its planes load ahead.

use cubecl::prelude::*;

use super::LinearBlocksBlueprint;
use crate::backends::cube::parts::blocks::{ROWS, Words, load_codes, load_scales};
use crate::backends::cube::parts::projection::{LinearShape, Tile};

/// The work of a cube: every item that is `cubes` further on than the one before. An item is a tile
/// of outputs of a weight and a block of rows of x. The blocks of a tile follow each other.
#[derive(CubeType)]
pub(super) struct Work {
    /// The first item, and the items between two of them.
    pub cube: usize,
    pub cubes: usize,
    /// All items of the weight.
    pub items: usize,
    blocks: usize,
    /// The number of the weight, the outputs before it and its own.
    weight: u32,
    before: usize,
    count: usize,
    /// Tiles of a row of weights.
    pub steps: usize,
}

#[cube]
impl Work {
    pub fn new(
        shape: &LinearShape,
        cube: usize,
        cubes: usize,
        weight: u32,
        before: usize,
        count: u32,
        #[comptime] plan: LinearBlocksBlueprint,
    ) -> Work {
        let blocks = (shape.rows as usize).div_ceil(comptime!(plan.rows_of_cube()));
        let tiles = (count as usize).div_ceil(comptime!(plan.tile()));
        Work {
            cube,
            cubes,
            items: tiles * blocks,
            blocks,
            weight,
            before,
            count: count as usize,
            steps: shape.pitch as usize,
        }
    }

    pub fn tile(&self, item: usize, #[comptime] plan: LinearBlocksBlueprint) -> Tile {
        Tile {
            weight: self.weight,
            first: item / self.blocks * comptime!(plan.tile()),
            count: self.count,
            before: self.before,
            exists: true.runtime(),
        }
    }

    pub fn first_row(&self, item: usize, #[comptime] plan: LinearBlocksBlueprint) -> usize {
        item % self.blocks * comptime!(plan.rows_of_cube())
    }
}

/// The weights that a plane loads next, while it multiplies by others.
#[derive(CubeType)]
pub(super) struct Ahead<'a> {
    first: &'a [Words],
    second: &'a [Words],
    item: usize,
    /// The first vector of each tile of rows.
    tiles: Array<usize>,
    /// The tile of each row.
    step: usize,
    /// There are such weights.
    exists: bool,
}

#[cube]
impl<'a> Ahead<'a> {
    pub fn new(
        first: &'a [Words],
        second: &'a [Words],
        work: &Work,
        #[comptime] plan: LinearBlocksBlueprint,
    ) -> Ahead<'a> {
        let mut ahead = Ahead::<'a> {
            first,
            second,
            item: work.cube,
            tiles: Array::<usize>::new(comptime!(plan.weight_tiles)),
            step: PLANE_POS as usize,
            exists: work.cube < work.items,
        };
        ahead.locate(work, plan);
        ahead
    }

    fn locate(&mut self, work: &Work, #[comptime] plan: LinearBlocksBlueprint) {
        let first = work.tile(self.item, plan).first;
        #[unroll]
        for i in 0..comptime!(plan.weight_tiles) {
            // Past the last rows of the weight, those are loaded again.
            let rows = min(
                first / ROWS + comptime!(i * ROWS % plan.tile() / ROWS),
                (work.count - 1) / ROWS,
            );
            self.tiles[i] = rows * work.steps * comptime!(plan.layout().vectors());
        }
    }

    /// Moves to the plane's next step, which may be the first of the cube's next item.
    pub fn advance(&mut self, work: &Work, #[comptime] plan: LinearBlocksBlueprint) {
        self.step += comptime!(plan.planes());
        if self.step >= work.steps {
            self.step = PLANE_POS as usize;
            self.item += work.cubes;
            self.exists = self.item < work.items;
            self.locate(work, plan);
        }
    }

    /// Loads this lane's vectors `codes` of codes and upper bits of tile `i`.
    pub fn load_codes(
        &self,
        loaded: &mut Array<Words>,
        #[comptime] i: usize,
        #[comptime] codes: (usize, usize),
        #[comptime] plan: LinearBlocksBlueprint,
    ) {
        let layout = comptime!(plan.layout());
        let tile = self.tiles[i] + self.step * comptime!(layout.vectors());
        let at = comptime!(i * layout.of_lane());
        if self.exists {
            if comptime!(plan.projection.gated && 2 * i >= plan.weight_tiles) {
                load_codes(loaded, self.second, tile, at, codes);
            } else {
                load_codes(loaded, self.first, tile, at, codes);
            }
        }
    }

    /// Loads this lane's vectors of scales of tile `i`.
    pub fn load_scales(
        &self,
        loaded: &mut Array<Words>,
        #[comptime] i: usize,
        #[comptime] plan: LinearBlocksBlueprint,
    ) {
        let layout = comptime!(plan.layout());
        let tile = self.tiles[i] + self.step * comptime!(layout.vectors());
        let at = comptime!(i * layout.of_lane());
        if self.exists {
            if comptime!(plan.projection.gated && 2 * i >= plan.weight_tiles) {
                load_scales(loaded, self.second, tile, at, layout);
            } else {
                load_scales(loaded, self.first, tile, at, layout);
            }
        }
    }
}
