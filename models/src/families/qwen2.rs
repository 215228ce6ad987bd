//! Qwen 2 and 2.5 (Yang et al., "Qwen2 Technical Report", arXiv 2407.10671): `Qwen2ForCausalLM`.

use super::Family;
use crate::config::{ConfigError, Defaults, Fields, read_common, sliding_window, windows};
use crate::decoder::DecoderConfig;

pub(super) const FAMILY: Family = Family {
    architecture: "Qwen2ForCausalLM",
    model_type: "qwen2",
    read,
};

pub(super) const DEFAULTS: Defaults = Defaults {
    num_key_value_heads: Some(32),
    max_position_embeddings: 32_768,
    ..Defaults::LLAMA
};

/// A Llama with biases on queries, keys and values.
fn read(fields: Fields<'_>) -> Result<DecoderConfig, ConfigError> {
    Ok(DecoderConfig {
        qkv_bias: true,
        ..read_qwen(fields, &DEFAULTS)?
    })
}

/// Reads the entries that Qwen 2 and 3 share.
///
/// With `use_sliding_window`, the layers from `max_window_layers` on have a sliding window.
pub(super) fn read_qwen(
    fields: Fields<'_>,
    defaults: &Defaults,
) -> Result<DecoderConfig, ConfigError> {
    let common = read_common(fields, defaults)?;
    let window = match fields.switch("use_sliding_window")?.unwrap_or(false) {
        true => sliding_window(fields, Some(4096))?,
        false => None,
    };
    let full = fields.count("max_window_layers")?.unwrap_or(28);
    let layers = common.num_hidden_layers;
    Ok(DecoderConfig {
        windows: windows(fields, layers, window, |layer| layer >= full)?,
        ..common
    })
}
