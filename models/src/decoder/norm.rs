//! The norms of the residual stream: [`Norm`].

use burn::module::Module;
use burn::nn::{LayerNorm, RmsNorm};
use burn::tensor::Tensor;

use super::NormKind;
use crate::checkpoint::CheckpointError;
use crate::weights::Weights;

/// A norm over the last dimension.
#[derive(Module, Debug)]
pub(super) enum Norm {
    Rms(RmsNorm),
    Layer(LayerNorm),
}

impl Norm {
    /// Builds the norm `name` of `dim` features.
    pub(super) fn build(
        weights: &impl Weights,
        kind: NormKind,
        name: &str,
        dim: usize,
    ) -> Result<Self, CheckpointError> {
        Ok(match kind {
            NormKind::Rms { epsilon } => Self::Rms(weights.rms_norm(name, dim, epsilon, 0.0)?),
            NormKind::RmsPlusOne { epsilon } => {
                Self::Rms(weights.rms_norm(name, dim, epsilon, 1.0)?)
            }
            NormKind::Layer { epsilon } => Self::Layer(weights.layer_norm(name, dim, epsilon)?),
        })
    }

    /// Maps x [B, T, D] to [B, T, D].
    pub(super) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Rms(norm) => norm.forward(x),
            Self::Layer(norm) => norm.forward(x),
        }
    }
}
