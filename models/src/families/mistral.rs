//! Mistral (Jiang et al., "Mistral 7B", arXiv 2310.06825): `MistralForCausalLM`.

use super::Family;
use crate::config::{ConfigError, Defaults, Fields, read_common, sliding_window, windows};
use crate::decoder::DecoderConfig;

pub(super) const FAMILY: Family = Family {
    architecture: "MistralForCausalLM",
    model_type: "mistral",
    read,
};

/// A Llama whose layers have a sliding window in version 0.1 and none in later versions.
fn read(fields: Fields<'_>) -> Result<DecoderConfig, ConfigError> {
    let defaults = Defaults {
        num_key_value_heads: Some(8),
        max_position_embeddings: 131_072,
        ..Defaults::LLAMA
    };
    let common = read_common(fields, &defaults)?;
    let window = sliding_window(fields, Some(4096))?;
    Ok(DecoderConfig {
        windows: windows(fields, common.num_hidden_layers, window, |_| true)?,
        ..common
    })
}
