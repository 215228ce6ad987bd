//! The items of a cube.

use cubecl::prelude::*;

use super::LinearBlocksBlueprint;
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
    pub count: usize,
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
        let blocks = if comptime!(plan.whole) {
            1usize.runtime()
        } else {
            (shape.rows as usize).div_ceil(comptime!(plan.rows_of_cube()))
        };
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
            first: self.tile_of(item, plan) * comptime!(plan.tile()),
            count: self.count,
            before: self.before,
            exists: true.runtime(),
        }
    }

    pub fn first_row(&self, item: usize, #[comptime] plan: LinearBlocksBlueprint) -> usize {
        if comptime!(plan.whole) {
            0usize.runtime()
        } else {
            item % self.blocks * comptime!(plan.rows_of_cube())
        }
    }

    /// Returns the tile of an item. A division takes as long as a product.
    fn tile_of(&self, item: usize, #[comptime] plan: LinearBlocksBlueprint) -> usize {
        if comptime!(plan.whole) {
            item
        } else {
            item / self.blocks
        }
    }
}
