//! One layer of a decoder: [`Layer`].

use burn::module::Module;
use burn::tensor::Tensor;
use sparq::ops::Rotary;
use sparq::{KvCache, LinearLayer, Method, SparqAttention, SparqError};

use super::mlp::Mlp;
use super::norm::Norm;
use super::{DecoderConfig, QkvKeys, Residual};
use crate::checkpoint::CheckpointError;
use crate::linear::select_outputs;
use crate::weights::Weights;

/// A pre-norm layer of attention and an MLP.
#[derive(Module, Debug)]
pub(super) struct Layer {
    input_norm: Norm,
    pub(super) attention: SparqAttention,
    post_attention_norm: Norm,
    mlp: Mlp,
    #[module(skip)]
    residual: Residual,
}

impl Layer {
    /// Builds layer `index`.
    pub(super) fn build(
        weights: &impl Weights,
        config: &DecoderConfig,
        index: usize,
        rotary: &Rotary,
    ) -> Result<Self, CheckpointError> {
        let (keys, prefix) = (&config.keys, format!("{}.{index}", config.keys.layers));
        let (hidden, d) = (config.hidden_size, config.head_dim);
        let q = config.num_attention_heads * d;
        let norm = |name| {
            let name = format!("{prefix}.{name}");
            Norm::build(weights, config.norm, &name, hidden)
        };
        let head_norm = |index: usize| {
            let norm = |names: [&str; 2]| {
                let name = format!("{prefix}.{}", names[index]);
                weights.rms_norm(&name, d, config.norm.epsilon(), 0.0)
            };
            keys.qk_norm.map(norm).transpose()
        };
        let [q_proj, k_proj, v_proj] = projections(weights, config, &prefix)?;
        let o = format!("{prefix}.{}", keys.o);
        Ok(Self {
            input_norm: norm(keys.input_norm)?,
            attention: SparqAttention {
                q_proj,
                k_proj,
                v_proj,
                o_proj: weights.linear(&o, q, hidden, config.o_bias)?,
                q_norm: head_norm(0)?,
                k_norm: head_norm(1)?,
                rotary: Some(rotary.clone()),
                n_heads: config.num_attention_heads,
                n_kv_heads: config.num_key_value_heads,
                head_dim: d,
                window: config.window(index),
            },
            post_attention_norm: norm(keys.post_attention_norm)?,
            mlp: Mlp::build(weights, config, &prefix)?,
            residual: config.residual,
        })
    }

    /// Maps x [B, T, D] to [B, T, D]: a decode step with `method`, a prefill without.
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        cache: &mut KvCache,
        method: Option<&Method>,
    ) -> Result<Tensor<3>, SparqError> {
        let norm = (&self.input_norm).into();
        let attended = match method {
            None => self
                .attention
                .forward_residual(x.clone(), norm, Some(cache))?,
            Some(method) => self
                .attention
                .decode_residual(x.clone(), norm, cache, method)?,
        };
        let input = match self.residual {
            Residual::Serial => attended.clone(),
            Residual::Parallel => x,
        };
        let norm = (&self.post_attention_norm).into();
        Ok(self.mlp.forward(input, norm, attended))
    }
}

/// Builds the query, key and value projections of the layer `prefix`.
fn projections(
    weights: &impl Weights,
    config: &DecoderConfig,
    prefix: &str,
) -> Result<[LinearLayer; 3], CheckpointError> {
    let (hidden, heads) = (config.hidden_size, config.num_attention_heads);
    let d = config.head_dim;
    let (q, kv) = (heads * d, config.num_key_value_heads * d);
    let linear =
        |name, to| weights.linear(&format!("{prefix}.{name}"), hidden, to, config.qkv_bias);
    match config.keys.qkv {
        QkvKeys::Separate(names) => {
            let [q_name, k_name, v_name] = names;
            Ok([linear(q_name, q)?, linear(k_name, kv)?, linear(v_name, kv)?])
        }
        QkvKeys::Interleaved(name) => {
            // The outputs are [H, 3, d].
            let fused = linear(name, 3 * q)?;
            let part = |index| {
                let first = (0..heads).map(move |head| (head * 3 + index) * d);
                first.map(|first| first..first + d)
            };
            Ok([0, 1, 2].map(|index| select_outputs(&fused, part(index))))
        }
    }
}
