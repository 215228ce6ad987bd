//! The norms of the residual stream: [`Norm`].

use burn::module::{Module, Param};
use burn::nn::RmsNorm;
use burn::tensor::Tensor;
use sparq::ops;

use super::NormKind;
use crate::checkpoint::CheckpointError;
use crate::weights::Weights;

/// A norm over the last dimension.
#[derive(Module, Debug)]
pub(super) enum Norm {
    Rms(RmsNorm),
    Layer(LayerNorm),
}

/// The parameters of a layer norm. burn's module of this name does not tell its epsilon.
#[derive(Module, Debug)]
pub(super) struct LayerNorm {
    gamma: Param<Tensor<1>>,
    beta: Option<Param<Tensor<1>>>,
    epsilon: f64,
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
            NormKind::Rms { epsilon } | NormKind::RmsPlusOne { epsilon } => {
                Self::Rms(weights.rms_norm(name, dim, epsilon, kind.offset())?)
            }
            NormKind::Layer { epsilon } => {
                let norm = weights.layer_norm(name, dim, epsilon)?;
                Self::Layer(LayerNorm {
                    gamma: norm.gamma,
                    beta: norm.beta,
                    epsilon,
                })
            }
        })
    }

    /// Returns the scale of each feature.
    pub(super) fn weight(&self) -> Tensor<1> {
        match self {
            Self::Rms(norm) => norm.gamma.val(),
            Self::Layer(norm) => norm.gamma.val(),
        }
    }
}

impl From<&Norm> for ops::Norm {
    fn from(norm: &Norm) -> Self {
        match norm {
            Norm::Rms(norm) => norm.into(),
            Norm::Layer(norm) => {
                let weight = norm.gamma.val();
                let bias = norm.beta.as_ref().map(|beta| beta.val());
                Self::Layer {
                    bias: bias.unwrap_or_else(|| weight.zeros_like()),
                    weight,
                    epsilon: norm.epsilon,
                }
            }
        }
    }
}
