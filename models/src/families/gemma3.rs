//! Gemma 3 (Gemma Team, "Gemma 3 Technical Report", arXiv 2503.19786), for text:
//! `Gemma3ForCausalLM`.

use sparq::RotaryConfig;

use super::{Family, gemma, gemma2};
use crate::config::{
    ConfigError, Defaults, Fields, RopeOf, bound, read_rope, sliding_window, windows,
};
use crate::decoder::{DecoderConfig, Keys};

pub(super) const FAMILY: Family = Family {
    architecture: "Gemma3ForCausalLM",
    model_type: "gemma3_text",
    read,
};

/// The bases of layers without and with a sliding window.
const THETA: f64 = 1_000_000.0;
const LOCAL_THETA: f64 = 10_000.0;

/// A Gemma 2 with norms of each head's queries and keys in place of softcaps. Five of six layers
/// have a sliding window and a RoPE of their own.
fn read(fields: Fields<'_>) -> Result<DecoderConfig, ConfigError> {
    let defaults = Defaults {
        num_key_value_heads: Some(4),
        max_position_embeddings: 131_072,
        ..gemma::DEFAULTS
    };
    let common = gemma::read_gemma(fields, &defaults)?;
    let head_dim = common.head_dim;
    let [rotary, local_rotary] = rotaries(fields, head_dim, &defaults)?;
    let (layers, window) = (
        common.num_hidden_layers,
        sliding_window(fields, Some(4096))?,
    );
    let pattern = fields.size("sliding_window_pattern")?.unwrap_or(6);
    let slides = |layer: usize| !(layer + 1).is_multiple_of(pattern);
    Ok(DecoderConfig {
        rotary,
        local_rotary: Some(local_rotary),
        query_scale: gemma2::query_scale(fields, head_dim)?,
        attention_softcap: bound(fields, "attn_logit_softcapping", None)?,
        logits_softcap: bound(fields, "final_logit_softcapping", None)?,
        windows: windows(fields, layers, window, slides)?,
        keys: Keys {
            qk_norm: Some(["self_attn.q_norm", "self_attn.k_norm"]),
            ..gemma2::KEYS
        },
        ..common
    })
}

/// Reads RoPE of the layers without and with a sliding window.
///
/// The older form has `rope_scaling` for the former and two bases at the top level. The newer form
/// has two objects in `rope_parameters`.
fn rotaries(
    fields: Fields<'_>,
    head_dim: usize,
    defaults: &Defaults,
) -> Result<[RotaryConfig; 2], ConfigError> {
    let of_layers = |key, path| match fields.object("rope_parameters")? {
        Some(parameters) => parameters.object_within(key, path),
        None => Ok(None),
    };
    let global = of_layers("full_attention", "rope_parameters.full_attention")?;
    let local = of_layers("sliding_attention", "rope_parameters.sliding_attention")?;
    let scaling = fields
        .object("rope_scaling")?
        .filter(|fields| !fields.is_empty());
    let theta = match global {
        Some(global) => global.positive("rope_theta")?,
        None => None,
    };
    let entries = [
        RopeOf {
            parameters: scaling.or(global),
            theta: "rope_theta",
            default_theta: theta.or(Some(THETA)),
        },
        RopeOf {
            parameters: local,
            theta: "rope_local_base_freq",
            default_theta: Some(LOCAL_THETA),
        },
    ];
    let [global, local] = entries.map(|entries| read_rope(fields, head_dim, &entries, defaults));
    Ok([global?, local?])
}
