//! Qwen 3 with experts (Yang et al., "Qwen3 Technical Report", arXiv 2505.09388):
//! `Qwen3MoeForCausalLM`.

use super::{Family, mixtral::per_token, qwen2::DEFAULTS, qwen3};
use crate::config::{ConfigError, Defaults, Fields, read_common, sliding_window, windows};
use crate::decoder::{DecoderConfig, ExpertKeys, Experts, Keys, MlpKeys};

pub(super) const FAMILY: Family = Family {
    architecture: "Qwen3MoeForCausalLM",
    model_type: "qwen3_moe",
    read,
};

/// A Qwen 3 with experts in some or all layers.
fn read(fields: Fields<'_>) -> Result<DecoderConfig, ConfigError> {
    let defaults = Defaults {
        num_key_value_heads: Some(4),
        ..DEFAULTS
    };
    let common = read_common(fields, &defaults)?;
    let layers = common.num_hidden_layers;
    let window = match fields.switch("use_sliding_window")?.unwrap_or(false) {
        true => sliding_window(fields, Some(4096))?,
        false => None,
    };
    let attention_bias = fields.switch("attention_bias")?.unwrap_or(false);
    Ok(DecoderConfig {
        windows: windows(fields, layers, window, |_| true)?,
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        experts: experts(fields, layers)?,
        keys: Keys {
            experts: Some(ExpertKeys {
                router: "mlp.gate",
                list: "mlp.experts",
                mlp: MlpKeys::Gated {
                    gate: "gate_proj",
                    up: "up_proj",
                    down: "down_proj",
                },
            }),
            ..qwen3::KEYS
        },
        ..common
    })
}

/// Reads the experts. `mlp_only_layers` and the layers between two steps have none.
fn experts(fields: Fields<'_>, layers: usize) -> Result<Option<Experts>, ConfigError> {
    let step = fields.size("decoder_sparse_step")?.unwrap_or(1);
    let without = fields.counts("mlp_only_layers")?.unwrap_or_default();
    // transformers 5 writes the name of Mixtral.
    let count = match fields.count("num_experts")? {
        Some(count) => count,
        None => fields.count("num_local_experts")?.unwrap_or(128),
    };
    if count == 0 {
        return Ok(None);
    }
    let has = |layer: usize| (layer + 1).is_multiple_of(step) && !without.contains(&layer);
    Ok(Some(Experts {
        count,
        per_token: per_token(fields, 8, count)?,
        intermediate_size: fields.size("moe_intermediate_size")?.unwrap_or(768),
        renormalize: fields.switch("norm_topk_prob")?.unwrap_or(false),
        layers: (0..layers).map(has).collect(),
    }))
}
