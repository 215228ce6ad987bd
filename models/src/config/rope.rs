//! The RoPE parameters of `config.json`, in the older and the newer form.

use sparq::RotaryConfig;
use sparq::ops::RotaryScaling;

use super::{ConfigError, fields::Fields};

/// The base of a checkpoint that names none, like the first Llamas.
const DEFAULT_THETA: f64 = 10_000.0;

/// The entries of a family whose RoPE rotates a part of each head.
pub(crate) struct PartialRope {
    /// The name of `rope_theta` in its first files.
    pub theta: &'static str,
    /// The name of `partial_rotary_factor` in its first files.
    pub factor: &'static str,
    /// The part of a file that names none.
    pub default: f64,
}

/// Reads the RoPE parameters of heads of `head_dim` components. Without `partial`, RoPE rotates
/// whole heads.
///
/// The older form has `rope_theta` at the top level and `rope_scaling` with a `type` or
/// `rope_type`. The newer form has both in `rope_parameters`. In a file with both, `rope_scaling`
/// takes precedence, as in transformers.
pub(super) fn read_rope(
    config: Fields<'_>,
    head_dim: usize,
    partial: Option<&PartialRope>,
) -> Result<RotaryConfig, ConfigError> {
    let older = config.object("rope_scaling")?;
    let newer = config.object("rope_parameters")?;
    let (mut theta, mut dim) = (None, None);
    for fields in [older, newer, Some(config)].into_iter().flatten() {
        let part = rotary_dim(fields, "partial_rotary_factor", head_dim, partial)?;
        dim = dim.or(part);
        // Only the first one found is checked. The others may be leftovers.
        theta = match theta {
            Some(theta) => Some(theta),
            None => fields.positive("rope_theta")?,
        };
    }
    if let Some(family) = partial {
        theta = theta.or(config.positive(family.theta)?);
        let part = rotary_dim(config, family.factor, head_dim, partial)?;
        dim = dim.or(part).or(Some(part_of(head_dim, family.default)));
    }
    let scaling = older.or(newer).map_or(Ok(RotaryScaling::None), scaling)?;
    Ok(RotaryConfig::new(head_dim)
        .with_theta(theta.unwrap_or(DEFAULT_THETA))
        .with_scaling(scaling)
        .with_rotary_dim(dim.filter(|&dim| dim != head_dim)))
}

/// Reads the number of rotated components from the entry `key`.
fn rotary_dim(
    fields: Fields<'_>,
    key: &str,
    head_dim: usize,
    partial: Option<&PartialRope>,
) -> Result<Option<usize>, ConfigError> {
    let Some(factor) = fields.positive(key)? else {
        return Ok(None);
    };
    // A family without partial RoPE would compute another model with the same weights.
    if partial.is_none() && factor != 1.0 {
        return Err(fields.unexpected(key, "1.0"));
    }
    match part_of(head_dim, factor) {
        dim if factor <= 1.0 => Ok(Some(dim)),
        _ => Err(fields.unexpected(key, "at most 1.0")),
    }
}

/// Returns `factor` of `head_dim`, rounded down as in transformers.
fn part_of(head_dim: usize, factor: f64) -> usize {
    (head_dim as f64 * factor) as usize
}

/// Reads the scaling of the frequencies for longer contexts.
fn scaling(fields: Fields<'_>) -> Result<RotaryScaling, ConfigError> {
    let key = match fields.get("rope_type") {
        Some(_) => "rope_type",
        None => "type",
    };
    match fields.string(key)? {
        None | Some("default") => Ok(RotaryScaling::None),
        Some("linear") => Ok(RotaryScaling::Linear {
            factor: fields.required_positive("factor")?,
        }),
        Some("llama3") => {
            let low_freq_factor = fields.required_positive("low_freq_factor")?;
            let high_freq_factor = fields.required_positive("high_freq_factor")?;
            // The interpolation between the two divides by their difference.
            if high_freq_factor <= low_freq_factor {
                let expected = format!("more than low_freq_factor, {low_freq_factor}");
                return Err(fields.unexpected("high_freq_factor", expected));
            }
            Ok(RotaryScaling::Llama3 {
                factor: fields.required_positive("factor")?,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: fields
                    .required_size("original_max_position_embeddings")?,
            })
        }
        Some(_) => Err(fields.unexpected(key, "default, linear or llama3")),
    }
}
