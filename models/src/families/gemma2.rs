//! Gemma 2 (Gemma Team, "Gemma 2: Improving Open Language Models at a Practical Size",
//! arXiv 2408.00118): `Gemma2ForCausalLM`.

use super::{Family, gemma};
use crate::config::{ConfigError, Defaults, Fields, bound, sliding_window, windows};
use crate::decoder::{DecoderConfig, Keys};

pub(super) const FAMILY: Family = Family {
    architecture: "Gemma2ForCausalLM",
    model_type: "gemma2",
    read,
};

/// The names of a Gemma with a norm before and after attention, and before and after the MLP.
pub(super) const KEYS: Keys = Keys {
    attention_output_norm: Some("post_attention_layernorm"),
    mlp_input_norm: Some("pre_feedforward_layernorm"),
    mlp_output_norm: Some("post_feedforward_layernorm"),
    ..Keys::LLAMA
};

/// The softcaps of a file without the entries.
const ATTENTION_SOFTCAP: Option<f64> = Some(50.0);
const LOGITS_SOFTCAP: Option<f64> = Some(30.0);

/// A Gemma with four norms in a layer, bounded logits, and a sliding window in every other layer.
fn read(fields: Fields<'_>) -> Result<DecoderConfig, ConfigError> {
    let defaults = Defaults {
        num_key_value_heads: Some(4),
        ..gemma::DEFAULTS
    };
    let common = gemma::read_gemma(fields, &defaults)?;
    let (layers, window) = (
        common.num_hidden_layers,
        sliding_window(fields, Some(4096))?,
    );
    Ok(DecoderConfig {
        query_scale: query_scale(fields, common.head_dim)?,
        attention_softcap: bound(fields, "attn_logit_softcapping", ATTENTION_SOFTCAP)?,
        logits_softcap: bound(fields, "final_logit_softcapping", LOGITS_SOFTCAP)?,
        windows: windows(fields, layers, window, |layer| layer % 2 == 0)?,
        keys: KEYS,
        ..common
    })
}

/// Returns the factor of the queries, for logits that are divided by sqrt(query_pre_attn_scalar).
pub(super) fn query_scale(fields: Fields<'_>, head_dim: usize) -> Result<Option<f64>, ConfigError> {
    let divisor = fields.positive("query_pre_attn_scalar")?.unwrap_or(256.0);
    let scale = (head_dim as f64 / divisor).sqrt();
    Ok((scale != 1.0).then_some(scale))
}
