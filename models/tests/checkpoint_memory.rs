//! The peak of memory while a model is loaded or converted. The tests have their own binary, since
//! the allocator counts the memory of the whole process.

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
use sparq::LinearLayer;
use sparq_models::checkpoint::{Checkpoint, Conversion, Loader, StoredType, Weights};

/// An allocator that counts the allocated bytes and their peak.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all memory comes from `System`, which keeps the contract. The counters do not touch it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        // SAFETY: the caller keeps the contract of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Serialises the tests: only one may count at a time.
static COUNTED: Mutex<()> = Mutex::new(());

/// 24 MiB of F16 in tensors of 2 MiB and one of 8 MiB.
const SHAPES: [[usize; 2]; 9] = {
    let mut shapes = [[1024, 1024]; 9];
    shapes[3][0] = 4096;
    shapes
};

/// The memory of everything but tensors: the header and the modules, and the buffers of every
/// thread that may read.
fn small_change() -> usize {
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    (1 << 20) + threads * (1 << 19)
}

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
    file.write_all(&support::with_header(&header, &[])).unwrap();
    for at in 0..end / 2 {
        // Finite in every position: the exponent is never all ones.
        file.write_all(&[at as u8, 0x30]).unwrap();
    }
    file.flush().unwrap();
    dir
}

/// The bytes of the largest tensor in F32.
fn largest_tensor() -> usize {
    let bytes = SHAPES.iter().map(|[rows, columns]| rows * columns * 4);
    bytes.max().unwrap()
}

/// Counts the memory from here on. Returns the bytes that are already allocated.
fn start_counting() -> usize {
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    before
}

/// Loads every matrix as a linear layer.
fn load_layers(checkpoint: &Checkpoint, dtype: FloatDType) -> Vec<LinearLayer> {
    let loader = Loader::new(checkpoint, &Device::default(), dtype).unwrap();
    let layer = |(at, [rows, columns]): (usize, [usize; 2])| {
        loader
            .linear(&at.to_string(), columns, rows, false)
            .unwrap()
    };
    let layers = SHAPES.into_iter().enumerate().map(layer).collect();
    assert_eq!(loader.finish(), Vec::<&str>::new());
    layers
}

#[test]
fn loading_peaks_at_the_weights() {
    let _counted = COUNTED.lock().unwrap();
    let dir = write_checkpoint();
    let weights: usize = SHAPES.iter().map(|[rows, columns]| rows * columns).sum();
    for (dtype, size) in [(FloatDType::F16, 2), (FloatDType::F32, 4)] {
        let before = start_counting();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let model = load_layers(&checkpoint, dtype);
        let peak = PEAK.load(Relaxed) - before;
        let held = NOW.load(Relaxed) - before;
        let bytes = weights * size;
        // The weights once, in the requested type: less would mean that nothing was loaded.
        assert!(held >= bytes, "{held} of {bytes}");
        // Tensors are converted in chunks: none of them is in memory twice.
        assert!(
            peak <= bytes + small_change(),
            "{dtype:?}: {peak} for {bytes}"
        );
        drop(model);
    }
}

/// Converts a checkpoint and returns the peak of memory, with the folder.
fn convert(dtype: StoredType, to_safetensors: bool) -> (usize, tempfile::TempDir) {
    let dir = write_checkpoint();
    let out = tempfile::tempdir().unwrap();
    let before = start_counting();
    let checkpoint = Arc::new(Checkpoint::open(dir.path()).unwrap());
    let conversion = Conversion::new(checkpoint).with_dtype(Some(dtype));
    match to_safetensors {
        true => conversion.write_safetensors(out.path()).unwrap(),
        false => drop(conversion.write(out.path()).unwrap()),
    }
    drop(conversion);
    let peak = PEAK.load(Relaxed) - before;
    // Less would mean that nothing was converted.
    assert!(peak >= largest_tensor(), "{peak}");
    (peak, out)
}

#[test]
fn conversion_peaks_at_one_tensor() {
    let _counted = COUNTED.lock().unwrap();
    let largest = largest_tensor();
    for to_safetensors in [false, true] {
        let (peak, _out) = convert(StoredType::F32, to_safetensors);
        assert!(peak <= largest + small_change(), "{peak} for {largest}");
    }
}

#[test]
fn loading_maps_the_file() {
    let _counted = COUNTED.lock().unwrap();
    let (_, out) = convert(StoredType::F32, false);
    let before = start_counting();
    let checkpoint = Checkpoint::open(out.path()).unwrap();
    let model = load_layers(&checkpoint, FloatDType::F32);
    let sum = model[8]
        .float()
        .unwrap()
        .weight
        .val()
        .sum()
        .into_scalar::<f32>();
    let peak = PEAK.load(Relaxed) - before;
    assert!(peak <= small_change(), "{peak}");
    assert!(sum > 0.0, "{sum}");
}

#[test]
fn quantization_peaks_at_two_tensors() {
    let _counted = COUNTED.lock().unwrap();
    let (peak, _out) = convert(StoredType::Q4, false);
    // The tensor in F32, two copies of its codes in bytes, and the scales.
    let largest = largest_tensor();
    assert!(peak <= 2 * largest + small_change(), "{peak} for {largest}");
}
