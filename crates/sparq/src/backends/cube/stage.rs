//! Loads of the sketch by way of shared memory, where the device copies by itself.
//!
//! A unit asks for vectors in groups, some groups ahead of their use, and reads only what it asked for: no unit waits for another. Loads into registers, however early
//! they stand in a program, are moved by the compiler to where they are used, and the unit then waits for memory again and again.

use cubecl::prelude::barrier::copy_async;
use cubecl::prelude::*;

use super::logits::SketchPlan;

/// Vectors of a group.
pub(crate) const GROUP: usize = 4;
/// Groups that are on their way at a time, where there are cubes enough to have others work meanwhile.
pub(crate) const FEW: usize = 3;
/// The same where a unit has nothing to do before its vectors are there.
pub(crate) const MANY: usize = 8;

/// A unit's own vectors on their way, in the order of its groups.
#[derive(CubeType)]
pub(crate) struct Stage<K: Numeric, N: Size> {
    vectors: Shared<[Vector<K, N>]>,
}

#[cube]
impl<K: Numeric, N: Size> Stage<K, N> {
    /// With room for the groups that are on their way.
    pub fn new(#[comptime] plan: SketchPlan) -> Stage<K, N> {
        Stage::<K, N> {
            vectors: Shared::<[Vector<K, N>]>::new_slice(comptime!(
                plan.ahead * GROUP * plan.query.units as usize
            )),
        }
    }

    /// Asks for vector `at` of the sketch as number `number` of group `group`.
    pub fn ask(
        &mut self,
        sketch: &[Vector<K, N>],
        at: usize,
        group: usize,
        #[comptime] number: usize,
        #[comptime] plan: SketchPlan,
    ) {
        let slot = slot_of(group, number, plan);
        copy_async(
            &sketch[at..at + 1],
            &mut self.vectors[slot..slot + 1],
            comptime!(plan.vector as u32),
        );
    }

    /// The vector that [`ask`](Stage::ask) was called for, after [`wait`].
    pub fn get(
        &self,
        group: usize,
        #[comptime] number: usize,
        #[comptime] plan: SketchPlan,
    ) -> Vector<K, N> {
        self.vectors[slot_of(group, number, plan)]
    }
}

#[cube]
fn slot_of(group: usize, #[comptime] number: usize, #[comptime] plan: SketchPlan) -> usize {
    let group = group % comptime!(plan.ahead);
    (group * comptime!(GROUP) + number) * comptime!(plan.query.units as usize) + UNIT_POS as usize
}

/// Ends a group. One that was not asked for anything counts like the others.
#[cube]
pub(crate) fn end_group() {
    gpu_asm!("cp.async.commit_group;");
}

/// Waits until all groups but the last `left` are there.
#[cube]
pub(crate) fn wait(#[comptime] left: usize) {
    gpu_asm!("cp.async.wait_group {n};", n = const left);
}
