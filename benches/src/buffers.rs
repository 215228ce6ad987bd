//! Caches to read, several of each so that no call finds in the processor's cache what the call before has read.

use anyhow::{Result, anyhow, ensure};
use burn::tensor::kind::Basic;
use burn::tensor::{Device, Distribution, FloatDType, Tensor};
use sparq::ops::{CacheTensors, SketchTensors, Spans};
use sparq::{KvCacheConfig, Sketch};

use crate::machine::{Machine, available_memory};
use crate::preset::Case;
use sparq_device::DeviceChoice;

/// How many times the last-level cache holds, at least, lie between two reads of one buffer, if memory suffices.
const ROUNDS: f64 = 4.0;

/// How many of them make a result that memory was read for: fewer, and a part may have come from the cache.
const COLD_ROUNDS: f64 = 2.0;

/// Random numbers that are drawn at a time at most, unless a row has more.
const DRAWN_AT_ONCE: usize = 1 << 26;

/// Memory and cache of a device, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// What buffers may take.
    pub memory: f64,
    /// The last-level cache.
    pub cache: f64,
    /// Whether to rotate as many buffer sets as it takes to pass by the cache; otherwise two.
    pub rotate: bool,
}

impl Room {
    /// Memory in GiB and cache in MiB of a device, as given or as they are likely to be.
    pub fn likely(
        device: &DeviceChoice,
        memory_gib: Option<f64>,
        cache_mib: Option<f64>,
        rotate: bool,
    ) -> Self {
        let (gib, mib) = (f64::from(1 << 30), f64::from(1 << 20));
        let memory = match (memory_gib, device.is_gpu()) {
            (Some(given), _) => given * gib,
            (None, true) => 24.0 * gib,
            (None, false) => available_memory().map_or(4.0 * gib, |free| free as f64 / 2.0),
        };
        let cache = match (cache_mib, device.is_gpu()) {
            (Some(given), _) => given * mib,
            // An H100's; few GPUs have more.
            (None, true) => 50.0 * mib,
            (None, false) => Machine::this()
                .last_level_cache_bytes
                .map_or(32.0 * mib, |bytes| bytes as f64),
        };
        Self {
            memory,
            cache,
            rotate,
        }
    }

    /// Buffer sets for calls that read `read` bytes each from sets of `size` bytes; `None` if not even one fits beside `taken` bytes.
    pub fn sets(&self, read: f64, size: f64, taken: f64) -> Option<usize> {
        let wanted = match self.rotate {
            true => (ROUNDS * self.cache / read) as usize + 1,
            false => 2,
        };
        let fit = ((self.memory - taken).max(0.0) / size) as usize;
        (fit > 0).then(|| wanted.max(2).min(fit))
    }

    /// Whether calls that go through `working_set` bytes in turn find none of them in the last-level cache.
    pub fn is_cold(&self, working_set: f64) -> bool {
        working_set >= COLD_ROUNDS * self.cache
    }
}

/// What every buffer set of a case is a copy of.
#[derive(Debug)]
pub struct Source {
    /// The query, [B, H, 1, d] in the cache's type.
    pub q: Tensor<4>,
    /// Keys, [B, H_kv, S, d] in the cache's type.
    pub k: Tensor<4>,
    /// Values, [B, H_kv, S, d] in the cache's type.
    pub v: Tensor<4>,
    /// g: query heads of one key/value head.
    pub group_size: usize,
}

impl Source {
    /// Normally distributed queries, keys and values, the same in every run.
    pub fn new(case: &Case, device: &Device) -> Self {
        device.seed(0);
        let shape = &case.shape;
        let dtype = FloatDType::from(case.dtype);
        let random = |heads, len| random([shape.batch, heads, len, shape.head_dim], dtype, device);
        Self {
            q: random(shape.heads, 1),
            k: random(shape.kv_heads, shape.seq_len),
            v: random(shape.kv_heads, shape.seq_len),
            group_size: shape.group_size(),
        }
    }

    /// `count` caches in memory of their own with these keys and values and the sketch made from them.
    ///
    /// # Errors
    /// When the device can't hold such a cache.
    pub fn caches(&self, sketch: Option<Sketch>, count: usize) -> Result<Caches> {
        let [batch, kv_heads, len, head_dim] = self.k.dims();
        let config = KvCacheConfig::new(batch, kv_heads, head_dim)
            .with_capacity(len)
            .with_dtype(FloatDType::from(self.k.dtype()))
            .with_sketch(sketch);
        let mut cache = config.init(&self.k.device())?;
        cache.append(self.k.clone(), self.v.clone())?;
        cache.refresh_sketch();
        let rows = cache.spans().clone();
        let mut sets = vec![cache.tensors().clone()];
        while sets.len() < count {
            sets.push(copied(&sets[0]));
        }
        Ok(Caches { sets, rows })
    }
}

