//! The parameters of rotary embeddings, in the older and the newer form of `config.json`.

use sparq::RotaryScaling;

use super::{ConfigError, fields::Fields};

/// The base of a checkpoint that names none, as the first Llamas did.
const DEFAULT_THETA: f64 = 10_000.0;

/// Reads `rope_theta` and the scaling of the frequencies.
///
/// The older form has `rope_theta` at the top level and `rope_scaling` with a `type` or `rope_type`; the newer has both in
/// `rope_parameters`. Where a file has both, transformers goes by `rope_scaling`, and so does this.
pub(super) fn read_rope(config: Fields<'_>) -> Result<(f64, RotaryScaling), ConfigError> {
    let older = config.object("rope_scaling")?;
    let newer = config.object("rope_parameters")?;
    let mut theta = None;
    for fields in [older, newer, Some(config)].into_iter().flatten() {
        // Rotating a part of each head is another model with the same weights.
        if fields
            .positive("partial_rotary_factor")?
            .is_some_and(|factor| factor != 1.0)
        {
            return Err(fields.unexpected("partial_rotary_factor", "1.0"));
        }
        theta = match theta {
            Some(theta) => Some(theta),
            None => fields.positive("rope_theta")?,
        };
    }
    let scaling = older.or(newer).map_or(Ok(RotaryScaling::None), scaling)?;
    Ok((theta.unwrap_or(DEFAULT_THETA), scaling))
}

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
            // The band between the two is divided by its width.
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
