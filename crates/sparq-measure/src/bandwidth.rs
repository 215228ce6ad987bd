//! The memory bandwidth of the device, measured in the same run as the figures related to it.

use std::hint::black_box;
use std::thread;

use anyhow::Result;
use burn::tensor::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::host::cores;
use crate::memory::{DeviceMemory, MIB};
use crate::timing::{Pace, sample, wait};
use sparq_device::DeviceChoice;

/// Bandwidth over buffers larger than any cache, in GB/s (10^9 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Copying a buffer, bytes read and bytes written together. On a GPU the copy is an elementwise
    /// kernel; on a CPU all cores copy.
    pub copy_gb_per_s: f64,
    /// Reading a buffer with all cores of a CPU. Not measured on GPUs.
    pub read_gb_per_s: Option<f64>,
    /// Bytes of one buffer.
    pub buffer_bytes: u64,
}

impl Bandwidth {
    /// The higher of the two bandwidths. A decode step mostly reads, and a CPU reads faster than it
    /// copies: with the copy bandwidth, a step could beat its floor.
    pub fn reference_gb_per_s(&self) -> f64 {
        self.copy_gb_per_s.max(self.read_gb_per_s.unwrap_or(0.0))
    }

    /// The floor: the time to move `bytes` at this bandwidth, in microseconds.
    pub fn floor_us(&self, bytes: f64) -> f64 {
        bytes / self.reference_gb_per_s() / 1e3
    }
}

/// Measures the bandwidth of a device.
///
/// # Errors
/// If the device fails.
pub fn measure(device: &DeviceChoice, memory: &DeviceMemory, pace: &Pace) -> Result<Bandwidth> {
    let wanted = match (memory.rotate, device.is_gpu()) {
        (false, _) => 64.0 * MIB,
        (true, true) => 1024.0 * MIB,
        (true, false) => (2.0 * memory.cache).max(256.0 * MIB),
    };
    let bytes = wanted.min(memory.available / 4.0) as usize;
    match device.is_gpu() {
        true => on_device(&device.open(), bytes, pace),
        false => on_cores(bytes, pace),
    }
}

fn on_device(device: &Device, bytes: usize, pace: &Pace) -> Result<Bandwidth> {
    let source = Tensor::<1>::zeros([bytes / 4], (device, DType::F32));
    let bytes = source.dims()[0] * 4;
    let copies = sample(pace, 1, |repeats| {
        let mut last = None;
        for _ in 0..repeats {
            last = Some(source.clone() + 1.0);
        }
        wait(device)?;
        drop(last);
        Ok(())
    })?;
    Ok(Bandwidth {
        copy_gb_per_s: gb_per_s(2 * bytes, copies.median_us),
        read_gb_per_s: None,
        buffer_bytes: bytes as u64,
    })
}

fn on_cores(bytes: usize, pace: &Pace) -> Result<Bandwidth> {
    let words = (bytes / 8).max(1);
    let share = words.div_ceil(cores());
    let source = vec![1_u64; words];
    let mut target = vec![0_u64; words];
    let copies = sample(pace, 1, |repeats| {
        for _ in 0..repeats {
            thread::scope(|scope| {
                for (to, from) in target.chunks_mut(share).zip(source.chunks(share)) {
                    scope.spawn(move || to.copy_from_slice(black_box(from)));
                }
            });
        }
        Ok(())
    })?;
    black_box(&target);
    let reads = sample(pace, 1, |repeats| {
        for _ in 0..repeats {
            thread::scope(|scope| {
                for part in source.chunks(share) {
                    scope.spawn(move || black_box(read(black_box(part))));
                }
            });
        }
        Ok(())
    })?;
    Ok(Bandwidth {
        copy_gb_per_s: gb_per_s(2 * 8 * words, copies.median_us),
        read_gb_per_s: Some(gb_per_s(8 * words, reads.median_us)),
        buffer_bytes: 8 * words as u64,
    })
}

/// Reads all words with software prefetch. Without it, one of the measured server processors read
/// at two thirds of the rate, and attention, which prefetches, beat its floor.
fn read(words: &[u64]) -> u64 {
    /// Words per cache line.
    const LINE: usize = 8;
    /// Distance of the prefetch, in cache lines.
    #[cfg(target_arch = "x86_64")]
    const AHEAD: usize = 64;
    words.chunks(LINE).fold(0, |sum: u64, line| {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let ahead = line.as_ptr().wrapping_add(AHEAD * LINE);
            // SAFETY: a prefetch is a hint, valid for any address; it reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.cast()) };
        }
        line.iter().fold(sum, |sum, word| sum.wrapping_add(*word))
    })
}

fn gb_per_s(bytes: usize, us: f64) -> f64 {
    bytes as f64 / us / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidth_floor_uses_the_higher_rate() {
        let bandwidth = Bandwidth {
            copy_gb_per_s: 10.0,
            read_gb_per_s: Some(20.0),
            buffer_bytes: 1,
        };
        assert_eq!(bandwidth.floor_us(2e6), 100.0);
    }

    #[test]
    fn bandwidth_of_cores_is_positive() {
        let found = on_cores(1 << 20, &Pace::QUICK).unwrap();
        assert!(found.copy_gb_per_s > 0.0 && found.read_gb_per_s.unwrap() > 0.0);
        assert_eq!(found.buffer_bytes, 1 << 20);
    }
}
