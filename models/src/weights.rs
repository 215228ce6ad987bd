//! Where the weights of a model come from: a checkpoint or chance.

use burn::module::Param;
use burn::nn::{Embedding, Linear, RmsNorm};
use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor};

use crate::checkpoint::{CheckpointError, Loader};

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

    /// The norm whose scale is `name` `[dim]`.
    fn rms_norm(&self, name: &str, dim: usize, epsilon: f64) -> Result<RmsNorm, CheckpointError>;
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

    fn rms_norm(&self, name: &str, dim: usize, epsilon: f64) -> Result<RmsNorm, CheckpointError> {
        self.rms_norm(name, dim, epsilon)
    }
}

/// What a model starts its training from: matrices from a normal distribution, biases of 0, scales of 1.
pub(crate) struct RandomWeights<'a> {
    pub device: &'a Device,
    pub dtype: FloatDType,
}

impl RandomWeights<'_> {
    /// The `initializer_range` that the Llama family is trained from.
    const STANDARD_DEVIATION: f64 = 0.02;

    /// Straight in the type of the model, so that nothing wider is ever held.
    fn matrix(&self, shape: [usize; 2]) -> Param<Tensor<2>> {
        let normal = Distribution::Normal(0.0, Self::STANDARD_DEVIATION);
        Param::from_tensor(Tensor::random(
            shape,
            normal,
            (self.device, DType::from(self.dtype)),
        ))
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
        let zeros = || Tensor::zeros([out_features], (self.device, DType::from(self.dtype)));
        Ok(Linear {
            weight: self.matrix([in_features, out_features]),
            bias: bias.then(|| Param::from_tensor(zeros())),
        })
    }

    fn embedding(
        &self,
        _name: &str,
        vocab: usize,
        dim: usize,
    ) -> Result<Embedding, CheckpointError> {
        Ok(Embedding {
            weight: self.matrix([vocab, dim]),
        })
    }

    fn rms_norm(&self, _name: &str, dim: usize, epsilon: f64) -> Result<RmsNorm, CheckpointError> {
        Ok(RmsNorm {
            gamma: Param::from_tensor(Tensor::ones([dim], (self.device, DType::from(self.dtype)))),
            epsilon,
        })
    }
}
