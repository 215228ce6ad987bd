//! A prefill must not need memory that grows with the square of its length. A binary of its own, because it counts every allocation.
#![cfg(feature = "flex")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::{Device, Distribution, FloatDType, Tensor};
use sparq::{Method, RotaryConfig, SparqAttentionConfig};

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

impl Counting {
    fn add(bytes: usize) {
        let now = NOW.fetch_add(bytes, Ordering::Relaxed) + bytes;
        PEAK.fetch_max(now, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::add(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const LEN: usize = 16384;

/// Most bytes allocated at a time while `run` ran, beyond those before it.
fn peak(run: impl FnOnce()) -> usize {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    run();
    PEAK.load(Ordering::Relaxed) - before
}

#[test]
fn a_prefill_of_16384_positions_needs_a_fraction_of_its_scores_memory() {
    let device = Device::flex();
    let config = SparqAttentionConfig::new(32, 2, 1, 16).with_rotary(Some(RotaryConfig::new(16)));
    let attention = config.init(&device).unwrap();
    let x = Tensor::<3>::random([1, LEN, 32], Distribution::Default, &device);
    let cache = || {
        attention
            .cache_config(1, LEN, FloatDType::F32, &Method::DENSE)
            .init(&device)
            .unwrap()
    };

    let (mut plain, mut padded) = (cache(), cache());
    padded.set_left_padding(&[5]).unwrap();
    // The scores of one head alone would be 1 GiB, and the mask of padding 256 MiB.
    let limit = 48 << 20;
    let used = [
        (
            "without a cache",
            peak(|| drop(attention.forward(x.clone(), None).unwrap())),
        ),
        (
            "with a cache",
            peak(|| drop(attention.forward(x.clone(), Some(&mut plain)).unwrap())),
        ),
        (
            "with left padding",
            peak(|| drop(attention.forward(x.clone(), Some(&mut padded)).unwrap())),
        ),
    ];
    for (what, bytes) in used {
        println!("{what}: {} KiB", bytes >> 10);
        assert!(
            bytes > LEN * 32 * 4,
            "{what}: {bytes} bytes are less than the output, so they were not counted"
        );
        assert!(bytes < limit, "{what}: {bytes} bytes");
    }
}