/// Normally distributed numbers. They are drawn in f32, some rows at a time: where buffers are limited, those of the whole could be too large.
fn random(shape: [usize; 4], dtype: FloatDType, device: &Device) -> Tensor<4> {
    let [batch, heads, len, head_dim] = shape;
    let (rows, row) = (batch * heads, len * head_dim);
    let at_once = (DRAWN_AT_ONCE / row).clamp(1, rows);
    let mut all = Tensor::<2>::empty([rows, row], (device, dtype.into()));
    for first in (0..rows).step_by(at_once) {
        let end = rows.min(first + at_once);
        let part = Tensor::<2>::random([end - first, row], Distribution::Normal(0.0, 1.0), device);
        all = all.slice_assign([first..end, 0..row], part.cast(dtype));
    }
    all.reshape(shape)
}

/// Caches with equal contents in different memory.
#[derive(Debug)]
pub struct Caches {
    /// The buffer sets.
    pub sets: Vec<CacheTensors>,
    /// The valid positions, the same in all.
    pub rows: Spans,
}

fn copied(cache: &CacheTensors) -> CacheTensors {
    CacheTensors {
        k: copy(&cache.k),
        v: copy(&cache.v),
        v_sum: copy(&cache.v_sum),
        spans: copy(&cache.spans),
        sketch: match &cache.sketch {
            SketchTensors::None => SketchTensors::None,
            SketchTensors::Full(kt) => SketchTensors::Full(copy(kt)),
            SketchTensors::Codes {
                bits,
                codes,
                zero_point: lo,
                scale: step,
            } => SketchTensors::Codes {
                bits: *bits,
                codes: copy(codes),
                zero_point: copy(lo),
                scale: copy(step),
            },
        },
    }
}

/// The same contents in other memory: a clone would share it.
pub fn copy<const D: usize, K: Basic>(tensor: &Tensor<D, K>) -> Tensor<D, K> {
    let all = tensor.dims().map(|size| 0..size);
    Tensor::zeros(tensor.dims(), (&tensor.device(), tensor.dtype()))
        .slice_assign(all, tensor.clone())
}

/// Reads the last number of the tensor. A device that ran out of memory, or of what else it needs, goes on, very quickly, and tells when it is asked for numbers.
///
/// # Errors
/// When the device could not compute the tensor, or that number is not finite.
pub fn check(tensor: Tensor<4>) -> Result<()> {
    let last = tensor.dims().map(|size| size - 1..size);
    let number = tensor.slice(last).cast(FloatDType::F32).try_into_data();
    let number = number.map_err(|error| {
        // burn's errors are reports of several lines, the cause in the last that says something.
        let report = error.to_string();
        let says = |line: &&str| {
            !line.is_empty() && !line.ends_with(':') && !line.starts_with("No backtrace")
        };
        let cause = report.lines().map(str::trim).rfind(says);
        anyhow!("the device says: {}", cause.unwrap_or("nothing"))
    })?;
    let finite = number.iter::<f32>().all(f32::is_finite);
    ensure!(finite, "the device computed no number: {number}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Room = Room {
        memory: 1000.0,
        cache: 50.0,
        rotate: true,
    };

    #[test]
    fn enough_sets_rotate_to_pass_by_the_cache() {
        // 200 bytes have to lie between two reads of one set: ten calls that read 20, of the 30 of each set.
        assert_eq!(ROOM.sets(20.0, 30.0, 0.0), Some(11));
        assert!(ROOM.is_cold(11.0 * 20.0) && !ROOM.is_cold(99.0));
    }

    #[test]
    fn a_large_cache_needs_two_sets_and_makes_do_with_one() {
        assert_eq!(ROOM.sets(300.0, 400.0, 0.0), Some(2));
        assert_eq!(ROOM.sets(300.0, 400.0, 500.0), Some(1));
        assert_eq!(ROOM.sets(300.0, 400.0, 700.0), None);
    }

    #[test]
    fn a_quick_run_takes_two_sets() {
        let room = Room {
            rotate: false,
            ..ROOM
        };
        assert_eq!(room.sets(1.0, 1.0, 0.0), Some(2));
    }
}
