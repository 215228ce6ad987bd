//! The tiles that a plane copies to its slots ahead of their products.

use cubecl::prelude::barrier::copy_async;
use cubecl::prelude::*;

use super::work::Work;
use super::{LinearBlocksBlueprint, Memory};
use crate::backends::cube::parts::blocks::{LANES, ROWS, Words, load_codes, load_scales};
use crate::backends::cube::parts::cp_async::{commit_group, wait_groups};
use crate::backends::cube::parts::warpgroup::{address_of, lane, plane, value_of};

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
    /// The slot that is copied to, or received from, next.
    slot: usize,
    /// The addresses of the plane's slots and of their barriers.
    slots: u32,
    barriers: u32,
    /// The parity of the phase in which the slot's tiles arrive.
    parity: u32,
}

#[cube]
impl<'a> Copies<'a> {
    pub fn new(
        first: &'a [Words],
        second: &'a [Words],
        memory: &Memory,
        work: &Work,
        #[comptime] plan: LinearBlocksBlueprint,
    ) -> Copies<'a> {
        let mut slots = 0u32;
        let mut barriers = 0u32;
        if comptime!(plan.bulk) {
            let of_plane = plane() as u32 * comptime!(plan.slots as u32);
            slots = address_of(&memory.slots[0..1]) + of_plane * comptime!(16 * plan.slot() as u32);
            barriers = address_of(&memory.barriers[0..1]) + of_plane * 8u32;
            if lane() == 0 {
                #[unroll]
                for i in 0..comptime!(plan.slots as u32) {
                    init_barrier(barriers + 8u32 * i);
                }
                gpu_asm!("fence.proxy.async.shared::cta;");
            }
            sync_plane();
        }
        let mut copies = Copies::<'a> {
            first,
            second,
            item: work.cube,
            tiles: Array::<usize>::new(comptime!(plan.weight_tiles)),
            step: plane(),
            exists: work.cube < work.items && (plane()) < work.steps,
            slot: 0usize.runtime(),
            slots,
            barriers,
            // The first requests go round the ring once.
            parity: 1u32.runtime(),
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
            self.step = plane();
            self.item += work.cubes;
            self.exists = self.exists && self.item < work.items;
            self.locate(work, plan);
        }
    }

    /// Goes to the next slot.
    fn next_slot(&mut self, #[comptime] plan: LinearBlocksBlueprint) {
        self.slot += 1;
        if self.slot == plan.slots {
            self.slot = 0usize;
            self.parity ^= 1u32;
        }
    }

    /// The first vector of the slot.
    fn vector(&self, #[comptime] plan: LinearBlocksBlueprint) -> usize {
        (plane() * plan.slots + self.slot) * plan.slot()
    }

    /// Requests the next tiles, number `number` of all since the first ones of a step.
    pub fn request(
        &mut self,
        memory: &mut Memory,
        work: &Work,
        #[comptime] number: usize,
        #[comptime] plan: LinearBlocksBlueprint,
    ) {
        let layout = comptime!(plan.layout());
        let bundles = comptime!(plan.weight_tiles / plan.beside);
        let bundle = comptime!(number % bundles);
        let to = self.vector(plan);
        let copies = self.exists && (comptime!(!plan.bulk).runtime() || lane() == 0);
        if copies {
            if comptime!(plan.bulk) {
                let bytes = comptime!(16 * plan.slot() as u32);
                expect_bytes(self.barriers + 8u32 * self.slot as u32, bytes);
            }
            #[unroll]
            for i in 0..comptime!(plan.beside) {
                let number = comptime!(bundle * plan.beside + i);
                let from = self.tiles[number] + self.step * comptime!(layout.vectors());
                if comptime!(plan.projection.gated && 2 * number >= plan.weight_tiles) {
                    self.copy_tile(self.second, memory, from, to, i, plan);
                } else {
                    self.copy_tile(self.first, memory, from, to, i, plan);
                }
            }
        }
        if comptime!(!plan.bulk) {
            commit_group();
        }
        self.next_slot(plan);
        if comptime!(bundle == bundles - 1) {
            self.advance(work, plan);
        }
    }

    /// Requests a tile for place `i` of the slot, whose first vector is `to`.
    fn copy_tile(
        &self,
        weight: &[Words],
        memory: &mut Memory,
        from: usize,
        to: usize,
        #[comptime] i: usize,
        #[comptime] plan: LinearBlocksBlueprint,
    ) {
        let vectors = comptime!(plan.layout().vectors());
        if comptime!(plan.bulk) {
            let of_slot = self.slot as u32 * comptime!(16 * plan.slot() as u32);
            let target = self.slots + of_slot + comptime!((16 * i * vectors) as u32);
            let barrier = self.barriers + 8u32 * self.slot as u32;
            let bytes = comptime!(16 * vectors as u32);
            copy_bulk(&weight[from..from + 1], target, barrier, bytes);
        } else {
            copy_vectors(
                weight,
                &mut memory.slots,
                from,
                to + comptime!(i * vectors),
                vectors,
            );
        }
    }

    /// Waits for the tiles that were requested first, loads this lane's vectors of them, and
    /// requests others in their place. They are bundle `bundle` of a step.
    pub fn receive(
        &mut self,
        memory: &mut Memory,
        loaded: &mut Array<Words>,
        work: &Work,
        #[comptime] bundle: usize,
        #[comptime] plan: LinearBlocksBlueprint,
    ) {
        let layout = comptime!(plan.layout());
        if comptime!(plan.bulk) {
            let barrier = self.barriers + 8u32 * self.slot as u32;
            let mut complete = 0u32;
            while complete == 0u32 {
                complete = try_wait(barrier, self.parity);
            }
        } else {
            wait_groups(comptime!(plan.slots - 1));
            // The lanes read what others copied.
            sync_plane();
        }
        let first = self.vector(plan);
        #[unroll]
        for i in 0..comptime!(plan.beside) {
            let tile = first + comptime!(i * layout.vectors());
            let at = comptime!(i * layout.of_lane());
            let codes = comptime!((0, layout.first_scales()));
            load_codes(loaded, &memory.slots, tile, at, codes);
            load_scales(loaded, &memory.slots, tile, at, layout);
        }
        // Others copy over what the lanes read.
        sync_plane();
        self.request(memory, work, comptime!(bundle + plan.slots), plan);
    }
}

