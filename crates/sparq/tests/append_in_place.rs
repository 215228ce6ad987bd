//! Appending writes in place on CPUs: proved by counting what the process allocates while it appends. Alone in its binary, since the count is global.
//! On GPUs a test beside the kernels compares the memory of the buffers.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::FloatDType;
use common::Noise;
use sparq::methods::MeanValue;
use sparq::{KvCacheConfig, Method, Sketch, SparqConfig};

struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        unsafe { System.dealloc(ptr, layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATED.fetch_add(size, Ordering::Relaxed);
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocated(work: impl FnOnce()) -> usize {
    let before = ALLOCATED.load(Ordering::Relaxed);
    work();
    ALLOCATED.load(Ordering::Relaxed) - before
}

/// One test, since another thread's allocations would be counted too.
#[test]
fn an_append_does_not_copy_the_cache() {
    let (kv_heads, head_dim, capacity) = (2, 64, 8192);
    let devices = sparq_device::for_tests().unwrap();
    for device in devices.iter().filter(|device| !device.is_gpu()) {
        let device = device.open();
        for sketch in [
            None,
            Some(Sketch::Full),
            Some(Sketch::Bits8),
            Some(Sketch::Bits4),
        ] {
            for ragged in [false, true] {
                let config = KvCacheConfig::new(2, kv_heads, head_dim)
                    .with_capacity(capacity)
                    .with_dtype(FloatDType::F32)
                    .with_sketch(sketch);
                let mut cache = config.init(&device).unwrap();
                let mut noise = Noise(7);
                let prefill = noise.tensor([2, kv_heads, 1000, head_dim], &device);
                let counts = if ragged { [1000, 700] } else { [1000, 1000] };
                cache
                    .append_ragged(prefill.clone(), prefill, &counts)
                    .unwrap();
                let method = match sketch {
                    Some(sketch) => Method::from(
                        SparqConfig::new(8, 16)
                            .with_sketch(sketch)
                            .with_mean_value(MeanValue::Always),
                    ),
                    None => Method::DENSE,
                };
                let token = noise.tensor([2, kv_heads, 1, head_dim], &device);
                let q = noise.tensor([2, 4, 1, head_dim], &device);
                // A decode step reads the buffers through shared handles, which must be gone before the append.
                method.decode(q, &mut cache).unwrap();
                // The smallest buffer of the cache is the 4-bit sketch.
                let smallest = 2 * kv_heads * head_dim * capacity / 2;
                let step = allocated(|| cache.append(token.clone(), token.clone()).unwrap());
                assert!(
                    step < smallest / 8,
                    "{device:?} {sketch:?} ragged {ragged}: an append allocated {step} bytes"
                );

                // The measure itself: a clone that is still alive must make the next append copy.
                let shared = cache.clone();
                let step = allocated(|| cache.append(token.clone(), token.clone()).unwrap());
                assert!(
                    step > 2 * 2 * kv_heads * head_dim * capacity * 4,
                    "{device:?}: a shared cache was written in place"
                );
                assert_eq!((shared.len(), cache.len()), (1001, 1002));
            }
        }
    }
}
