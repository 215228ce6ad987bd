//! The source of a model's weights, a checkpoint or random numbers: [`Weights`].

use burn::module::Param;
use burn::nn::{Embedding, LayerNorm, LayerNormConfig, RmsNorm};
use burn::tensor::{Bytes, DType, Device, Distribution, FloatDType, Tensor};
use sparq::ops::{BlockFormat, PackedWeight, is_output_major};
use sparq::{EmbeddingLayer, LinearLayer};

use crate::checkpoint::CheckpointError;
use crate::linear;

/// The initial value of a weight that does not come from a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Random numbers from a normal distribution.
    Normal,
    /// The same number everywhere.
    Constant(f64),
}

/// Makes the modules of one model, named as in a checkpoint, on one device and in one type.
///
/// [`Loader`](crate::checkpoint::Loader) reads them from a checkpoint. The modules are trainable:
/// on an autodiff device their weights collect gradients.
///
/// # Errors
/// The errors of all methods are those of
/// [`Checkpoint::tensor`](crate::checkpoint::Checkpoint::tensor).
#[allow(clippy::missing_errors_doc, reason = "documented once for all methods")]
pub trait Weights {
    /// Returns the tensor `name`.
    fn parameter<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        init: Init,
    ) -> Result<Tensor<D>, CheckpointError>;

    /// Returns the matrix `name` of a linear layer, `[out_features, in_features]` in a checkpoint,
    /// as `[in_features, out_features]` in the layout that the device multiplies by.
    fn linear_weight(
        &self,
        name: &str,
        in_features: usize,
        out_features: usize,
    ) -> Result<Tensor<2>, CheckpointError>;

    /// Returns the blocks of the matrix `name` `[out_features, in_features]`, if it is stored in
    /// blocks that the device multiplies by.
    fn packed_weight(
        &self,
        name: &str,
        in_features: usize,
        out_features: usize,
    ) -> Result<Option<PackedWeight>, CheckpointError> {
        let _ = (name, in_features, out_features);
        Ok(None)
    }

    /// Makes a linear layer from `{prefix}.weight` `[out_features, in_features]`, and
    /// `{prefix}.bias` `[out_features]` if `bias`. Blocks stay packed where they can.
    fn linear(
        &self,
        prefix: &str,
        in_features: usize,
        out_features: usize,
        bias: bool,
    ) -> Result<LinearLayer, CheckpointError> {
        let read = || {
            self.parameter(
                &format!("{prefix}.bias"),
                [out_features],
                Init::Constant(0.0),
            )
        };
        let name = format!("{prefix}.weight");
        if let Some(weight) = self.packed_weight(&name, in_features, out_features)? {
            return Ok(LinearLayer::packed(weight, bias.then(read).transpose()?));
        }
        let weight = self.linear_weight(&name, in_features, out_features)?;
        let bias = bias.then(read).transpose()?;
        Ok(linear::from_laid_out(weight, bias).into())
    }

    /// Returns the type of the floats.
    fn dtype(&self) -> FloatDType;

    /// Makes an embedding table from the tensor `name` `[vocab, dim]`.
    fn embedding(
        &self,
        name: &str,
        vocab: usize,
        dim: usize,
    ) -> Result<EmbeddingLayer, CheckpointError> {
        if let Some(weight) = self.packed_weight(name, dim, vocab)? {
            return Ok(EmbeddingLayer::packed(weight, self.dtype()));
        }
        let weight = self.parameter(name, [vocab, dim], Init::Normal)?;
        Ok(EmbeddingLayer::Float(Embedding {
            weight: Param::from_tensor(weight),
        }))
    }

    /// Makes an RMS norm whose scale is `{prefix}.weight` `[dim]` plus `offset`.
    fn rms_norm(
        &self,
        prefix: &str,
        dim: usize,
        epsilon: f64,
        offset: f64,
    ) -> Result<RmsNorm, CheckpointError> {
        let init = Init::Constant(1.0 - offset);
        let mut gamma = self.parameter(&format!("{prefix}.weight"), [dim], init)?;
        if offset != 0.0 {
            gamma = gamma + offset;
        }
        Ok(RmsNorm {
            gamma: Param::from_tensor(gamma),
            epsilon,
        })
    }

    /// Makes a layer norm from `{prefix}.weight` and `{prefix}.bias`, `[dim]` each.
    fn layer_norm(
        &self,
        prefix: &str,
        dim: usize,
        epsilon: f64,
    ) -> Result<LayerNorm, CheckpointError> {
        let gamma = self.parameter(&format!("{prefix}.weight"), [dim], Init::Constant(1.0))?;
        let beta = self.parameter(&format!("{prefix}.bias"), [dim], Init::Constant(0.0))?;
        let config = LayerNormConfig::new(dim).with_epsilon(epsilon);
        let mut norm = config.init(&gamma.device());
        norm.gamma = Param::from_tensor(gamma);
        norm.beta = Some(Param::from_tensor(beta));
        Ok(norm)
    }
}

/// The start of training: matrices from a normal distribution, biases of 0, scales of 1.
pub(crate) struct RandomWeights<'a> {
    pub device: &'a Device,
    pub dtype: FloatDType,
    /// The format of matrices that stay packed.
    pub blocks: Option<BlockFormat>,
}

impl RandomWeights<'_> {
    /// The `initializer_range` of the families.
    const STANDARD_DEVIATION: f64 = 0.02;
    /// The most rows of a packed matrix that differ. The others repeat them.
    const PACKED_ROWS: usize = 16;
}

impl Weights for RandomWeights<'_> {
    fn dtype(&self) -> FloatDType {
        self.dtype
    }

    fn parameter<const D: usize>(
        &self,
        _name: &str,
        shape: [usize; D],
        init: Init,
    ) -> Result<Tensor<D>, CheckpointError> {
        // Made in the model's type, so that memory never holds anything wider.
        let options = (self.device, DType::from(self.dtype));
        Ok(match init {
            Init::Constant(value) => Tensor::full(shape, value, options),
            Init::Normal => {
                let normal = Distribution::Normal(0.0, Self::STANDARD_DEVIATION);
                Tensor::random(shape, normal, options)
            }
        })
    }

    fn packed_weight(
        &self,
        name: &str,
        in_features: usize,
        out_features: usize,
    ) -> Result<Option<PackedWeight>, CheckpointError> {
        let fits = |format: &BlockFormat| in_features.is_multiple_of(format.weights());
        let Some(format) = self.blocks.filter(fits) else {
            return Ok(None);
        };
        let shape = [out_features.min(Self::PACKED_ROWS), in_features];
        let rows = self.parameter(name, shape, Init::Normal)?;
        let rows: Vec<f32> = rows.into_data().convert::<f32>().iter().collect();
        let dims = [out_features, in_features];
        let blocks = format.quantize(&rows);
        let bytes = out_features * format.row_bytes(in_features);
        let bytes = Bytes::from_bytes_vec(blocks.into_iter().cycle().take(bytes).collect());
        let weight = PackedWeight::new(bytes, format, dims, self.device);
        Ok(Some(weight.expect("whole blocks of every row")))
    }

    fn linear_weight(
        &self,
        name: &str,
        in_features: usize,
        out_features: usize,
    ) -> Result<Tensor<2>, CheckpointError> {
        match is_output_major(self.device) {
            true => {
                let weight = self.parameter(name, [out_features, in_features], Init::Normal)?;
                Ok(weight.transpose())
            }
            false => self.parameter(name, [in_features, out_features], Init::Normal),
        }
    }
}
