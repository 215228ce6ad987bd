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
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let linear =
            |name, from, to| weights.linear(&format!("{prefix}.{name}"), from, to, config.mlp_bias);
        let (gate, up, down) = match config.keys.mlp {
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
    pub(super) fn forward(&self, x: Tensor<3>, norm: Norm, residual: Tensor<3>) -> Tensor<3> {
        let [batch, len, width] = x.dims();
        let matrix = |x: Tensor<3>| x.reshape([batch * len, width]);
        let (up, activation) = ((&self.up).into(), self.act);
        let inner = match &self.gate {
            Some(gate) => Projections::Gated {
                gate: gate.into(),
                up,
                activation,
            },
            None => Projections::Activated { up, activation },
        };
        let inner = decode_linear(matrix(x), norm, inner, None);
        let down = Projections::One((&self.down).into());
        let y = decode_linear(inner, Norm::None, down, Some(matrix(residual)));
        y.reshape([batch, len, width])
    }
}
