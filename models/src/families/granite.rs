//! Granite 3 and later (Granite Team, IBM, 2024): `GraniteForCausalLM`.

use super::Family;
use crate::config::{ConfigError, Defaults, Fields, read_common};
use crate::decoder::DecoderConfig;

pub(super) const FAMILY: Family = Family {
    architecture: "GraniteForCausalLM",
    model_type: "granite",
    read,
};

/// A Llama with factors of embeddings, attention logits, residual branches and logits.
fn read(fields: Fields<'_>) -> Result<DecoderConfig, ConfigError> {
    let common = read_common(fields, &Defaults::LLAMA)?;
    let scale = |key| -> Result<f64, ConfigError> { Ok(fields.positive(key)?.unwrap_or(1.0)) };
    let other = |scale: f64| (scale != 1.0).then_some(scale);
    let attention_bias = fields.switch("attention_bias")?.unwrap_or(false);
    Ok(DecoderConfig {
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        mlp_bias: fields.switch("mlp_bias")?.unwrap_or(false),
        embed_scale: other(scale("embedding_multiplier")?),
        // In place of the division by sqrt(head_dim).
        query_scale: other(scale("attention_multiplier")? * (common.head_dim as f64).sqrt()),
        residual_scale: other(scale("residual_multiplier")?),
        logits_scale: other(1.0 / scale("logits_scaling")?),
        ..common
    })
}
