//! Gemma (Gemma Team, "Gemma: Open Models Based on Gemini Research and Technology", arXiv 2403.08295): `GemmaForCausalLM`.

use super::Family;
use crate::config::{ConfigError, Defaults, Fields, HiddenAct, hidden_act, read_base};
use crate::decoder::{DecoderConfig, NormKind};

pub(super) const FAMILY: Family = Family {
    architecture: "GemmaForCausalLM",
    model_type: "gemma",
    read,
};

/// A Llama with norms by 1 + weight, embeddings scaled by the root of their width, GeGLU, heads of 256 components, and the embedding table for its head.
fn read(fields: Fields<'_>) -> Result<DecoderConfig, ConfigError> {
    if fields.switch("use_bidirectional_attention")? == Some(true) {
        return Err(fields.unexpected("use_bidirectional_attention", "false"));
    }
    let defaults = Defaults {
        head_dim: Some(256),
        max_position_embeddings: 8192,
        hidden_act: HiddenAct::GeluTanh,
        tie_word_embeddings: true,
        ..Defaults::LLAMA
    };
    let base = read_base(fields, &defaults)?;
    let attention_bias = fields.switch("attention_bias")?.unwrap_or(false);
    Ok(DecoderConfig {
        norm: NormKind::RmsPlusOne {
            epsilon: base.norm.epsilon(),
        },
        // The first files call the tanh approximation "gelu" in `hidden_act`, which transformers does not go by.
        hidden_act: hidden_act(fields, "hidden_activation", HiddenAct::GeluTanh)?,
        embed_scale: Some((base.hidden_size as f64).sqrt()),
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        ..base
    })
}
