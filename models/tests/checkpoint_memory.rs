//! The peak of memory while a model loads or is converted. Alone in its binary: the allocator counts what every test of a process allocates.

#[path = "checkpoint_support/mod.rs"]
mod support;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs::File,
    io::{BufWriter, Write},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use burn::tensor::{Device, FloatDType};
use sparq_models::checkpoint::{Checkpoint, Conversion, Loader, StoredType, Weights};

/// Counts the bytes that are allocated now, and the most there ever were.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all memory comes from `System`, which keeps the contract; the counters touch none of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Held by the one test that counts.
static COUNTED: Mutex<()> = Mutex::new(());

/// 24 MiB of F16 in tensors of 2 MiB and one of 8 MiB.
const SHAPES: [[usize; 2]; 9] = [
    [1024, 1024],
    [1024, 1024],
    [1024, 1024],
    [4096, 1024],
    [1024, 1024],
    [1024, 1024],
    [1024, 1024],
    [1024, 1024],
    [1024, 1024],
];

/// The buffers of a chunk, the entries of the header and the modules around the tensors.
const SMALL_CHANGE: usize = 1 << 20;

fn write_checkpoint() -> tempfile::TempDir {
    let mut entries = Vec::new();
    let mut end = 0;
    for (at, [rows, columns]) in SHAPES.into_iter().enumerate() {
        let begin = end;
        end += rows * columns * 2;
        entries.push(format!(
            r#""{at}.weight": {{"dtype": "F16", "shape": [{rows}, {columns}], "data_offsets": [{begin}, {end}]}}"#
        ));
    }
    let header = format!("{{{}}}", entries.join(","));
    let dir = support::folder(&[("config.json", b"{}")]);
    let file = File::create(dir.path().join("model.safetensors")).unwrap();
    let mut file = BufWriter::new(file);
    file.write_all(&(header.len() as u64).to_le_bytes())
        .unwrap();
    file.write_all(header.as_bytes()).unwrap();
    for at in 0..end / 2 {
        // Finite in every position: the exponent is never all ones.
        file.write_all(&[at as u8, 0x30]).unwrap();
    }
    file.flush().unwrap();
    dir
}

#[test]
fn loading_peaks_at_the_weights() {
    let _counted = COUNTED.lock().unwrap();
    let dir = write_checkpoint();
    let weights: usize = SHAPES.iter().map(|[rows, columns]| rows * columns).sum();
    for (dtype, size) in [(FloatDType::F16, 2), (FloatDType::F32, 4)] {
        let before = NOW.load(Relaxed);
        PEAK.store(before, Relaxed);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let loader = Loader::new(&checkpoint, &Device::default(), dtype).unwrap();
        let model: Vec<_> = SHAPES
            .into_iter()
            .enumerate()
            .map(|(at, [rows, columns])| {
                loader
                    .linear(&at.to_string(), columns, rows, false)
                    .unwrap()
            })
            .collect();
        assert_eq!(loader.finish(), Vec::<&str>::new());
        let peak = PEAK.load(Relaxed) - before;
        let held = NOW.load(Relaxed) - before;
        // The weights once, in the type asked for: less would mean that nothing was loaded.
        assert!(held >= weights * size, "{held} of {}", weights * size);
        // Not even the one tensor in its stored type that the check allows: it is converted in chunks.
        assert!(
            peak <= weights * size + SMALL_CHANGE,
            "{dtype:?}: {peak} bytes at the peak for {} of weights",
            weights * size
        );
        drop(model);
    }
}

#[test]
fn converting_peaks_at_the_largest_tensor_and_loading_the_result_at_next_to_nothing() {
    let _counted = COUNTED.lock().unwrap();
    let dir = write_checkpoint();
    let largest = SHAPES
        .iter()
        .map(|[rows, columns]| rows * columns * 4)
        .max();
    let largest = largest.unwrap();
    for back in [false, true] {
        let out = tempfile::tempdir().unwrap();
        let before = NOW.load(Relaxed);
        PEAK.store(before, Relaxed);
        let checkpoint = Arc::new(Checkpoint::open(dir.path()).unwrap());
        let conversion = Conversion::new(checkpoint).with_dtype(Some(StoredType::F32));
        match back {
            true => conversion.write_safetensors(out.path()).unwrap(),
            false => drop(conversion.write(out.path()).unwrap()),
        }
        drop(conversion);
        let peak = PEAK.load(Relaxed) - before;
        assert!(
            peak >= largest,
            "{peak} of {largest}: nothing was converted"
        );
        assert!(
            peak <= largest + SMALL_CHANGE,
            "{peak} bytes at the peak for {largest}"
        );
        if back {
            continue;
        }

        PEAK.store(before, Relaxed);
        let checkpoint = Checkpoint::open(out.path()).unwrap();
        let loader = Loader::new(&checkpoint, &Device::default(), FloatDType::F32).unwrap();
        let layers = SHAPES.into_iter().enumerate().map(|(at, [rows, columns])| {
            loader
                .linear(&at.to_string(), columns, rows, false)
                .unwrap()
        });
        let model: Vec<_> = layers.collect();
        let sum = model[8].weight.val().sum().into_scalar::<f32>();
        let peak = PEAK.load(Relaxed) - before;
        assert!(
            peak <= SMALL_CHANGE,
            "{peak} bytes for weights that are mapped"
        );
        assert!(sum > 0.0, "{sum}");
    }
}

#[test]
fn quantization_peaks_at_two_tensors() {
    let _counted = COUNTED.lock().unwrap();
    let dir = write_checkpoint();
    let largest = SHAPES
        .iter()
        .map(|[rows, columns]| rows * columns * 4)
        .max();
    let largest = largest.unwrap();
    let out = tempfile::tempdir().unwrap();
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    let checkpoint = Arc::new(Checkpoint::open(dir.path()).unwrap());
    let conversion = Conversion::new(checkpoint).with_dtype(Some(StoredType::Q4));
    drop(conversion.write(out.path()).unwrap());
    let peak = PEAK.load(Relaxed) - before;
    // The tensor in F32, its codes in bytes twice, and the scales.
    assert!(
        peak >= largest,
        "{peak} of {largest}: nothing was converted"
    );
    assert!(
        peak <= 2 * largest + SMALL_CHANGE,
        "{peak} bytes at the peak for {largest}"
    );
}