#[cube]
fn init_barrier(barrier: u32) {
    let barrier = value_of::<u32>(barrier);
    gpu_asm!("mbarrier.init.shared::cta.b64 [{barrier}], 1;", barrier = in(_) barrier);
}

/// Arrives at a barrier, whose phase is complete when that many bytes have been copied.
#[cube]
fn expect_bytes(barrier: u32, #[comptime] bytes: u32) {
    let barrier = value_of::<u32>(barrier);
    gpu_asm!(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [{barrier}], {bytes};",
        barrier = in(_) barrier, bytes = const bytes,
    );
}

/// Copies bytes from the beginning of `source` to an address in shared memory.
#[cube]
fn copy_bulk(source: &[Words], target: u32, barrier: u32, #[comptime] bytes: u32) {
    let source = source.as_ptr();
    let target = value_of::<u32>(target);
    let barrier = value_of::<u32>(barrier);
    gpu_asm!(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [{target}], [{source}],",
        "{bytes}, [{barrier}];",
        target = in(_) target, source = in(_) source, bytes = const bytes, barrier = in(_) barrier,
    );
}

/// Waits for a limited time; returns 1 if the phase of this parity is complete.
#[cube]
fn try_wait(barrier: u32, parity: u32) -> u32 {
    let barrier = value_of::<u32>(barrier);
    let parity = value_of::<u32>(parity);
    let complete: u32;
    gpu_asm!(
        "{{",
        ".reg .pred p;",
        "mbarrier.try_wait.parity.shared::cta.b64 p, [{barrier}], {parity};",
        "selp.b32 {complete}, 1, 0, p;",
        "}}",
        complete = out(_) complete, barrier = in(_) barrier, parity = in(_) parity,
    );
    complete
}

/// Requests `vectors` vectors: each lane one of every 32.
#[cube]
fn copy_vectors(
    weight: &[Words],
    slots: &mut Shared<[Words]>,
    from: usize,
    to: usize,
    #[comptime] vectors: usize,
) {
    let lane = lane() as usize;
    #[unroll]
    for i in 0..comptime!(vectors.div_ceil(LANES)) {
        let at = comptime!(i * LANES) + lane;
        let whole = comptime!((i + 1) * LANES <= vectors).runtime();
        if whole || at < vectors {
            copy_vector(weight, slots, from + at, to + at);
        }
    }
}

#[cube]
fn copy_vector(weight: &[Words], slots: &mut Shared<[Words]>, from: usize, to: usize) {
    copy_async(&weight[from..from + 1], &mut slots[to..to + 1], 4u32);
}
