//! Where the weights of a model come from: a checkpoint or chance.

use burn::module::Param;
use burn::nn::{Embedding, LayerNorm, LayerNormConfig, Linear, RmsNorm};
use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor};

use crate::checkpoint::{CheckpointError, Loader};
use crate::linear;

/// Makes the modules of one model, named as in a checkpoint, on one device and in one type.
pub(crate) trait Weights {
    /// The linear layer `prefix`.
    fn linear(
        &self,
        prefix: &str,
        in_features: usize,
        out_features: usize,
        bias: bool,
    ) -> Result<Linear, CheckpointError>;

    /// The embedding table `name` [vocab, dim].
    fn embedding(&self, name: &str, vocab: usize, dim: usize)
    -> Result<Embedding, CheckpointError>;

    /// The RMS norm `prefix` of `dim` features, whose scale is what is stored and `offset`.
    fn rms_norm(
        &self,
        prefix: &str,
        dim: usize,
        epsilon: f64,
        offset: f64,
    ) -> Result<RmsNorm, CheckpointError>;

    /// The layer norm `prefix` of `dim` features, with a bias.
    fn layer_norm(
        &self,
        prefix: &str,
        dim: usize,
        epsilon: f64,
    ) -> Result<LayerNorm, CheckpointError>;
}

impl Weights for Loader<'_> {
    fn linear(
        &self,
        prefix: &str,
        in_features: usize,
        out_features: usize,
        bias: bool,
    ) -> Result<Linear, CheckpointError> {
        self.linear(prefix, in_features, out_features, bias)
    }

    fn embedding(
        &self,
        name: &str,
        vocab: usize,
        dim: usize,
    ) -> Result<Embedding, CheckpointError> {
        self.embedding(name, vocab, dim)
    }

    fn rms_norm(
        &self,
        prefix: &str,
        dim: usize,
        epsilon: f64,
        offset: f64,
    ) -> Result<RmsNorm, CheckpointError> {
        let norm = self.rms_norm(&format!("{prefix}.weight"), dim, epsilon)?;
        if offset == 0.0 {
            return Ok(norm);
        }
        // A parameter of its own: what it is made from is not to be trained.
        let gamma = Param::from_tensor(norm.gamma.val().detach().set_require_grad(false) + offset);
        Ok(RmsNorm { gamma, epsilon })
    }

    fn layer_norm(
        &self,
        prefix: &str,
        dim: usize,
        epsilon: f64,
    ) -> Result<LayerNorm, CheckpointError> {
        self.layer_norm(prefix, dim, epsilon)
    }
}

/// What a model starts its training from: matrices from a normal distribution, biases of 0, scales of 1.
pub(crate) struct RandomWeights<'a> {
    pub device: &'a Device,
    pub dtype: FloatDType,
}

impl RandomWeights<'_> {
    /// The `initializer_range` that the families are trained from.
    const STANDARD_DEVIATION: f64 = 0.02;

    /// Straight in the type of the model, so that nothing wider is ever held.
    fn matrix(&self, shape: [usize; 2]) -> Tensor<2> {
        let normal = Distribution::Normal(0.0, Self::STANDARD_DEVIATION);
        Tensor::random(shape, normal, (self.device, DType::from(self.dtype)))
    }

    fn vector(&self, dim: usize, value: f64) -> Tensor<1> {
        let options = (self.device, DType::from(self.dtype));
        Tensor::full([dim], value, options)
    }
}

impl Weights for RandomWeights<'_> {
    fn linear(
        &self,
        _prefix: &str,
        in_features: usize,
        out_features: usize,
        bias: bool,
    ) -> Result<Linear, CheckpointError> {
        let weight = match linear::is_output_major(self.device) {
            true => self.matrix([out_features, in_features]).transpose(),
            false => self.matrix([in_features, out_features]),
        };
        let bias = bias.then(|| self.vector(out_features, 0.0));
        Ok(linear::from_laid_out(weight, bias))
    }

    fn embedding(
        &self,
        _name: &str,
        vocab: usize,
        dim: usize,
    ) -> Result<Embedding, CheckpointError> {
        Ok(Embedding {
            weight: Param::from_tensor(self.matrix([vocab, dim])),
        })
    }

    fn rms_norm(
        &self,
        _prefix: &str,
        dim: usize,
        epsilon: f64,
        _offset: f64,
    ) -> Result<RmsNorm, CheckpointError> {
        Ok(RmsNorm {
            gamma: Param::from_tensor(self.vector(dim, 1.0)),
            epsilon,
        })
    }

    fn layer_norm(
        &self,
        _prefix: &str,
        dim: usize,
        epsilon: f64,
    ) -> Result<LayerNorm, CheckpointError> {
        let config = LayerNormConfig::new(dim).with_epsilon(epsilon);
        let mut norm = config.init(self.device);
        norm.gamma = Param::from_tensor(self.vector(dim, 1.0));
        norm.beta = Some(Param::from_tensor(self.vector(dim, 0.0)));
        Ok(norm)
    }
}
