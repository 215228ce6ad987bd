//! Reads the tensors of one model: [`Loader`].

use std::cell::Cell;

use burn::tensor::{Device, FloatDType, Tensor};
use sparq::ops::is_output_major;

use super::{
    Checkpoint, CheckpointError,
    base::{check_device, place},
    decode::Order,
};
use crate::progress::Progress;
use crate::weights::{Init, Weights};

/// Reads the tensors of one model from a checkpoint, onto one device and in one type, with one
/// progress bar. As [`Weights`] it makes the modules of the model.
#[derive(Debug)]
pub struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    device: Device,
    dtype: FloatDType,
    progress: Progress,
    bytes_read: Cell<u64>,
}

impl<'a> Loader<'a> {
    /// Creates a loader of `checkpoint` onto `device` as `dtype`.
    ///
    /// # Errors
    /// If the device does not compute in `dtype`.
    pub fn new(
        checkpoint: &'a Checkpoint,
        device: &Device,
        dtype: FloatDType,
    ) -> Result<Self, CheckpointError> {
        check_device(device, dtype)?;
        Ok(Self {
            checkpoint,
            device: device.clone(),
            dtype,
            progress: Progress::bytes("Loading", checkpoint.num_bytes()),
            bytes_read: Cell::new(0),
        })
    }

    /// Returns the number of stored bytes read so far.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.get()
    }

    /// Reads a tensor.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`].
    pub fn tensor<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
    ) -> Result<Tensor<D>, CheckpointError> {
        self.read(name, shape, Order::AsStored)
    }

    fn read<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        order: Order,
    ) -> Result<Tensor<D>, CheckpointError> {
        let on_bytes = |count| {
            self.bytes_read.set(self.bytes_read.get() + count);
            self.progress.inc(count);
        };
        let (device, dtype) = (&self.device, self.dtype);
        let data = self
            .checkpoint
            .read(name, &shape, dtype, device, order, &on_bytes)?;
        Ok(place(data, dtype, device))
    }

    /// Ends loading: removes the progress bar. Returns the tensors that were not read, after a
    /// warning in the log if there are any.
    ///
    /// `rotary_emb.inv_freq` does not count: it is a table of constants in old checkpoints, which
    /// every model computes itself.
    pub fn finish(self) -> Vec<&'a str> {
        self.progress.finish();
        let unused = self.checkpoint.unused();
        let unused: Vec<_> = unused
            .filter(|name| !name.ends_with("rotary_emb.inv_freq"))
            .collect();
        if let Some(first) = unused.first() {
            tracing::warn!(
                "{}: {} tensors are not part of the model and were not read, the first is \"{first}\"",
                self.checkpoint.config_path().display(),
                unused.len(),
            );
        }
        unused
    }
}

impl Weights for Loader<'_> {
    fn parameter<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        _init: Init,
    ) -> Result<Tensor<D>, CheckpointError> {
        self.tensor(name, shape)
    }

    fn linear_weight(
        &self,
        name: &str,
        in_features: usize,
        out_features: usize,
    ) -> Result<Tensor<2>, CheckpointError> {
        let shape = [out_features, in_features];
        match is_output_major(&self.device) {
            true => Ok(self.tensor(name, shape)?.transpose()),
            false => self.read(name, shape, Order::Transposed),
        }
    }
}
