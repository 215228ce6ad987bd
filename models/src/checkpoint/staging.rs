//! Host memory that a GPU copies from directly: [`Staging`].
//!
//! A driver copies from ordinary memory through a small buffer of its own, on one thread. From
//! pinned memory the GPU copies by itself, while the threads of the process fill the next buffer.
//! Pinning takes longer than copying, so a few buffers are pinned once and then go round: the
//! device drops the bytes of a buffer when it has copied them, which returns it.

use std::{
    mem,
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    time::Duration,
};

use burn::tensor::{AllocationProperty, Bytes, DType, Device, TensorData};

/// The number of buffers: one that the device copies, one that is filled, and one that returns only
/// with the next copy.
const BUFFERS: usize = 3;

/// The largest buffer. Together they bound the memory that loading takes beside the weights.
const MAX_BYTES: usize = 256 << 20;

/// The smallest tensor that gets a buffer. cubecl drops the bytes of a smaller one not with the
/// next copy, but after many; it copies them to pinned memory of its own.
const MIN_BYTES: usize = 16 << 20;

/// The longest wait for a buffer. A copy of the largest takes a tenth of it on a slow bus.
const PATIENCE: Duration = Duration::from_secs(1);

/// Pinned buffers of one size.
#[derive(Debug)]
pub(super) struct Staging {
    size: usize,
    free: Receiver<Bytes>,
    home: Sender<Bytes>,
}

impl Staging {
    /// Allocates buffers on `device` for tensors of the sizes `sizes`, in bytes. `None` if no size
    /// is suitable, or if the device has no memory of this kind.
    pub(super) fn new(device: &Device, sizes: impl Iterator<Item = usize>) -> Option<Self> {
        // A CPU has none, and asking costs the memory of a buffer.
        if !sparq::ops::has_kernels(device) {
            return None;
        }
        let size = sizes
            .filter(|size| (MIN_BYTES..=MAX_BYTES).contains(size))
            .max()?;
        let (home, free) = mpsc::channel();
        for _ in 0..BUFFERS {
            home.send(pinned(device, size)?).ok()?;
        }
        Some(Self { size, free, home })
    }

    /// Returns a buffer of `bytes` bytes, after waiting for one. `None` for a size that is not
    /// suitable, or if no buffer returns: the device has failed, or other tensors keep them.
    pub(super) fn take(&self, bytes: usize) -> Option<Buffer> {
        if !(MIN_BYTES..=self.size).contains(&bytes) {
            return None;
        }
        let memory = match self.free.recv_timeout(PATIENCE) {
            Ok(memory) => memory,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
        };
        Some(Buffer {
            memory,
            len: bytes,
            home: self.home.clone(),
        })
    }
}

/// Returns pinned memory, which burn exchanges for the memory of any data.
fn pinned(device: &Device, size: usize) -> Option<Bytes> {
    let zeros = Bytes::from_elems(vec![0_u8; size]);
    let mut data = TensorData::from_bytes(zeros, [size], DType::U8);
    device.staging([&mut data].into_iter());
    let bytes = data.into_bytes();
    (bytes.property() == AllocationProperty::Pinned).then_some(bytes)
}

/// A buffer that returns to its [`Staging`] when it is dropped.
#[derive(Debug)]
pub(super) struct Buffer {
    memory: Bytes,
    len: usize,
    home: Sender<Bytes>,
}

impl Buffer {
    /// Returns the bytes for a tensor. The buffer returns when they are dropped.
    pub(super) fn into_bytes(self) -> Bytes {
        let bytes = bytes::Bytes::from_owner(self);
        Bytes::from_shared(bytes, AllocationProperty::Pinned)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.len]
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = mem::replace(&mut self.memory, Bytes::from_elems(Vec::<u8>::new()));
        // Fails if the loader has ended: then the memory goes back to the device.
        let _ = self.home.send(memory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Buffers in ordinary memory, as a device without pinned memory has none.
    fn ordinary(size: usize) -> Staging {
        let (home, free) = mpsc::channel();
        for _ in 0..BUFFERS {
            home.send(Bytes::from_elems(vec![0_u8; size])).unwrap();
        }
        Staging { size, free, home }
    }

    #[test]
    fn buffers_go_round() {
        let staging = ordinary(MIN_BYTES + 8);
        for round in 0..3 * BUFFERS {
            let size = MIN_BYTES + round % 9;
            let mut buffer = staging.take(size).unwrap();
            buffer.as_mut().fill(round as u8 + 1);
            let bytes = buffer.into_bytes();
            assert_eq!(bytes.property(), AllocationProperty::Pinned);
            assert_eq!(bytes.len(), size);
            assert!(bytes.iter().all(|&byte| byte == round as u8 + 1));
        }
        let held: Vec<_> = (0..BUFFERS).map(|_| staging.take(MIN_BYTES)).collect();
        assert!(held.iter().all(Option::is_some));
        assert!(staging.take(MIN_BYTES).is_none());
        drop(held);
        assert!(staging.take(MIN_BYTES).is_some());
    }

    #[test]
    fn buffers_suit_their_sizes() {
        let staging = ordinary(MIN_BYTES);
        assert!(staging.take(MIN_BYTES - 1).is_none());
        assert!(staging.take(MIN_BYTES + 1).is_none());
        drop(staging.take(MIN_BYTES));
        // The bytes of a tensor may outlive the staging.
        let bytes = staging.take(MIN_BYTES).unwrap().into_bytes();
        drop(staging);
        assert_eq!(bytes.len(), MIN_BYTES);
    }

    #[test]
    fn cpus_have_no_pinned_memory() {
        for device in sparq_device::available() {
            let staging = Staging::new(&device.open(), [MIN_BYTES, 1].into_iter());
            assert!(device.is_gpu() || staging.is_none(), "{device}");
        }
        let small = Staging::new(&Device::default(), [MIN_BYTES - 1].into_iter());
        assert!(small.is_none());
    }
}
