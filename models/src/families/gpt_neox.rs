//! GPT-NeoX (Black et al., "GPT-NeoX-20B", arXiv 2204.06745) and Pythia (Biderman et al.,
//! arXiv 2304.01373): `GPTNeoXForCausalLM`.

use super::Family;
use crate::config::{ConfigError, Defaults, Fields, HiddenAct, PartialRope, read_common};
use crate::decoder::{DecoderConfig, Keys, MlpKeys, NormKind, QkvKeys, Residual};

pub(super) const FAMILY: Family = Family {
    architecture: "GPTNeoXForCausalLM",
    model_type: "gpt_neox",
    read,
};

const KEYS: Keys = Keys {
    embed: "gpt_neox.embed_in",
    layers: "gpt_neox.layers",
    norm: "gpt_neox.final_layer_norm",
    head: "embed_out",
    qkv: QkvKeys::Interleaved("attention.query_key_value"),
    o: "attention.dense",
    mlp: MlpKeys::Plain {
        up: "mlp.dense_h_to_4h",
        down: "mlp.dense_4h_to_h",
    },
    // The causal mask and the value of masked logits.
    constants: &["attention.bias", "attention.masked_bias"],
    ..Keys::LLAMA
};

/// Multi-head attention with partial RoPE, parallel to the MLP or before it, with layer norms and
/// biases.
fn read(fields: Fields<'_>) -> Result<DecoderConfig, ConfigError> {
    let defaults = Defaults {
        hidden_act: HiddenAct::Gelu,
        rope: Some(PartialRope {
            theta: "rotary_emb_base",
            factor: "rotary_pct",
            default: 0.25,
        }),
        ..Defaults::LLAMA
    };
    let common = read_common(fields, &defaults)?;
    let attention_bias = fields.switch("attention_bias")?.unwrap_or(true);
    let parallel = fields.switch("use_parallel_residual")?.unwrap_or(true);
    Ok(DecoderConfig {
        num_key_value_heads: common.num_attention_heads,
        norm: NormKind::Layer {
            epsilon: fields.positive("layer_norm_eps")?.unwrap_or(1e-5),
        },
        residual: match parallel {
            true => Residual::Parallel,
            false => Residual::Serial,
        },
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        mlp_bias: true,
        keys: KEYS,
        ..common
    })
}
