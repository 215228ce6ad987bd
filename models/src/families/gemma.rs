//! Gemma (Gemma Team, "Gemma: Open Models Based on Gemini Research and Technology",
//! arXiv 2403.08295): `GemmaForCausalLM`.

use super::Family;
use crate::config::{ConfigError, Defaults, Fields, HiddenAct, hidden_act, read_common};
use crate::decoder::{DecoderConfig, NormKind};

pub(super) const FAMILY: Family = Family {
    architecture: "GemmaForCausalLM",
    model_type: "gemma",
    read,
};

pub(super) const DEFAULTS: Defaults = Defaults {
    head_dim: Some(256),
    num_key_value_heads: Some(16),
    max_position_embeddings: 8192,
    hidden_act: HiddenAct::GeluTanh,
    tie_word_embeddings: true,
    ..Defaults::LLAMA
};

/// A Llama with norms that scale by 1 + weight, embeddings scaled by sqrt(hidden size), GeGLU,
/// heads of 256 components and tied embeddings.
fn read(fields: Fields<'_>) -> Result<DecoderConfig, ConfigError> {
    read_gemma(fields, &DEFAULTS)
}

/// Reads the entries that all Gemmas share.
pub(super) fn read_gemma(
    fields: Fields<'_>,
    defaults: &Defaults,
) -> Result<DecoderConfig, ConfigError> {
    if fields.switch("use_bidirectional_attention")? == Some(true) {
        return Err(fields.unexpected("use_bidirectional_attention", "false"));
    }
    let common = read_common(fields, defaults)?;
    let attention_bias = fields.switch("attention_bias")?.unwrap_or(false);
    let epsilon = common.norm.epsilon();
    Ok(DecoderConfig {
        // GGUF files hold the sum.
        norm: match fields.switch("norm_adds_one")?.unwrap_or(true) {
            true => NormKind::RmsPlusOne { epsilon },
            false => NormKind::Rms { epsilon },
        },
        // The first checkpoints write "gelu" in `hidden_act` and mean its tanh approximation.
        // transformers reads `hidden_activation` instead.
        hidden_act: hidden_act(fields, "hidden_activation", HiddenAct::GeluTanh)?,
        embed_scale: Some((common.hidden_size as f64).sqrt()),
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        ..common
    })
}
