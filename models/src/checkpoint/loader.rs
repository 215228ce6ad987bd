//! From tensors to modules: [`Loader`].

use std::cell::Cell;

use burn::{
    module::Param,
    nn::{Embedding, LayerNorm, LayerNormConfig, Linear, RmsNorm},
    tensor::{Device, FloatDType, Tensor},
};

use super::{
    Checkpoint, CheckpointError,
    base::{check_device, place},
    decode::Order,
};
use crate::linear;
use crate::progress::Progress;

/// Builds the modules of one model from a checkpoint, on one device and in one type, under one progress bar.
///
/// What it returns is trainable: on an autodiff device the weights collect gradients.
#[derive(Debug)]
pub struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    device: Device,
    dtype: FloatDType,
    progress: Progress,
    bytes_read: Cell<u64>,
}

impl<'a> Loader<'a> {
    /// A loader of `checkpoint` onto `device` as `dtype`.
    ///
    /// # Errors
    ///
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

    /// The checkpoint that is read.
    pub fn checkpoint(&self) -> &'a Checkpoint {
        self.checkpoint
    }

    /// The device that the weights go to.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The type that the weights are converted to.
    pub fn dtype(&self) -> FloatDType {
        self.dtype
    }

    /// Bytes read so far, as they are stored.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.get()
    }

    /// Reads a tensor.
    ///
    /// # Errors
    ///
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

    /// Reads a linear layer: `{prefix}.weight` `[out_features, in_features]`, and `{prefix}.bias` `[out_features]` if `bias`.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::tensor`].
    pub fn linear(
        &self,
        prefix: &str,
        in_features: usize,
        out_features: usize,
        bias: bool,
    ) -> Result<Linear, CheckpointError> {
        let (name, shape) = (format!("{prefix}.weight"), [out_features, in_features]);
        // burn multiplies by [in, out]: a transposed view of what the file holds, or the file transposed while it is read.
        let weight = match linear::is_output_major(&self.device) {
            true => self.tensor::<2>(&name, shape)?.transpose(),
            false => self.read(&name, shape, Order::Transposed)?,
        };
        let bias = match bias {
            true => Some(self.tensor(&format!("{prefix}.bias"), [out_features])?),
            false => None,
        };
        Ok(linear::from_laid_out(weight, bias))
    }

    /// Reads an embedding table: the tensor `name` [vocab, dim].
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::tensor`].
    pub fn embedding(
        &self,
        name: &str,
        vocab: usize,
        dim: usize,
    ) -> Result<Embedding, CheckpointError> {
        let weight = Param::from_tensor(self.tensor(name, [vocab, dim])?);
        Ok(Embedding { weight })
    }

    /// Reads the scale of an RMS norm: the tensor `name` `[dim]`.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::tensor`].
    pub fn rms_norm(
        &self,
        name: &str,
        dim: usize,
        epsilon: f64,
    ) -> Result<RmsNorm, CheckpointError> {
        let gamma = Param::from_tensor(self.tensor(name, [dim])?);
        Ok(RmsNorm { gamma, epsilon })
    }

    /// Reads a layer norm: `{prefix}.weight` and `{prefix}.bias`, `[dim]` each.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::tensor`].
    pub fn layer_norm(
        &self,
        prefix: &str,
        dim: usize,
        epsilon: f64,
    ) -> Result<LayerNorm, CheckpointError> {
        let read = |name| self.tensor(&format!("{prefix}.{name}"), [dim]);
        let config = LayerNormConfig::new(dim).with_epsilon(epsilon);
        let mut norm = config.init(&self.device);
        norm.gamma = Param::from_tensor(read("weight")?);
        norm.beta = Some(Param::from_tensor(read("bias")?));
        Ok(norm)
    }

    /// Ends loading: takes the progress bar away, and warns of tensors that nobody asked for, which it returns.
    ///
    /// `rotary_emb.inv_freq` is no weight: old checkpoints store this table of constants, which every model computes itself.
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
