//! OLMo 2 (Team OLMo, "2 OLMo 2 Furious", arXiv 2501.00656): `Olmo2ForCausalLM`.

use super::Family;
use crate::config::{ConfigError, Defaults, Fields, read_common};
use crate::decoder::{DecoderConfig, Keys, QkNorm};

pub(super) const FAMILY: Family = Family {
    architecture: "Olmo2ForCausalLM",
    model_type: "olmo2",
    read,
};

/// A Llama that normalises the outputs of attention and MLP in place of their inputs, and queries
/// and keys over all heads together.
fn read(fields: Fields<'_>) -> Result<DecoderConfig, ConfigError> {
    let defaults = Defaults {
        rms_norm_eps: 1e-5,
        ..Defaults::LLAMA
    };
    let attention_bias = fields.switch("attention_bias")?.unwrap_or(false);
    Ok(DecoderConfig {
        qk_norm: QkNorm::Projections,
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        keys: Keys {
            input_norm: None,
            attention_output_norm: Some("post_attention_layernorm"),
            mlp_input_norm: None,
            mlp_output_norm: Some("post_feedforward_layernorm"),
            qk_norm: Some(["self_attn.q_norm", "self_attn.k_norm"]),
            ..Keys::LLAMA
        },
        ..read_common(fields, &defaults)?
    })
}
