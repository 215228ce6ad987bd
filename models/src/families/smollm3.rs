//! SmolLM3 (Bakouch et al., Hugging Face, 2025): `SmolLM3ForCausalLM`.

use super::Family;
use crate::config::{ConfigError, Defaults, Fields, read_common, sliding_window, windows};
use crate::decoder::DecoderConfig;

pub(super) const FAMILY: Family = Family {
    architecture: "SmolLM3ForCausalLM",
    model_type: "smollm3",
    read,
};

/// A Llama without RoPE in every fourth layer (Yang et al., "Rope to Nope and Back Again",
/// arXiv 2501.18795).
fn read(fields: Fields<'_>) -> Result<DecoderConfig, ConfigError> {
    let defaults = Defaults {
        num_key_value_heads: Some(4),
        max_position_embeddings: 32_768,
        tie_word_embeddings: true,
        rope_theta: 2_000_000.0,
        ..Defaults::LLAMA
    };
    let common = read_common(fields, &defaults)?;
    let layers = common.num_hidden_layers;
    let rope_layers = rope_layers(fields, layers)?;
    let window = match fields.switch("use_sliding_window")?.unwrap_or(false) {
        true => sliding_window(fields, None)?,
        false => None,
    };
    let attention_bias = fields.switch("attention_bias")?.unwrap_or(false);
    Ok(DecoderConfig {
        windows: windows(fields, layers, window, |layer| !rope_layers[layer])?,
        rope_layers,
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        mlp_bias: fields.switch("mlp_bias")?.unwrap_or(false),
        ..common
    })
}

/// Reads which layers have RoPE. The entry `no_rope_layers` has 1 for those that do.
fn rope_layers(fields: Fields<'_>, layers: usize) -> Result<Vec<bool>, ConfigError> {
    const KEY: &str = "no_rope_layers";
    match fields.counts(KEY)? {
        Some(list) if list.len() == layers => Ok(list.iter().map(|&rope| rope != 0).collect()),
        Some(list) => {
            let found = format!("a list of {}", list.len());
            Err(fields.error(KEY, format!("a list of {layers}"), found))
        }
        None => {
            let interval = fields.size("no_rope_layer_interval")?.unwrap_or(4);
            let has_rope = |layer: usize| !(layer + 1).is_multiple_of(interval);
            Ok((0..layers).map(has_rope).collect())
        }
    }
}
