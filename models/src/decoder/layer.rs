//! One layer of a decoder: [`Layer`].

use burn::module::Module;
use burn::tensor::Tensor;
use sparq::ops::{self, Rotary};
use sparq::{LinearLayer, SparqAttention, SparqError};

use super::branch::Branch;
use super::experts::ExpertsMlp;
use super::mlp::Mlp;
use super::norm::Norm;
use super::pass::LayerPass;
use super::{DecoderConfig, QkNorm, QkvKeys, Residual};
use crate::checkpoint::CheckpointError;
use crate::linear::select_outputs;
use crate::weights::Weights;

/// A layer of attention and an MLP or experts.
#[derive(Module, Debug)]
pub(super) struct Layer {
    input_norm: Option<Norm>,
    pub(super) attention: SparqAttention,
    attention_branch: Branch,
    mlp_input_norm: Option<Norm>,
    mlp: FeedForward,
    mlp_branch: Branch,
    #[module(skip)]
    residual: Residual,
}

/// The second half of a layer.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "one per layer")]
enum FeedForward {
    One(Mlp),
    Experts(ExpertsMlp),
}

impl Layer {
    /// Builds layer `index`.
    pub(super) fn build(
        weights: &impl Weights,
        config: &DecoderConfig,
        index: usize,
        rotary: Option<&Rotary>,
    ) -> Result<Self, CheckpointError> {
        let (keys, prefix) = (&config.keys, format!("{}.{index}", config.keys.layers));
        let (hidden, d) = (config.hidden_size, config.head_dim);
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let norm = |name: Option<&str>| {
            let build = |name: &str| {
                let name = format!("{prefix}.{name}");
                Norm::build(weights, config.norm, &name, hidden)
            };
            name.map(build).transpose()
        };
        let branch = |name| -> Result<_, CheckpointError> {
            Ok(Branch::new(norm(name)?, config.residual_scale))
        };
        let head_norm = |index: usize, heads: usize| {
            let width = match config.qk_norm {
                QkNorm::Heads => d,
                QkNorm::Projections => heads * d,
            };
            let norm = |names: [&str; 2]| {
                let name = format!("{prefix}.{}", names[index]);
                weights.rms_norm(&name, width, config.norm.epsilon(), config.norm.offset())
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
                o_proj: weights.linear(&o, heads * d, hidden, config.o_bias)?,
                q_norm: head_norm(0, heads)?,
                k_norm: head_norm(1, kv_heads)?,
                rotary: rotary.cloned(),
                n_heads: heads,
                n_kv_heads: kv_heads,
                head_dim: d,
                window: config.window(index),
                softcap: config.attention_softcap,
                query_scale: config.query_scale,
            },
            attention_branch: branch(keys.attention_output_norm)?,
            mlp_input_norm: norm(keys.mlp_input_norm)?,
            mlp: match keys.experts.as_ref().zip(config.experts_of(index)) {
                Some(experts) => {
                    FeedForward::Experts(ExpertsMlp::build(weights, config, experts, &prefix)?)
                }
                None => FeedForward::One(Mlp::build(weights, config, &prefix)?),
            },
            mlp_branch: branch(keys.mlp_output_norm)?,
            residual: config.residual,
        })
    }

    /// Returns whether a decode step runs on the device alone.
    pub(super) fn is_capturable(&self) -> bool {
        matches!(self.mlp, FeedForward::One(_))
    }

    /// Maps x [B, T, D] to [B, T, D].
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        pass: LayerPass<'_, '_>,
    ) -> Result<Tensor<3>, SparqError> {
        let attended = self.attend(x.clone(), pass)?;
        let input = match self.residual {
            Residual::Serial => attended.clone(),
            Residual::Parallel => x,
        };
        let norm = optional(&self.mlp_input_norm);
        let branch = &self.mlp_branch;
        let (residual, rest) = match branch.is_plain() {
            true => (Some(attended), None),
            false => (None, Some(attended)),
        };
        let y = match &self.mlp {
            FeedForward::One(mlp) => mlp.forward(input, norm, residual),
            FeedForward::Experts(experts) => experts.forward(input, norm, residual),
        };
        Ok(match rest {
            Some(attended) => branch.add(attended, y),
            None => y,
        })
    }

    /// Maps x [B, T, D] to x + attention(x).
    fn attend(&self, x: Tensor<3>, pass: LayerPass<'_, '_>) -> Result<Tensor<3>, SparqError> {
        let (attention, norm) = (&self.attention, optional(&self.input_norm));
        if self.attention_branch.is_plain() {
            return match pass {
                LayerPass::Prompt(cache) => attention.forward_residual(x, norm, Some(cache)),
                LayerPass::Step(cache, method) => attention.decode_residual(x, norm, cache, method),
                LayerPass::Each(rows) => attention.decode_each(x.clone(), norm, Some(x), rows),
            };
        }
        let y = match pass {
            LayerPass::Prompt(cache) => attention.forward_normed(x.clone(), norm, Some(cache))?,
            LayerPass::Step(cache, method) => {
                attention.decode_normed(x.clone(), norm, cache, method)?
            }
            LayerPass::Each(rows) => attention.decode_each(x.clone(), norm, None, rows)?,
        };
        Ok(self.attention_branch.add(x, y))
    }
}

/// Returns a norm that a layer may have.
fn optional(norm: &Option<Norm>) -> ops::Norm {
    norm.as_ref().map_or(ops::Norm::None, Into::into)
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
