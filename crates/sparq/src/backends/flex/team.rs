//! A team of threads that share the loops of a decode step.
//!
//! A step of a small model runs several hundred loops of a few microseconds, with little work
//! between them. To wake a sleeping thread takes longer than such a loop. So after a loop the
//! threads look for the next one without sleeping, for a while.

use std::cell::{Cell, UnsafeCell};
use std::hint;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, TryLockError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::simd::{CACHE_LINE, prefetch_address};

/// Looks for a loop before a thread offers its core to others.
const SPINS: usize = 1 << 12;

/// The time for which a thread looks for a loop before it sleeps.
const PATIENCE: Duration = Duration::from_micros(500);

/// Returns the number of threads that share a loop of the calling thread, itself included: those of
/// its rayon pool, and no more than the CPU has.
pub(super) fn threads() -> usize {
    rayon::current_num_threads().min(Team::get().workers.len() + 1)
}

/// Calls `work` with each task, on the threads of the team.
///
/// Each thread begins with its own share of consecutive tasks, then takes what others have not
/// begun. So loops over the same data find it in the caches of the same core. All tasks stay on the
/// calling thread if it is already inside of such a loop, or if the team runs a loop of another
/// thread.
///
/// # Panics
/// If a call panics, after the others have ended.
pub(super) fn for_each<T: Send>(tasks: Vec<T>, work: impl Fn(T) + Sync) {
    let limit = threads().min(tasks.len());
    if limit > 1 && !INSIDE.get() {
        let team = Team::get();
        let leader = match team.leader.try_lock() {
            Ok(leader) => Some(leader),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if leader.is_some() {
            let tasks = Tasks::new(tasks);
            return team.run(limit, tasks.count, &|index| {
                // SAFETY: the team calls this once for each index.
                work(unsafe { tasks.take(index) });
            });
        }
    }
    tasks.into_iter().for_each(work);
}

/// Tasks that are moved out one by one. Those that are not, after a panic, are leaked.
struct Tasks<T> {
    /// The memory of the tasks, and no task for `Vec` to drop.
    memory: Vec<T>,
    count: usize,
}

// SAFETY: a shared `Tasks` only moves tasks to other threads.
unsafe impl<T: Send> Sync for Tasks<T> {}

impl<T> Tasks<T> {
    fn new(mut tasks: Vec<T>) -> Self {
        let count = tasks.len();
        // SAFETY: 0 is within the capacity, and no element has to be initialized.
        unsafe { tasks.set_len(0) };
        Self {
            memory: tasks,
            count,
        }
    }

    /// Moves a task out.
    ///
    /// # Safety
    /// Never called twice with the same index.
    unsafe fn take(&self, index: usize) -> T {
        assert!(index < self.count);
        // SAFETY: the task was in the vector, and has not been moved out.
        unsafe { self.memory.as_ptr().add(index).read() }
    }
}

thread_local! {
    /// True on a thread that works on a loop.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// A loop, valid while it is open.
#[derive(Clone, Copy)]
struct Loop {
    /// Calls the closure at the address with an index.
    call: unsafe fn(*const (), usize),
    closure: *const (),
    count: usize,
    /// The number of threads that share the loop.
    limit: usize,
}

impl Loop {
    /// Returns the indices with which a member begins.
    fn share(&self, member: usize) -> Range<usize> {
        self.count * member / self.limit..self.count * (member + 1) / self.limit
    }
}

/// The next task of a member's share, on a cache line of its own.
#[repr(align(64))]
#[derive(Default)]
struct Next(AtomicUsize);

/// Up to three areas of memory, as address and bytes.
pub(super) type Areas = [(usize, usize); 3];

/// The most bytes that a thread fetches ahead, about half of an L2 cache.
const MAX_AHEAD: usize = 1 << 18;

/// Bytes that are fetched between two looks for a loop.
const AHEAD_STEP: usize = 512;

/// Tells the threads which memory the next large loop will read from beginning to end. They fetch
/// their shares of it while they wait.
///
/// The areas need not exist any more: only speed depends on them.
pub(super) fn announce(areas: Areas) {
    if threads() > 1 {
        let announced = &Team::get().announced;
        for (to, (address, bytes)) in announced.areas.iter().zip(areas) {
            to[0].store(address, Ordering::Relaxed);
            to[1].store(bytes, Ordering::Relaxed);
        }
        announced.version.fetch_add(1, Ordering::Release);
    }
}

/// The areas that were announced last.
#[derive(Default)]
struct Announced {
    /// Grows with each announcement.
    version: AtomicUsize,
    areas: [[AtomicUsize; 2]; 3],
}

/// The part of the announced memory that a thread has still to fetch.
#[derive(Default)]
struct Ahead {
    version: usize,
    /// Positions in all areas, one after the other.
    left: Range<usize>,
}

impl Ahead {
    /// Fetches some bytes of a member's share. Returns false if there is nothing to fetch.
    fn fetch(&mut self, announced: &Announced, member: usize, members: usize) -> bool {
        let areas = || {
            let areas = announced.areas.iter();
            areas.map(|[address, bytes]| {
                let bytes = bytes.load(Ordering::Relaxed);
                (address.load(Ordering::Relaxed), bytes)
            })
        };
        let version = announced.version.load(Ordering::Acquire);
        if version != self.version {
            self.version = version;
            let total: usize = areas().map(|(_, bytes)| bytes).sum();
            let start = total / members * member;
            self.left = start..start + (total / members).min(MAX_AHEAD);
        }
        if self.left.is_empty() {
            return false;
        }
        let mut position = self.left.start;
        for (address, bytes) in areas() {
            if position < bytes {
                for line in (0..AHEAD_STEP).step_by(CACHE_LINE) {
                    prefetch_address(address.wrapping_add(position + line));
                }
                break;
            }
            position -= bytes;
        }
        self.left.start += AHEAD_STEP;
        true
    }
}

/// A thread that helps others.
struct Worker {
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

/// The threads, and the loop on which they work.
///
/// `turn` is odd while a loop is open, and grows when one is opened or closed. A worker counts
/// itself in `inside`, then reads `turn`, and touches the loop only if it is still open. The leader
/// closes the loop, then waits until `inside` is 0. These accesses have one order for all threads,
/// so a worker either finds the loop closed or is waited for.
struct Team {
    leader: Mutex<()>,
    turn: AtomicUsize,
    inside: AtomicUsize,
    current: UnsafeCell<Loop>,
    /// The next task in the share of each member, the leader first.
    next: Vec<Next>,
    panicked: AtomicBool,
    workers: Vec<Worker>,
    announced: Announced,
}

// SAFETY: `current` is written only by the holder of `leader` while the loop is closed and no
// worker is inside, and read only by workers that are inside of an open loop. The closure it points
// to is `Sync`.
unsafe impl Sync for Team {}
// SAFETY: as above; the address in `current` is used only while a loop is open.
unsafe impl Send for Team {}

impl Team {
    /// Returns the team of this process. Starts its threads at the first call.
    fn get() -> &'static Self {
        static TEAM: OnceLock<Team> = OnceLock::new();
        static STARTED: OnceLock<()> = OnceLock::new();
        let team = TEAM.get_or_init(|| {
            let threads = thread::available_parallelism().map_or(1, usize::from);
            unsafe fn nothing(_: *const (), _: usize) {}
            let worker = || Worker {
                asleep: AtomicBool::new(false),
                thread: OnceLock::new(),
            };
            Team {
                leader: Mutex::new(()),
                turn: AtomicUsize::new(0),
                inside: AtomicUsize::new(0),
                current: UnsafeCell::new(Loop {
                    call: nothing,
                    closure: std::ptr::null(),
                    count: 0,
                    limit: 0,
                }),
                next: (0..threads).map(|_| Next::default()).collect(),
                panicked: AtomicBool::new(false),
                workers: (1..threads).map(|_| worker()).collect(),
                announced: Announced::default(),
            }
        });
        STARTED.get_or_init(|| {
            for (index, worker) in team.workers.iter().enumerate() {
                let name = format!("sparq-{}", index + 1);
                let spawned = thread::Builder::new()
                    .name(name)
                    .spawn(move || team.help(index));
                // Without the thread, the others do its work.
                if let Ok(handle) = spawned {
                    let _ = worker.thread.set(handle.thread().clone());
                }
            }
        });
        team
    }

    /// Runs a loop on up to `limit` threads. The caller holds `leader`.
    fn run<F: Fn(usize) + Sync>(&self, limit: usize, count: usize, work: &F) {
        unsafe fn call<F: Fn(usize)>(closure: *const (), index: usize) {
            // SAFETY: the address is that of the closure below, which lives until the loop is
            // closed and left.
            unsafe { (*closure.cast::<F>())(index) }
        }
        let current = Loop {
            call: call::<F>,
            closure: std::ptr::from_ref(work).cast(),
            count,
            limit,
        };
        // SAFETY: the loop before this one is closed and left, and no other thread leads.
        unsafe { *self.current.get() = current };
        for (member, next) in self.next[..limit].iter().enumerate() {
            next.0.store(current.share(member).start, Ordering::Relaxed);
        }
        self.panicked.store(false, Ordering::Relaxed);
        self.turn.fetch_add(1, Ordering::SeqCst);
        let open = Open(self);
        for worker in &self.workers[..limit - 1] {
            if worker.asleep.swap(false, Ordering::SeqCst)
                && let Some(thread) = worker.thread.get()
            {
                thread.unpark();
            }
        }
        self.share(current, 0);
        drop(open);
        if self.panicked.load(Ordering::SeqCst) {
            panic!("a thread of the team panicked");
        }
    }

    /// Works on a loop as one of its members, until no index is left.
    fn share(&self, current: Loop, member: usize) {
        INSIDE.set(true);
        let _leave = Leave;
        for other in (member..current.limit).chain(0..member) {
            let end = current.share(other).end;
            loop {
                let index = self.next[other].0.fetch_add(1, Ordering::Relaxed);
                if index >= end {
                    break;
                }
                // SAFETY: the loop is open, or closed with this thread inside.
                unsafe { (current.call)(current.closure, index) };
            }
        }
    }

    /// Works on every loop that is opened.
    fn help(&self, index: usize) {
        let worker = &self.workers[index];
        let (mut seen, mut ahead) = (0, Ahead::default());
        loop {
            let members = self.workers.len() + 1;
            let fetch = || ahead.fetch(&self.announced, index + 1, members);
            let turn = self.wait(seen, worker, fetch);
            seen = turn;
            self.inside.fetch_add(1, Ordering::SeqCst);
            if self.turn.load(Ordering::SeqCst) == turn {
                // SAFETY: the loop is open, and this thread is inside.
                let current = unsafe { *self.current.get() };
                let work = AssertUnwindSafe(|| self.share(current, index + 1));
                if index + 1 < current.limit && catch_unwind(work).is_err() {
                    self.panicked.store(true, Ordering::SeqCst);
                }
            }
            self.inside.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Waits for an open loop other than the last one, and fetches memory meanwhile. Returns its
    /// turn.
    fn wait(&self, seen: usize, worker: &Worker, mut fetch: impl FnMut() -> bool) -> usize {
        let opened = || {
            let turn = self.turn.load(Ordering::SeqCst);
            (turn % 2 == 1 && turn != seen).then_some(turn)
        };
        for _ in 0..SPINS {
            if let Some(turn) = opened() {
                return turn;
            }
            if !fetch() {
                hint::spin_loop();
            }
        }
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if let Some(turn) = opened() {
                return turn;
            }
            thread::yield_now();
        }
        loop {
            worker.asleep.store(true, Ordering::SeqCst);
            if let Some(turn) = opened() {
                worker.asleep.store(false, Ordering::SeqCst);
                return turn;
            }
            thread::park();
        }
    }
}

/// An open loop. Closes it at the end, also of a panic, and waits until all threads have left.
struct Open<'a>(&'a Team);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.turn.fetch_add(1, Ordering::SeqCst);
        let mut spins = 0;
        while self.0.inside.load(Ordering::SeqCst) > 0 {
            spins += 1;
            match spins < SPINS {
                true => hint::spin_loop(),
                // The other thread has no core at the moment.
                false => thread::yield_now(),
            }
        }
    }
}

