//! Mixtral (Jiang et al., "Mixtral of Experts", arXiv 2401.04088): `MixtralForCausalLM`.

use super::Family;
use crate::config::{ConfigError, Defaults, Fields, read_common, sliding_window, windows};
use crate::decoder::{DecoderConfig, ExpertKeys, Experts, Keys, MlpKeys};

pub(super) const FAMILY: Family = Family {
    architecture: "MixtralForCausalLM",
    model_type: "mixtral",
    read,
};

/// A Mistral with experts in every layer.
fn read(fields: Fields<'_>) -> Result<DecoderConfig, ConfigError> {
    let defaults = Defaults {
        num_key_value_heads: Some(8),
        max_position_embeddings: 131_072,
        rms_norm_eps: 1e-5,
        rope_theta: 1_000_000.0,
        ..Defaults::LLAMA
    };
    let common = read_common(fields, &defaults)?;
    let layers = common.num_hidden_layers;
    let window = sliding_window(fields, None)?;
    let count = fields.size("num_local_experts")?.unwrap_or(8);
    Ok(DecoderConfig {
        windows: windows(fields, layers, window, |_| true)?,
        experts: Some(Experts {
            count,
            per_token: per_token(fields, 2, count)?,
            intermediate_size: common.intermediate_size,
            renormalize: true,
            layers: vec![true; layers],
        }),
        keys: Keys {
            experts: Some(ExpertKeys {
                router: "block_sparse_moe.gate",
                list: "block_sparse_moe.experts",
                mlp: MlpKeys::Gated {
                    gate: "w1",
                    up: "w3",
                    down: "w2",
                },
            }),
            ..Keys::LLAMA
        },
        ..common
    })
}

/// Reads the number of experts that a position goes through, of `count`.
pub(super) fn per_token(
    fields: Fields<'_>,
    default: usize,
    count: usize,
) -> Result<usize, ConfigError> {
    const KEY: &str = "num_experts_per_tok";
    match fields.size(KEY)?.unwrap_or(default) {
        chosen if chosen <= count => Ok(chosen),
        chosen => {
            let expected = format!("at most the {count} experts");
            Err(fields.error(KEY, expected, chosen.to_string()))
        }
    }
}
