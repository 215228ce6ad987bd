//! Llama (Touvron et al., "LLaMA", arXiv 2302.13971) up to Llama 3.x: `LlamaForCausalLM`.

use super::Family;
use crate::config::{ConfigError, Defaults, Fields, read_common};
use crate::decoder::DecoderConfig;

pub(super) const FAMILY: Family = Family {
    architecture: "LlamaForCausalLM",
    model_type: "llama",
    read,
};

/// Pre-norm layers with RMS norms, RoPE, grouped-query attention and a gated MLP.
fn read(fields: Fields<'_>) -> Result<DecoderConfig, ConfigError> {
    let attention_bias = fields.switch("attention_bias")?.unwrap_or(false);
    Ok(DecoderConfig {
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        mlp_bias: fields.switch("mlp_bias")?.unwrap_or(false),
        ..read_common(fields, &Defaults::LLAMA)?
    })
}
