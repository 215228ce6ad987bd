//! Memory that ends: [`Limited`].

use std::{
    alloc::{GlobalAlloc, Layout, System},
    ptr,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// The most that a program may hold at a time. The inputs have a few kilobytes.
const LIMIT: usize = 256 << 20;

/// An allocator that has no more than 256 MiB: a header that claims 2^60 elements ends the program if it is believed.
pub struct Limited;

static HELD: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all memory comes from `System`, which keeps the contract, or there is none, which is allowed; the counter touches none of it.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if HELD.fetch_add(layout.size(), Relaxed) > LIMIT.saturating_sub(layout.size()) {
            HELD.fetch_sub(layout.size(), Relaxed);
            return ptr::null_mut();
        }
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}
