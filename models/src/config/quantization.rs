//! Refuses checkpoints whose weights are quantised in other formats than GGUF's.

use serde_json::Value;

use super::{ConfigError, fields::Fields};

/// The formats by their name in `quant_method`, for messages.
const METHODS: [(&str, &str); 8] = [
    ("awq", "AWQ"),
    ("bitsandbytes", "bitsandbytes"),
    ("compressed-tensors", "compressed-tensors"),
    ("fbgemm_fp8", "FBGEMM FP8"),
    ("fp8", "FP8"),
    ("gptq", "GPTQ"),
    ("hqq", "HQQ"),
    ("mxfp4", "MXFP4"),
];

/// Returns an error that names the format, if the weights are quantised.
pub(super) fn refuse_quantized(fields: Fields<'_>) -> Result<(), ConfigError> {
    let keys = ["quantization_config", "quantization"];
    let Some(key) = keys.into_iter().find(|key| fields.get(key).is_some()) else {
        return Ok(());
    };
    let entry = |name: &str| fields.get(key).and_then(|config| config.get(name));
    let method = entry("quant_method").and_then(Value::as_str);
    let bits = entry("bits").and_then(Value::as_u64);
    let format = match method {
        Some(method) => {
            let known = METHODS.iter().find(|(name, _)| *name == method);
            known.map_or(method, |(_, format)| format)
        }
        // MLX writes the size of the groups and of the codes, and no name.
        None if entry("group_size").is_some() => "MLX",
        None => "an unknown format",
    };
    let bits = bits.map_or(String::new(), |bits| format!(" with {bits} bits"));
    let expected = "weights in a float type (for quantised ones use GGUF, or sparq convert)";
    Err(fields.error(key, expected, format!("{format}{bits}")))
}
