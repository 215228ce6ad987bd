//! Moves tensors to a device: [`Uploads`].

use std::cell::{Cell, OnceCell};

use burn::tensor::{AllocationProperty, Bytes, Device, FloatDType, Tensor, TensorData};
use sparq::ops::{BlockFormat, PackedWeight};

use super::{Checkpoint, staging::Staging};

/// Bytes of ordinary memory that wait for the device at most, beside the tensor that is read.
const MAX_WAITING: usize = 512 << 20;

/// The uploads of one model, from the thread that made it: a captured decode step may only read
/// tensors that its own thread has uploaded.
///
/// An upload is queued. While the device copies a tensor, the threads of the process read the next.
#[derive(Debug)]
pub(super) struct Uploads {
    device: Device,
    staging: OnceCell<Option<Staging>>,
    /// Bytes queued since the device last ran its queue.
    waiting: Cell<usize>,
}

impl Uploads {
    /// Uploads to `device`.
    pub(super) fn new(device: &Device) -> Self {
        Self {
            device: device.clone(),
            staging: OnceCell::new(),
            waiting: Cell::new(0),
        }
    }

    /// Returns the buffers for the tensors of `checkpoint` in `dtype`, if the device has them. The
    /// first call allocates them.
    pub(super) fn staging(&self, checkpoint: &Checkpoint, dtype: FloatDType) -> Option<&Staging> {
        let staging = || Staging::new(&self.device, checkpoint.sizes(dtype));
        self.staging.get_or_init(staging).as_ref()
    }

    /// Moves the data of a tensor to the device.
    pub(super) fn place<const D: usize>(&self, data: TensorData, dtype: FloatDType) -> Tensor<D> {
        let bytes = data.bytes();
        let (len, property) = (bytes.len(), bytes.property());
        let tensor = place(data, dtype, &self.device);
        self.queued(len, property);
        tensor
    }

    /// Moves the blocks of a matrix [out, in], as many as it has, to the device.
    pub(super) fn place_blocks(
        &self,
        bytes: Bytes,
        format: BlockFormat,
        shape: [usize; 2],
    ) -> PackedWeight {
        let (len, property) = (bytes.len(), bytes.property());
        let weight = PackedWeight::new(bytes, format, shape, &self.device);
        self.queued(len, property);
        weight.expect("the checkpoint has checked the size")
    }

    /// Counts an upload of `len` bytes, and lets the device run its queue if there are many.
    fn queued(&self, len: usize, property: AllocationProperty) {
        let waiting = self.waiting.get() + len;
        let staged = property == AllocationProperty::Pinned;
        self.waiting.set(waiting);
        if staged || waiting >= MAX_WAITING {
            // burn queues calls until there are many. A question that the device answers makes it
            // run them; the answer does not wait for the copy of this tensor.
            self.device.memory_pool_usage();
            self.waiting.set(0);
        }
    }
}

/// Moves the data of a tensor to the device.
pub(super) fn place<const D: usize>(
    data: TensorData,
    dtype: FloatDType,
    device: &Device,
) -> Tensor<D> {
    // On a GPU, weights get memory that is not recycled for the tensors of a decode step.
    device
        .memory_persistent_allocations(data, |data| Tensor::from_data(data, (device, dtype.into())))
}
