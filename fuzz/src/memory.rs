//! An allocator with a limit: [`Limited`].

use std::{
    alloc::{GlobalAlloc, Layout, System},
    ptr,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// The most bytes allocated at a time. The inputs have a few kilobytes.
const LIMIT: usize = 256 << 20;

/// An allocator with a limit of 256 MiB. A program that trusts a header with 2^60 elements aborts.
pub struct Limited;

static HELD: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all memory comes from `System`, which keeps the contract. Beyond the limit the allocation
// fails, which the contract allows. The counter does not touch the memory.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if HELD.fetch_add(layout.size(), Relaxed) > LIMIT.saturating_sub(layout.size()) {
            HELD.fetch_sub(layout.size(), Relaxed);
            return ptr::null_mut();
        }
        // SAFETY: the caller keeps the contract of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}
