//! The division of a decode step among threads.

use std::ops::Range;

/// Steps that read fewer bytes stay on the calling thread: handing work over costs more than the
/// reading.
const MIN_PARALLEL_BYTES: usize = 1 << 18;

/// The number of threads that share a decode step.
#[derive(Clone, Copy)]
pub(super) struct Threads {
    /// Threads per batch head; 1 if there are enough batch heads.
    per_head: usize,
    /// True if the whole step stays on the calling thread.
    single: bool,
}

impl Threads {
    /// Divides a step that reads `bytes` for `heads` batch heads.
    pub(super) fn new(heads: usize, bytes: usize) -> Self {
        let threads = rayon::current_num_threads();
        let single = threads == 1 || bytes < MIN_PARALLEL_BYTES;
        // With four heads per thread, the threads finish at about the same time. Fewer heads are
        // divided, so that no thread waits for another's last head.
        let per_head = match single || heads >= 4 * threads {
            true => 1,
            false => (4 * threads).div_ceil(heads.max(1)).min(2 * threads),
        };
        Self { per_head, single }
    }

    /// Returns the smallest share of `count` equal pieces that may move to another thread.
    pub(super) fn min_len(self, count: usize) -> usize {
        match self.single {
            true => count.max(1),
            false => 1,
        }
    }

    /// Divides the indices below `count` into equal parts of at least `min_part`, one per thread
    /// at most.
    pub(super) fn parts(self, count: usize, min_part: usize) -> Vec<Range<usize>> {
        let parts = self.per_head.min(count / min_part).max(1);
        (0..parts)
            .map(|part| count * part / parts..count * (part + 1) / parts)
            .collect()
    }
}
