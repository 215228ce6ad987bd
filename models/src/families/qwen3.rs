//! Qwen 3 (Yang et al., "Qwen3 Technical Report", arXiv 2505.09388): `Qwen3ForCausalLM`.

use super::{Family, qwen2::read_qwen};
use crate::config::{ConfigError, Fields};
use crate::decoder::{DecoderConfig, Keys};

pub(super) const FAMILY: Family = Family {
    architecture: "Qwen3ForCausalLM",
    model_type: "qwen3",
    read,
};

/// A Qwen 2 that normalises each head of queries and keys instead of adding biases.
fn read(fields: Fields<'_>) -> Result<DecoderConfig, ConfigError> {
    let attention_bias = fields.switch("attention_bias")?.unwrap_or(false);
    Ok(DecoderConfig {
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        keys: Keys {
            qk_norm: Some(["self_attn.q_norm", "self_attn.k_norm"]),
            ..Keys::LLAMA
        },
        ..read_qwen(fields)?
    })
}
