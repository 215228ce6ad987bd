//! The threads that read tensors.

use std::{
    iter,
    num::NonZero,
    panic,
    sync::{LazyLock, Mutex, PoisonError},
    thread::{self, Builder, ScopedJoinHandle},
};

/// Bytes of a tensor for each thread: starting a thread costs what copying a few hundred kilobytes
/// costs.
const BYTES_PER_THREAD: usize = 1 << 20;

/// The number of threads that this process may run at once. Asking costs several reads of files.
static CORES: LazyLock<usize> =
    LazyLock::new(|| thread::available_parallelism().map_or(1, NonZero::get));

/// Returns the number of threads for a tensor of `bytes` bytes, at least 1.
pub(super) fn for_bytes(bytes: usize) -> usize {
    (bytes / BYTES_PER_THREAD).clamp(1, *CORES)
}

/// Runs `work` on `count` threads, this one among them, and returns their results. Each gets the
/// items that no other has taken. Runs on fewer threads if the system refuses one.
pub(super) fn run<I: Send, T: Send>(
    count: usize,
    items: impl Iterator<Item = I> + Send,
    work: impl Fn(&mut dyn Iterator<Item = I>) -> T + Sync,
) -> Vec<T> {
    let items = Mutex::new(items);
    let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || work(&mut iter::from_fn(next));
    thread::scope(|scope| {
        let start = |_| Builder::new().spawn_scoped(scope, work).ok();
        let others: Vec<_> = (1..count).filter_map(start).collect();
        let own = work();
        let join = |other: ScopedJoinHandle<'_, T>| {
            let result = other.join();
            result.unwrap_or_else(|panicked| panic::resume_unwind(panicked))
        };
        others.into_iter().map(join).chain([own]).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_share_the_items() {
        let mut taken = run(4, 0..1000, |items| items.collect::<Vec<_>>()).concat();
        taken.sort_unstable();
        assert!(taken.into_iter().eq(0..1000));
        let counts = run(1, 0..7, |items| items.count());
        assert_eq!(counts, [7]);
    }

    #[test]
    fn threads_are_few_for_few_bytes() {
        assert_eq!(for_bytes(0), 1);
        assert_eq!(for_bytes(2 * BYTES_PER_THREAD - 1), 1);
        assert_eq!(for_bytes(usize::MAX), *CORES);
    }
}
