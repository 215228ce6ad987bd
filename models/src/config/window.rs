//! The sliding windows of the layers.

use super::{ConfigError, fields::Fields};

/// Reads `sliding_window`, in positions. A missing entry means `default`, `null` means no window.
pub(crate) fn sliding_window(
    fields: Fields<'_>,
    default: Option<usize>,
) -> Result<Option<usize>, ConfigError> {
    let window = match fields.contains("sliding_window") {
        true => fields.size("sliding_window")?,
        false => default,
    };
    // Kernels count positions in 32 bits.
    match window {
        Some(window) if i32::try_from(window).is_err() => {
            Err(fields.unexpected("sliding_window", format!("at most {}", i32::MAX)))
        }
        window => Ok(window),
    }
}

/// Returns the window of each layer.
///
/// `layer_types` decides which layers have a window. Without it, `slides` does.
pub(crate) fn windows(
    fields: Fields<'_>,
    layers: usize,
    window: Option<usize>,
    slides: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>, ConfigError> {
    let Some(types) = fields.strings("layer_types")? else {
        let of = |layer| window.filter(|_| slides(layer));
        return Ok((0..layers).map(of).collect());
    };
    if types.len() != layers {
        let found = format!("a list of {}", types.len());
        return Err(fields.error("layer_types", format!("a list of {layers}"), found));
    }
    let of = |(layer, name): (usize, &&str)| match (*name, window) {
        ("full_attention", _) => Ok(None),
        ("sliding_attention", Some(window)) => Ok(Some(window)),
        (name, window) => {
            let expected = match window {
                Some(_) => "full_attention or sliding_attention",
                None => "full_attention, since no sliding_window is in use",
            };
            let key = format!("layer_types.{layer}");
            Err(fields.error(&key, expected, format!("{name:?}")))
        }
    };
    types.iter().enumerate().map(of).collect()
}
