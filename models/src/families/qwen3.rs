//! Qwen 3 (Yang et al., "Qwen3 Technical Report", arXiv 2505.09388): `Qwen3ForCausalLM`.

use super::Family;
use super::qwen2::{DEFAULTS, read_qwen};
use crate::config::{ConfigError, Defaults, Fields};
use crate::decoder::{DecoderConfig, Keys};

pub(super) const FAMILY: Family = Family {
    architecture: "Qwen3ForCausalLM",
    model_type: "qwen3",
    read,
};

/// The names of a Llama with norms of each head's queries and keys.
pub(super) const KEYS: Keys = Keys {
    qk_norm: Some(["self_attn.q_norm", "self_attn.k_norm"]),
    ..Keys::LLAMA
};

/// A Qwen 2 that normalises each head of queries and keys instead of adding biases.
fn read(fields: Fields<'_>) -> Result<DecoderConfig, ConfigError> {
    let defaults = Defaults {
        head_dim: Some(128),
        ..DEFAULTS
    };
    let attention_bias = fields.switch("attention_bias")?.unwrap_or(false);
    Ok(DecoderConfig {
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        keys: KEYS,
        ..read_qwen(fields, &defaults)?
    })
}
