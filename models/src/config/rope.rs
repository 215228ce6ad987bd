//! The RoPE parameters of `config.json`, in the older and the newer form.

use sparq::RotaryConfig;
use sparq::ops::RotaryScaling;

use super::{ConfigError, Defaults, fields::Fields};

/// The entries of a family whose RoPE rotates a part of each head.
pub(crate) struct PartialRope {
    /// The name of `rope_theta` in its first files.
    pub theta: &'static str,
    /// The name of `partial_rotary_factor` in its first files.
    pub factor: &'static str,
    /// The part of a file that names none.
    pub default: f64,
}

/// The entries about one RoPE.
pub(crate) struct RopeOf<'a> {
    /// The object with its type and settings.
    pub parameters: Option<Fields<'a>>,
    /// The name of its base at the top level.
    pub theta: &'static str,
    /// The base of a file that names none, if it is not the family's.
    pub default_theta: Option<f64>,
}

impl<'a> RopeOf<'a> {
    /// Returns the entries about the RoPE of all layers.
    ///
    /// The older form has `rope_theta` at the top level and `rope_scaling` with a `type` or
    /// `rope_type`. The newer form has both in `rope_parameters`. In a file with both,
    /// `rope_scaling` takes the place of the whole `rope_parameters`, as in transformers.
    pub(crate) fn model(config: Fields<'a>) -> Result<Self, ConfigError> {
        let given = |key| -> Result<_, ConfigError> {
            Ok(config.object(key)?.filter(|fields| !fields.is_empty()))
        };
        let (older, newer) = (given("rope_scaling")?, given("rope_parameters")?);
        Ok(Self {
            parameters: older.or(newer),
            theta: "rope_theta",
            default_theta: None,
        })
    }
}

/// Reads one RoPE for heads of `head_dim` components.
pub(crate) fn read_rope(
    config: Fields<'_>,
    head_dim: usize,
    entries: &RopeOf<'_>,
    defaults: &Defaults,
) -> Result<RotaryConfig, ConfigError> {
    let partial = defaults.rope.as_ref();
    let parameters = entries.parameters;
    let mut dim = None;
    for fields in parameters.into_iter().chain([config]) {
        let part = rotary_dim(fields, "partial_rotary_factor", head_dim, partial)?;
        dim = dim.or(part);
    }
    // Only the first one found is checked. The others may be leftovers.
    let mut theta = match parameters {
        Some(parameters) => parameters.positive("rope_theta")?,
        None => None,
    };
    if theta.is_none() {
        theta = config.positive(entries.theta)?;
    }
    if let Some(family) = partial {
        theta = theta.or(config.positive(family.theta)?);
        let part = rotary_dim(config, family.factor, head_dim, partial)?;
        dim = dim.or(part).or(Some(part_of(head_dim, family.default)));
    }
    let scaling = match parameters {
        Some(parameters) => scaling(config, parameters, defaults)?,
        None => RotaryScaling::None,
    };
    let default = entries.default_theta.unwrap_or(defaults.rope_theta);
    Ok(RotaryConfig::new(head_dim)
        .with_theta(theta.unwrap_or(default))
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
fn scaling(
    config: Fields<'_>,
    fields: Fields<'_>,
    defaults: &Defaults,
) -> Result<RotaryScaling, ConfigError> {
    let key = match fields.get("rope_type") {
        Some(_) => "rope_type",
        None => "type",
    };
    let name = fields.string(key)?.unwrap_or("default");
    let alias = defaults.rope_types.iter().find(|(other, _)| *other == name);
    match alias.map_or(name, |(_, name)| name) {
        "default" => Ok(RotaryScaling::None),
        "linear" => Ok(RotaryScaling::Linear {
            factor: fields.required_positive("factor")?,
        }),
        "dynamic" => Ok(RotaryScaling::Dynamic {
            factor: fields.required_positive("factor")?,
            original_max_position_embeddings: context(config, defaults)?,
        }),
        "llama3" => llama3(config, fields, defaults),
        "yarn" => yarn(config, fields, defaults),
        "longrope" => longrope(config, fields, defaults),
        _ => {
            let known = "default, linear, dynamic, llama3, yarn or longrope";
            Err(fields.unexpected(key, known))
        }
    }
}

/// Reads the context length of the model.
fn context(config: Fields<'_>, defaults: &Defaults) -> Result<usize, ConfigError> {
    let context = config.size("max_position_embeddings")?;
    Ok(context.unwrap_or(defaults.max_position_embeddings))
}

/// Reads the context length in training. The entry at the top level takes precedence.
fn original(
    config: Fields<'_>,
    fields: Fields<'_>,
    defaults: &Defaults,
) -> Result<usize, ConfigError> {
    const KEY: &str = "original_max_position_embeddings";
    match config
        .size(KEY)?
        .or(defaults.original_max_position_embeddings)
    {
        Some(original) => Ok(original),
        None => match fields.size(KEY)? {
            Some(original) => Ok(original),
            None => context(config, defaults),
        },
    }
}

fn llama3(
    config: Fields<'_>,
    fields: Fields<'_>,
    defaults: &Defaults,
) -> Result<RotaryScaling, ConfigError> {
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
        original_max_position_embeddings: original(config, fields, defaults)?,
    })
}

fn yarn(
    config: Fields<'_>,
    fields: Fields<'_>,
    defaults: &Defaults,
) -> Result<RotaryScaling, ConfigError> {
    let original = original(config, fields, defaults)?;
    let factor = match fields.positive("factor")? {
        Some(factor) => factor,
        None => context(config, defaults)? as f64 / original as f64,
    };
    let scale = |weight: f64| match factor <= 1.0 {
        true => 1.0,
        false => 0.1 * weight * factor.ln() + 1.0,
    };
    let mscale = (
        fields.positive("mscale")?,
        fields.positive("mscale_all_dim")?,
    );
    let attention_factor = match (fields.positive("attention_factor")?, mscale) {
        (Some(factor), _) => factor,
        (None, (Some(numerator), Some(denominator))) => scale(numerator) / scale(denominator),
        (None, _) => scale(1.0),
    };
    Ok(RotaryScaling::Yarn {
        factor,
        beta_fast: fields.positive("beta_fast")?.unwrap_or(32.0),
        beta_slow: fields.positive("beta_slow")?.unwrap_or(1.0),
        truncate: fields.switch("truncate")?.unwrap_or(true),
        original_max_position_embeddings: original,
        attention_factor,
    })
}

fn longrope(
    config: Fields<'_>,
    fields: Fields<'_>,
    defaults: &Defaults,
) -> Result<RotaryScaling, ConfigError> {
    let original = original(config, fields, defaults)?;
    let factors = |key| {
        let missing = || fields.unexpected(key, "a list of numbers");
        fields.numbers(key)?.ok_or_else(missing)
    };
    let factor = match fields.positive("factor")? {
        Some(factor) => factor,
        None => context(config, defaults)? as f64 / original as f64,
    };
    let attention_factor = match fields.positive("attention_factor")? {
        Some(factor) => factor,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
    };
    Ok(RotaryScaling::LongRope {
        short_factor: factors("short_factor")?,
        long_factor: factors("long_factor")?,
        original_max_position_embeddings: original,
        attention_factor,
    })
}
