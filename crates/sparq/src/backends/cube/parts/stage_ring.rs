//! Stages in shared memory that one unit fills with bulk copies and warpgroups multiply.
//!
//! Each stage has two barriers: one is complete when the bytes of the stage have arrived, the other
//! when all planes that multiply have released it. A phase of a barrier is complete once all have
//! come, and the next begins. The unit that requests and the planes that multiply go round the ring
//! each on their own, and meet only at the barriers.

use cubecl::prelude::barrier::Barrier;
use cubecl::prelude::*;

use super::warpgroup::{PLANE, lane, value_of};

/// A place in the ring.
#[derive(CubeType)]
pub(crate) struct StageRing {
    /// Complete when a stage has arrived.
    full: Shared<[Barrier]>,
    /// Complete when a stage has been multiplied.
    free: Shared<[Barrier]>,
    /// The stage at this place.
    pub stage: usize,
    /// The parity of the phase in which the stage arrives.
    parity: u32,
    /// Stages of the ring.
    #[cube(comptime)]
    stages: usize,
}

/// Returns the bytes of the barriers of `stages` stages.
pub(crate) fn bytes_of_barriers(stages: usize) -> usize {
    2 * stages * size_of::<u64>()
}

#[cube]
impl StageRing {
    /// Returns the first place of a ring of stages that `units` units multiply. All units of the
    /// cube call it.
    pub fn new(#[comptime] stages: usize, #[comptime] units: usize) -> StageRing {
        let full = Shared::<[Barrier]>::new_slice(stages);
        let free = Shared::<[Barrier]>::new_slice(stages);
        if UNIT_POS == 0u32 {
            #[unroll]
            for stage in 0..stages {
                full[stage].init_manual(1u32);
                free[stage].init_manual(comptime!((units / PLANE) as u32));
            }
            sync_async_proxy_shared();
        }
        sync_cube();
        StageRing {
            full,
            free,
            stage: 0usize.runtime(),
            parity: 0u32.runtime(),
            stages,
        }
    }

    /// Goes to the next place.
    pub fn advance(&mut self) {
        self.stage += 1;
        if self.stage == self.stages.comptime() {
            self.stage = 0usize;
            self.parity ^= 1u32;
        }
    }

    /// Waits until the stage at this place is free, and returns the barrier for the copies of
    /// `bytes` bytes that fill it.
    pub fn refill(&self, #[comptime] bytes: usize) -> &Barrier {
        // At first, the phase before that of parity 0 counts as complete.
        wait(&self.free[self.stage], self.parity ^ 1u32);
        let full = &self.full[self.stage];
        full.arrive_and_expect_tx(1u32, comptime!(bytes as u32));
        full
    }

    /// Waits until the stage at this place has arrived.
    pub fn wait(&self) {
        wait(&self.full[self.stage], self.parity);
    }

    /// Lets a stage be filled again, once all planes that multiply have released it.
    pub fn release(&self, stage: usize) {
        if lane() == 0u32 {
            self.free[stage].arrive();
        }
    }
}

/// Waits until the phase of a barrier that has this parity is complete.
#[cube]
pub(crate) fn wait(barrier: &Barrier, parity: u32) {
    let mut complete = 0u32;
    while complete == 0u32 {
        complete = try_wait(barrier, parity);
    }
}

/// Waits for a limited time; returns 1 if the phase is complete.
#[cube]
fn try_wait(barrier: &Barrier, parity: u32) -> u32 {
    let parity = value_of::<u32>(parity);
    let complete: u32;
    gpu_asm!(
        "{{",
        ".reg .pred p;",
        "mbarrier.try_wait.parity.b64 p, [{barrier}], {parity};",
        "selp.b32 {complete}, 1, 0, p;",
        "}}",
        complete = out(_) complete, barrier = in(_) barrier, parity = in(_) parity,
    );
    complete
}
