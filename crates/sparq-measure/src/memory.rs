//! Memory and cache of a device, and the number of buffer sets that follows from them.

use sparq_device::DeviceChoice;

use crate::host::{Host, available_memory};

/// Bytes to read between two reads of one buffer, in last-level caches, if memory suffices.
const ROUNDS: f64 = 4.0;

/// Bytes in a rotation, in last-level caches, below which a part may come from the cache.
const COLD_ROUNDS: f64 = 2.0;

/// Bytes of a GiB and of a MiB.
const GIB: f64 = (1_u64 << 30) as f64;
pub(crate) const MIB: f64 = (1_u64 << 20) as f64;

/// Memory and cache of a device, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct DeviceMemory {
    /// Memory that buffers may take.
    pub available: f64,
    /// The last-level cache.
    pub cache: f64,
    /// True if enough buffer sets rotate to exceed the cache; otherwise two are used.
    pub rotate: bool,
}

impl DeviceMemory {
    /// The given memory in GiB and cache in MiB, or an estimate for the device.
    pub fn estimate(
        device: &DeviceChoice,
        memory_gib: Option<f64>,
        cache_mib: Option<f64>,
        rotate: bool,
    ) -> Self {
        let available = match (memory_gib, device.is_gpu()) {
            (Some(given), _) => given * GIB,
            (None, true) => 24.0 * GIB,
            (None, false) => available_memory().map_or(4.0 * GIB, |free| free as f64 / 2.0),
        };
        let cache = match (cache_mib, device.is_gpu()) {
            (Some(given), _) => given * MIB,
            // The L2 cache of an H100; few GPUs have more.
            (None, true) => 50.0 * MIB,
            (None, false) => Host::this()
                .last_level_cache_bytes
                .map_or(32.0 * MIB, |bytes| bytes as f64),
        };
        Self {
            available,
            cache,
            rotate,
        }
    }

    /// The number of buffer sets of `size` bytes for calls that read `read` bytes each. `None` if
    /// not even one fits beside `taken` bytes.
    pub fn sets(&self, read: f64, size: f64, taken: f64) -> Option<usize> {
        let wanted = match self.rotate {
            true => (ROUNDS * self.cache / read) as usize + 1,
            false => 2,
        };
        let fit = ((self.available - taken).max(0.0) / size) as usize;
        (fit > 0).then(|| wanted.max(2).min(fit))
    }

    /// Returns whether calls that rotate through `working_set` bytes find none of them in the
    /// last-level cache.
    pub fn is_cold(&self, working_set: f64) -> bool {
        working_set >= COLD_ROUNDS * self.cache
    }

    /// The reason why a measurement that needs this many bytes is skipped.
    pub fn too_small_for(&self, needed: f64) -> String {
        format!(
            "needs {:.2} GiB, of {:.2} GiB available; raise --memory-gib if the device has more",
            needed / GIB,
            self.available / GIB
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: DeviceMemory = DeviceMemory {
        available: 1000.0,
        cache: 50.0,
        rotate: true,
    };

    #[test]
    fn memory_rotates_past_the_cache() {
        // 200 bytes lie between two reads of one set: ten calls that read 20 of each set's 30.
        assert_eq!(MEMORY.sets(20.0, 30.0, 0.0), Some(11));
        assert!(MEMORY.is_cold(11.0 * 20.0) && !MEMORY.is_cold(99.0));
    }

    #[test]
    fn memory_bounds_the_number_of_sets() {
        assert_eq!(MEMORY.sets(300.0, 400.0, 0.0), Some(2));
        assert_eq!(MEMORY.sets(300.0, 400.0, 500.0), Some(1));
        assert_eq!(MEMORY.sets(300.0, 400.0, 700.0), None);
    }

    #[test]
    fn memory_without_rotation_holds_two_sets() {
        let memory = DeviceMemory {
            rotate: false,
            ..MEMORY
        };
        assert_eq!(memory.sets(1.0, 1.0, 0.0), Some(2));
    }
}
