//! The tiles that a plane copies to its slots ahead of their products.

use cubecl::prelude::barrier::copy_async;
use cubecl::prelude::*;

use super::LinearBlocksBlueprint;
use super::work::Work;
use crate::backends::cube::parts::blocks::{LANES, ROWS, Words, load_codes, load_scales};
use crate::backends::cube::parts::cp_async::{commit_group, wait_groups};

/// The next tiles to copy. The slots are a ring, and those of a plane follow each other.
#[derive(CubeType)]
pub(super) struct Copies<'a> {
    first: &'a [Words],
    second: &'a [Words],
    item: usize,
    /// The first vector of each tile of rows.
    tiles: Array<usize>,
    /// The tile of each row.
    step: usize,
    /// There are such tiles.
    exists: bool,
    /// The first vector of the slot that is copied to, or received from, next.
    slot: usize,
}

#[cube]
impl<'a> Copies<'a> {
    pub fn new(
        first: &'a [Words],
        second: &'a [Words],
        work: &Work,
        #[comptime] plan: LinearBlocksBlueprint,
    ) -> Copies<'a> {
        let mut copies = Copies::<'a> {
            first,
            second,
            item: work.cube,
            tiles: Array::<usize>::new(comptime!(plan.weight_tiles)),
            step: PLANE_POS as usize,
            exists: work.cube < work.items && (PLANE_POS as usize) < work.steps,
            slot: PLANE_POS as usize * comptime!(plan.slots * plan.slot()),
        };
        copies.locate(work, plan);
        copies
    }

    fn locate(&mut self, work: &Work, #[comptime] plan: LinearBlocksBlueprint) {
        let first = work.tile(self.item, plan).first;
        #[unroll]
        for i in 0..comptime!(plan.weight_tiles) {
            // Past the last rows of the weight, those are copied again.
            let rows = min(
                first / ROWS + comptime!(i * ROWS % plan.tile() / ROWS),
                (work.count - 1) / ROWS,
            );
            self.tiles[i] = rows * work.steps * comptime!(plan.layout().vectors());
        }
    }

    /// Goes to the plane's next step, which may be the first of the cube's next item.
    fn advance(&mut self, work: &Work, #[comptime] plan: LinearBlocksBlueprint) {
        self.step += comptime!(plan.planes());
        if self.step >= work.steps {
            self.step = PLANE_POS as usize;
            self.item += work.cubes;
            self.exists = self.exists && self.item < work.items;
            self.locate(work, plan);
        }
    }

    /// Goes to the next slot.
    fn next_slot(&mut self, #[comptime] plan: LinearBlocksBlueprint) {
        if comptime!(plan.slots > 1) {
            self.slot += comptime!(plan.slot());
            let end = (PLANE_POS as usize + 1) * comptime!(plan.slots * plan.slot());
            if self.slot == end {
                self.slot -= comptime!(plan.slots * plan.slot());
            }
        }
    }

    /// Requests the next tiles, number `number` of all since the first ones of a step.
    pub fn request(
        &mut self,
        slots: &mut Shared<[Words]>,
        work: &Work,
        #[comptime] number: usize,
        #[comptime] plan: LinearBlocksBlueprint,
    ) {
        let layout = comptime!(plan.layout());
        let bundles = comptime!(plan.weight_tiles / plan.beside);
        let bundle = comptime!(number % bundles);
        if self.exists {
            #[unroll]
            for i in 0..comptime!(plan.beside) {
                let number = comptime!(bundle * plan.beside + i);
                let from = self.tiles[number] + self.step * comptime!(layout.vectors());
                let to = self.slot + comptime!(i * layout.vectors());
                if comptime!(plan.projection.gated && 2 * number >= plan.weight_tiles) {
                    copy_tile(self.second, slots, from, to, plan);
                } else {
                    copy_tile(self.first, slots, from, to, plan);
                }
            }
        }
        commit_group();
        self.next_slot(plan);
        if comptime!(bundle == bundles - 1) {
            self.advance(work, plan);
        }
    }

    /// Waits for the tiles that were requested first, loads this lane's vectors of them, and
    /// requests others in their place. They are bundle `bundle` of a step.
    pub fn receive(
        &mut self,
        slots: &mut Shared<[Words]>,
        loaded: &mut Array<Words>,
        work: &Work,
        #[comptime] bundle: usize,
        #[comptime] plan: LinearBlocksBlueprint,
    ) {
        let layout = comptime!(plan.layout());
        wait_groups(comptime!(plan.slots - 1));
        // The lanes read what others copied, and others copy over what they read.
        sync_plane();
        #[unroll]
        for i in 0..comptime!(plan.beside) {
            let tile = self.slot + comptime!(i * layout.vectors());
            let at = comptime!(i * layout.of_lane());
            let codes = comptime!((0, layout.first_scales()));
            load_codes(loaded, &*slots, tile, at, codes);
            load_scales(loaded, &*slots, tile, at, layout);
        }
        sync_plane();
        self.request(slots, work, comptime!(bundle + plan.slots), plan);
    }
}

/// Requests a tile: each lane a vector of every 32.
#[cube]
fn copy_tile(
    weight: &[Words],
    slots: &mut Shared<[Words]>,
    from: usize,
    to: usize,
    #[comptime] plan: LinearBlocksBlueprint,
) {
    let lane = UNIT_POS_PLANE as usize;
    let vectors = comptime!(plan.layout().vectors());
    #[unroll]
    for i in 0..comptime!(vectors.div_ceil(LANES)) {
        let at = comptime!(i * LANES) + lane;
        if comptime!((i + 1) * LANES <= vectors) {
            copy_vector(weight, slots, from + at, to + at);
        } else if at < vectors {
            copy_vector(weight, slots, from + at, to + at);
        }
    }
}

#[cube]
fn copy_vector(weight: &[Words], slots: &mut Shared<[Words]>, from: usize, to: usize) {
    copy_async(&weight[from..from + 1], &mut slots[to..to + 1], 4u32);
}
