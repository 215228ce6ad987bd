//! Reads the tensors of one model: [`Loader`].

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use burn::tensor::{Device, FloatDType, Tensor};
use sparq::ops::{PackedWeight, has_kernels, is_output_major};

use super::{
    Checkpoint, CheckpointError,
    base::check_device,
    decode::{Order, Request},
    upload::Uploads,
};
use crate::progress::Progress;
use crate::weights::{Init, Weights};

/// Consecutive rows of a stored tensor that a model reads as a tensor of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// The name by which the model reads it.
    pub name: String,
    /// The name of the stored tensor.
    pub whole: String,
    /// The rows of the stored tensor.
    pub rows: Range<usize>,
}

/// Reads the tensors of one model from a checkpoint, onto one device and in one type, with one
/// progress bar. As [`Weights`] it makes the modules of the model.
#[derive(Debug)]
pub struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    device: Device,
    dtype: FloatDType,
    uploads: Uploads,
    progress: Progress,
    /// The parts of tensors, by name.
    parts: BTreeMap<String, Part>,
    bytes_read: AtomicU64,
    started: Instant,
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
            uploads: Uploads::new(device),
            progress: Progress::bytes("Loading", checkpoint.num_bytes()),
            parts: BTreeMap::new(),
            bytes_read: AtomicU64::new(0),
            started: Instant::now(),
        })
    }

    /// Reads these names from rows of larger tensors, where the checkpoint has those.
    pub(crate) fn with_parts(mut self, parts: Vec<Part>) -> Self {
        let stored = |part: &Part| self.checkpoint.contains(&part.whole);
        let parts = parts.into_iter().filter(stored);
        self.parts = parts.map(|part| (part.name.clone(), part)).collect();
        self
    }

    /// Returns the number of stored bytes read so far.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
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
        let data = self.with_request(order, |request| match self.parts.get(name) {
            Some(part) => self.checkpoint.read_part(part, &shape, request),
            None => self.checkpoint.read(name, &shape, request),
        })?;
        Ok(self.uploads.place(data, self.dtype))
    }

    fn with_request<T>(&self, order: Order, read: impl FnOnce(Request<'_>) -> T) -> T {
        // The threads that read share these two, not the uploads.
        let (bytes_read, progress) = (&self.bytes_read, &self.progress);
        let on_bytes = |count| {
            bytes_read.fetch_add(count, Ordering::Relaxed);
            progress.inc(count);
        };
        read(Request {
            order,
            staging: self.uploads.staging(self.checkpoint, self.dtype),
            ..Request::new(self.dtype, &on_bytes)
        })
    }

    /// Ends loading: removes the progress bar. Returns the tensors that were not read, after a
    /// warning in the log if there are any.
    ///
    /// `rotary_emb.inv_freq` does not count: it is a table of constants in old checkpoints, which
    /// every model computes itself.
    pub fn finish(self) -> Vec<&'a str> {
        self.progress.finish();
        let (bytes, seconds) = (self.bytes_read(), self.started.elapsed().as_secs_f64());
        let gb_per_s = bytes as f64 / seconds.max(f64::MIN_POSITIVE) / 1e9;
        tracing::debug!(
            "{}: read {bytes} bytes in {seconds:.2} s, {gb_per_s:.2} GB/s",
            self.checkpoint.config_path().display(),
        );
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
    fn dtype(&self) -> FloatDType {
        self.dtype
    }

    fn parameter<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        _init: Init,
    ) -> Result<Tensor<D>, CheckpointError> {
        self.tensor(name, shape)
    }

    fn packed_weight(
        &self,
        name: &str,
        in_features: usize,
        out_features: usize,
    ) -> Result<Option<PackedWeight>, CheckpointError> {
        // Training needs floats. Devices without these products would dequantise in every call.
        if !is_output_major(&self.device) {
            return Ok(None);
        }
        let stored = match self.parts.get(name) {
            Some(part) => (&*part.whole, Some(part.rows.clone())),
            None => (name, None),
        };
        let shape = [out_features, in_features];
        let map = !has_kernels(&self.device);
        let blocks = self.with_request(Order::AsStored, |request| {
            self.checkpoint.blocks(stored, shape, map, request)
        })?;
        Ok(blocks.map(|(format, bytes)| self.uploads.place_blocks(bytes, format, shape)))
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
