//! Stages vectors of the sketch in shared memory with `cp.async`.
//!
//! A unit requests vectors in groups, some groups ahead of their use, and reads only vectors that
//! it requested itself: no barrier is needed. Plain loads into registers don't overlap this way.
//! The compiler moves each load to its use, and the unit waits for memory again and again.

use cubecl::prelude::barrier::copy_async;
use cubecl::prelude::*;

use super::logits::SketchBlueprint;

/// Vectors of a group.
pub(crate) const GROUP: usize = 4;
/// Groups in flight if other cubes of the processor work in the meantime.
pub(crate) const GROUPS_SHARED: usize = 3;
/// Groups in flight if a cube has its processor to itself, or nearly so.
pub(crate) const GROUPS_ALONE: usize = 8;

/// The requested vectors of every unit, in a ring of groups.
#[derive(CubeType)]
pub(crate) struct SketchPipeline<K: Numeric, N: Size> {
    vectors: Shared<[Vector<K, N>]>,
}

#[cube]
impl<K: Numeric, N: Size> SketchPipeline<K, N> {
    /// Allocates room for the groups in flight.
    pub fn new(#[comptime] plan: SketchBlueprint) -> SketchPipeline<K, N> {
        SketchPipeline::<K, N> {
            vectors: Shared::<[Vector<K, N>]>::new_slice(comptime!(
                plan.groups_ahead * GROUP * plan.query.units as usize
            )),
        }
    }

    /// Requests vector `at` of the sketch as number `number` of group `group`.
    pub fn request(
        &mut self,
        sketch: &[Vector<K, N>],
        at: usize,
        group: usize,
        #[comptime] number: usize,
        #[comptime] plan: SketchBlueprint,
    ) {
        let slot = slot_of(group, number, plan);
        copy_async(
            &sketch[at..at + 1],
            &mut self.vectors[slot..slot + 1],
            comptime!(plan.vector as u32),
        );
    }

    /// Returns a requested vector, once [`wait_groups`] waited for its group.
    pub fn get(
        &self,
        group: usize,
        #[comptime] number: usize,
        #[comptime] plan: SketchBlueprint,
    ) -> Vector<K, N> {
        self.vectors[slot_of(group, number, plan)]
    }
}

#[cube]
fn slot_of(group: usize, #[comptime] number: usize, #[comptime] plan: SketchBlueprint) -> usize {
    let group = group % comptime!(plan.groups_ahead);
    (group * comptime!(GROUP) + number) * comptime!(plan.query.units as usize) + UNIT_POS as usize
}

/// Closes a group. A group without requests counts like the others.
#[cube]
pub(crate) fn commit_group() {
    gpu_asm!("cp.async.commit_group;");
}

/// Waits until all groups except the last `left` have arrived.
#[cube]
pub(crate) fn wait_groups(#[comptime] left: usize) {
    gpu_asm!("cp.async.wait_group {n};", n = const left);
}
