//! Phi 3 (Abdin et al., "Phi-3 Technical Report", arXiv 2404.14219) and Phi 4 (arXiv 2412.08905):
//! `Phi3ForCausalLM`.

use super::Family;
use crate::config::{
    ConfigError, Defaults, Fields, PartialRope, read_common, sliding_window, windows,
};
use crate::decoder::{DecoderConfig, Keys};

pub(super) const FAMILY: Family = Family {
    architecture: "Phi3ForCausalLM",
    model_type: "phi3",
    read,
};

/// A Llama whose checkpoints store the projections of attention and of the MLP fused. RoPE rotates
/// a part of each head and has divisors of its own for long sequences.
fn read(fields: Fields<'_>) -> Result<DecoderConfig, ConfigError> {
    let defaults = Defaults {
        max_position_embeddings: 4096,
        rms_norm_eps: 1e-5,
        rope: Some(PartialRope {
            theta: "rope_theta",
            factor: "partial_rotary_factor",
            default: 1.0,
        }),
        // Names of LongRoPE in the first files.
        rope_types: &[("su", "longrope"), ("yarn", "longrope")],
        original_max_position_embeddings: Some(4096),
        ..Defaults::LLAMA
    };
    let common = read_common(fields, &defaults)?;
    let window = sliding_window(fields, None)?;
    Ok(DecoderConfig {
        windows: windows(fields, common.num_hidden_layers, window, |_| true)?,
        keys: Keys {
            fused_qkv: Some("self_attn.qkv_proj"),
            fused_gate_up: Some("mlp.gate_up_proj"),
            ..Keys::LLAMA
        },
        ..common
    })
}
