//! The MLP of a layer: [`Mlp`].

use burn::module::Module;
use burn::tensor::Tensor;
use sparq::LinearLayer;
use sparq::ops::{Norm, Projections, decode_linear};

use super::{DecoderConfig, MlpKeys};
use crate::checkpoint::CheckpointError;
use crate::config::HiddenAct;
use crate::weights::Weights;

/// `down(act(up(x)))`, or with a gate `down(act(gate(x)) * up(x))`.
#[derive(Module, Debug)]
pub(super) struct Mlp {
    gate: Option<LinearLayer>,
    up: LinearLayer,
    down: LinearLayer,
    #[module(skip)]
    act: HiddenAct,
}

impl Mlp {
    /// Builds the MLP of the layer `prefix`.
    pub(super) fn build(
        weights: &impl Weights,
        config: &DecoderConfig,
        prefix: &str,
    ) -> Result<Self, CheckpointError> {
        Self::build_with(
            weights,
            config,
            (config.keys.mlp, config.intermediate_size),
            prefix,
        )
    }

    /// Builds an MLP with these names and this width.
    pub(super) fn build_with(
        weights: &impl Weights,
        config: &DecoderConfig,
        (keys, inner): (MlpKeys, usize),
        prefix: &str,
    ) -> Result<Self, CheckpointError> {
        let hidden = config.hidden_size;
        let linear =
            |name, from, to| weights.linear(&format!("{prefix}.{name}"), from, to, config.mlp_bias);
        let (gate, up, down) = match keys {
            MlpKeys::Gated { gate, up, down } => (Some(linear(gate, hidden, inner)?), up, down),
            MlpKeys::Plain { up, down } => (None, up, down),
        };
        Ok(Self {
            gate,
            up: linear(up, hidden, inner)?,
            down: linear(down, inner, hidden)?,
            act: config.hidden_act,
        })
    }

    /// Maps x [B, T, D] to residual + mlp(norm(x)), [B, T, D].
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        norm: Norm,
        residual: Option<Tensor<3>>,
    ) -> Tensor<3> {
        let [batch, len, width] = x.dims();
        let matrix = |x: Tensor<3>| x.reshape([batch * len, width]);
        let inner = self.inner(matrix(x), norm);
        self.outer(inner, residual.map(matrix))
            .reshape([batch, len, width])
    }

    /// Maps x [N, D] to residual + weight * mlp(x), [N, D], with one weight per row, [N, 1].
    pub(super) fn weighted(
        &self,
        x: Tensor<2>,
        weight: Tensor<2>,
        residual: Option<Tensor<2>>,
    ) -> Tensor<2> {
        self.outer(self.inner(x, Norm::None) * weight, residual)
    }

    /// The layers before the last one.
    fn inner(&self, x: Tensor<2>, norm: Norm) -> Tensor<2> {
        let (up, activation) = ((&self.up).into(), self.act);
        let inner = match &self.gate {
            Some(gate) => Projections::Gated {
                gate: gate.into(),
                up,
                activation,
            },
            None => Projections::Activated { up, activation },
        };
        decode_linear(x, norm, inner, None)
    }

    /// The last layer, with the residual stream.
    fn outer(&self, inner: Tensor<2>, residual: Option<Tensor<2>>) -> Tensor<2> {
        let down = Projections::One((&self.down).into());
        decode_linear(inner, Norm::None, down, residual)
    }
}
