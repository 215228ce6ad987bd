//! The MLP of a layer: [`Mlp`].

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::Tensor;

use super::{DecoderConfig, MlpKeys};
use crate::checkpoint::CheckpointError;
use crate::config::HiddenAct;
use crate::weights::Weights;

/// `down(act(up(x)))`, or with a gate `down(act(gate(x)) * up(x))`.
#[derive(Module, Debug)]
pub(super) struct Mlp {
    gate: Option<Linear>,
    up: Linear,
    down: Linear,
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

    /// Maps x [B, T, D] to [B, T, D].
    pub(super) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let inner = match &self.gate {
            Some(gate) => self.act.forward(gate.forward(x.clone())) * self.up.forward(x),
            None => self.act.forward(self.up.forward(x)),
        };
        self.down.forward(inner)
    }
}
