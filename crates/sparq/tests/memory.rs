//! Memory tests. They count the allocations of the whole process with a global allocator, so they
//! have a binary of their own and run one at a time.
//!
//! On GPUs, a test beside the kernels compares the addresses of the buffers instead.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::{ALL_SKETCHES, Noise, cache_config, method_for, new_cache};

/// Bytes of all allocations so far.
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
/// Bytes in use.
static USED: AtomicUsize = AtomicUsize::new(0);
/// The maximum of [`USED`].
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

impl Counting {
    fn add(bytes: usize) {
        ALLOCATED.fetch_add(bytes, Ordering::Relaxed);
        let used = USED.fetch_add(bytes, Ordering::Relaxed) + bytes;
        PEAK.fetch_max(used, Ordering::Relaxed);
    }
}

// SAFETY: every call is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::add(layout.size());
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::add(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::add(size);
        USED.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Lets one test run at a time, since the counts include other threads.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the bytes that `work` allocates.
fn allocated(work: impl FnOnce()) -> usize {
    let before = ALLOCATED.load(Ordering::Relaxed);
    work();
    ALLOCATED.load(Ordering::Relaxed) - before
}

/// Returns the largest number of bytes in use while `work` runs, beyond those in use before.
#[cfg(feature = "flex")]
fn peak(work: impl FnOnce()) -> usize {
    let before = USED.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    work();
    PEAK.load(Ordering::Relaxed) - before
}

#[test]
fn append_writes_in_place() {
    let _alone = alone();
    let (kv_heads, head_dim, capacity) = (2, 64, 8192);
    let devices = sparq_device::for_tests().unwrap();
    for device in devices.iter().filter(|device| !device.is_gpu()) {
        let device = device.open();
        for sketch in ALL_SKETCHES {
            for ragged in [false, true] {
                let config = cache_config([2, kv_heads, head_dim], sketch);
                let mut cache = new_cache(&config.with_capacity(capacity), &device);
                let mut noise = Noise(7);
                let prefill = noise.tensor([2, kv_heads, 1000, head_dim], &device);
                let counts = if ragged { [1000, 700] } else { [1000, 1000] };
                cache
                    .append_ragged(prefill.clone(), prefill, &counts)
                    .unwrap();
                let token = noise.tensor([2, kv_heads, 1, head_dim], &device);
                let q = noise.tensor([2, 4, 1, head_dim], &device);
                // A decode step reads the buffers through shared handles. They must be dropped
                // before the append.
                method_for(sketch, 8, 16).decode(q, &mut cache).unwrap();
                // The smallest buffer of the cache is the 4-bit sketch.
                let smallest = 2 * kv_heads * head_dim * capacity / 2;
                let bytes = allocated(|| cache.append(token.clone(), token.clone()).unwrap());
                assert!(
                    bytes < smallest / 8,
                    "{device:?} {sketch:?} ragged {ragged}: an append allocated {bytes} bytes"
                );

                // A check of the measurement: a live clone makes the next append copy.
                let shared = cache.clone();
                let bytes = allocated(|| cache.append(token.clone(), token.clone()).unwrap());
                assert!(
                    bytes > 2 * 2 * kv_heads * head_dim * capacity * 4,
                    "{device:?}: an append wrote to a shared cache in place"
                );
                assert_eq!((shared.len(), cache.len()), (1001, 1002));
            }
        }
    }
}

/// The scores of one head alone would take 1 GiB, and a mask of the padding 256 MiB.
#[test]
#[cfg(feature = "flex")]
fn prefill_memory_is_not_quadratic() {
    use burn::tensor::{Device, Distribution, FloatDType, Tensor};
    use sparq::{Method, RotaryConfig, SparqAttentionConfig};

    const LEN: usize = 16384;
    let _alone = alone();
    let device = Device::flex();
    let config = SparqAttentionConfig::new(32, 2, 1, 16).with_rotary(Some(RotaryConfig::new(16)));
    let attention = config.init(&device).unwrap();
    let x = Tensor::<3>::random([1, LEN, 32], Distribution::Default, &device);
    let config = attention.cache_config(1, LEN, FloatDType::F32, &Method::DENSE);
    let (mut plain, mut padded) = (new_cache(&config, &device), new_cache(&config, &device));
    padded.set_left_padding(&[5]).unwrap();
    let caches = [
        ("without a cache", None),
        ("with a cache", Some(&mut plain)),
        ("with left padding", Some(&mut padded)),
    ];
    for (case, cache) in caches {
        let bytes = peak(|| drop(attention.forward(x.clone(), cache).unwrap()));
        println!("{case}: {} KiB", bytes >> 10);
        assert!(
            bytes > LEN * 32 * 4,
            "{case}: counted {bytes} bytes, fewer than the output has"
        );
        assert!(bytes < 48 << 20, "{case}: {bytes} bytes");
    }
}