/// Marks the end of a thread's work on a loop.
struct Leave;

impl Drop for Leave {
    fn drop(&mut self) {
        INSIDE.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for count in [0, 1, 2, 3, 100] {
            let mut counts = vec![0; count];
            for _ in 0..200 {
                for_each(counts.iter_mut().collect(), |count| *count += 1);
            }
            assert!(counts.iter().all(|&count| count == 200), "{counts:?}");
        }
    }

    #[test]
    fn loops_of_several_threads_and_nested_ones() {
        let total = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..300 {
                        for_each(vec![1, 2, 3], |outer| {
                            for_each(vec![outer; 4], |inner| {
                                total.fetch_add(inner, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 4 * 300 * 4 * 6);
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        for bad in [0, 7, 63] {
            let done = AtomicUsize::new(0);
            let run = AssertUnwindSafe(|| {
                for_each((0..64).collect(), |task| {
                    assert!(task != bad, "task {task}");
                    done.fetch_add(1, Ordering::Relaxed);
                });
            });
            assert!(catch_unwind(run).is_err(), "{bad}");
            assert!(done.load(Ordering::Relaxed) < 64);
            for_each(vec![(); 8], |()| {
                done.fetch_add(100, Ordering::Relaxed);
            });
            assert!(done.into_inner() >= 800);
        }
    }
}
