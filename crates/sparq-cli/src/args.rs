//! Option groups and value parsers that commands share.

use burn::tensor::FloatDType;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The model of a command.
#[derive(Args, Clone, Debug, Default)]
pub struct ModelArgs {
    /// Model: the folder of a Hugging Face checkpoint or of a converted model, a GGUF file, or an
    /// ID on the Hugging Face Hub (org/name). Without it, the embedded model
    #[arg(long, value_name = "DIR|FILE.gguf|HUB-ID")]
    pub model: Option<String>,
}

/// The type of weights and cache.
#[derive(Args, Clone, Copy, Debug)]
pub struct DtypeArgs {
    /// Type of weights and cache
    #[arg(long, value_parser = dtype_parser(), default_value = "f32", value_name = "TYPE")]
    pub dtype: FloatDType,
}

/// Returns the parser of float types.
pub fn dtype_parser() -> impl TypedValueParser<Value = FloatDType> {
    PossibleValuesParser::new(["f32", "f16", "bf16"]).map(|name| match name.as_str() {
        "f16" => FloatDType::F16,
        "bf16" => FloatDType::BF16,
        _ => FloatDType::F32,
    })
}

/// Returns the name of a float type on the command line.
pub fn dtype_name(dtype: FloatDType) -> &'static str {
    match dtype {
        FloatDType::F64 => "f64",
        FloatDType::F32 | FloatDType::Flex32 => "f32",
        FloatDType::F16 => "f16",
        FloatDType::BF16 => "bf16",
    }
}

/// Returns the parser of `names`, which are the serialized names of the values with `-` for `_`.
pub fn named<T>(names: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: DeserializeOwned + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names)
        .try_map(|name| serde_json::from_value::<T>(Value::String(name.replace('-', "_"))))
}

/// Parses a number of at least 1.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(0) | Err(_) => Err(format!("expected a number of at least 1, found {text:?}")),
        Ok(number) => Ok(number),
    }
}

/// Parses a share, such as 1/8 or 0.125.
pub fn share(text: &str) -> Result<f64, String> {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    let share = match text.split_once('/') {
        Some((part, whole)) => number(part)
            .zip(number(whole))
            .map(|(part, whole)| part / whole),
        None => number(text),
    };
    let share = share.filter(|share| *share > 0.0 && *share <= 1.0);
    share.ok_or_else(|| {
        format!("expected a share above 0 and at most 1, such as 1/8 or 0.125, found {text:?}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_is_a_fraction_or_a_number() {
        assert_eq!(share("1/8"), Ok(0.125));
        assert_eq!(share("0.125"), Ok(0.125));
        assert_eq!(share("1"), Ok(1.0));
        for text in ["", "0", "2", "1/0", "-1/8", "1/", "a/8", "eighth", "nan"] {
            let error = share(text).unwrap_err();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }
}
