//! The division of a decode step among threads.

use std::ops::Range;

use super::team;

/// Loops that read fewer bytes stay on the calling thread: to share them costs more than the
/// reading.
const MIN_PARALLEL_BYTES: usize = 1 << 16;

/// Parts start at multiples of it. So one position more moves few parts, and several queries can
/// share the blocks of positions of a decode step.
const GRAIN: usize = 32;

/// The number of threads that share a decode step.
#[derive(Clone, Copy)]
pub(super) struct Threads {
    /// Parts of a batch head; 1 if there are enough batch heads.
    per_head: usize,
    /// True if the whole step stays on the calling thread.
    single: bool,
}

impl Threads {
    /// The calling thread alone.
    pub(super) const ONE: Self = Self {
        per_head: 1,
        single: true,
    };

    /// Divides a step that reads `bytes` for `heads` batch heads.
    pub(super) fn new(heads: usize, bytes: usize) -> Self {
        if bytes < MIN_PARALLEL_BYTES {
            return Self::ONE;
        }
        let threads = team::threads();
        // With four heads per thread, the threads finish at about the same time. Fewer heads are
        // divided, into as many parts in all for each thread.
        let per_head = match threads == 1 || heads >= 4 * threads {
            true => 1,
            false => {
                let parts = (4 * threads).div_ceil(heads.max(1));
                let even =
                    (parts..parts + threads).find(|parts| (parts * heads).is_multiple_of(threads));
                even.unwrap_or(parts).min(4 * threads)
            }
        };
        Self {
            per_head,
            single: threads == 1,
        }
    }

    /// Returns whether batch heads are divided.
    pub(super) fn divides_heads(self) -> bool {
        self.per_head > 1
    }

    /// Calls `work` with each task, on the calling thread alone if the step is small.
    pub(super) fn for_each<T: Send>(self, tasks: Vec<T>, work: impl Fn(T) + Sync) {
        match self.single {
            true => tasks.into_iter().for_each(work),
            false => team::for_each(tasks, work),
        }
    }

    /// Divides the indices below `count` into equal parts of at least `min_part`, but for their
    /// rounding to whole grains; one if batch heads are not divided.
    pub(super) fn parts(self, count: usize, min_part: usize) -> impl Iterator<Item = Range<usize>> {
        let parts = self.per_head.min(count / min_part).max(1);
        let start = move |part: usize| match part == parts {
            true => count,
            false => count * part / parts / GRAIN * GRAIN,
        };
        (0..parts).map(move |part| start(part)..start(part + 1))
    }
}
