//! Option groups and value parsers that commands share.

use std::path::PathBuf;
use std::str::FromStr;

use burn::tensor::FloatDType;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde::de::DeserializeOwned;
use serde_json::Value;
use sparq_device::DeviceChoice;

use crate::model::ModelSource;

/// The model of a command.
#[derive(Args, Clone, Debug, Default)]
pub struct ModelArgs {
    /// Model: the folder of a Hugging Face checkpoint or of a converted model, a GGUF file, or an
    /// ID on the Hugging Face Hub (org/name, or org/name:Q4_K_M for one GGUF model of several).
    /// Without it, the embedded model
    #[arg(long, value_name = "DIR|FILE.gguf|HUB-ID")]
    pub model: Option<String>,
    /// Settings of SparQ and shared layers for this model: the sparq.json of its conversion with
    /// --calibrate
    #[arg(long, value_name = "FILE")]
    pub calibration: Option<PathBuf>,
}

impl ModelArgs {
    /// Finds the model. `name` is for no `--model`.
    ///
    /// # Errors
    /// As [`ModelSource::find`].
    pub fn source(&self, name: Option<&str>) -> anyhow::Result<ModelSource> {
        let source = ModelSource::find(self.model.as_deref().or(name))?;
        Ok(source.with_calibration(self.calibration.as_deref()))
    }
}

/// The type of weights and cache.
#[derive(Args, Clone, Copy, Debug)]
pub struct DtypeArgs {
    /// Type of weights and cache [default: f32 on CPUs. On GPUs the type of the checkpoint, or f16
    /// if its weights are quantised or the GPU does not compute in their type]
    #[arg(long, value_parser = dtype_parser(), value_name = "TYPE")]
    dtype: Option<FloatDType>,
}

impl DtypeArgs {
    /// Returns the type for a model whose checkpoint has the float type `stored`, `None` for
    /// quantised weights.
    ///
    /// A GPU computes in the types of checkpoints. The arithmetic of CPUs is f32, which holds every
    /// weight exactly.
    pub fn of(&self, stored: Option<FloatDType>, device: &DeviceChoice) -> FloatDType {
        let known = |dtype| device.open().supports_dtype(dtype);
        self.dtype.unwrap_or_else(|| match device.is_gpu() {
            true => gpu_dtype(stored, known),
            false => FloatDType::F32,
        })
    }
}

/// Returns the type of the checkpoint, or the closest one that the GPU computes in.
fn gpu_dtype(stored: Option<FloatDType>, known: impl Fn(FloatDType) -> bool) -> FloatDType {
    let wanted = stored.into_iter().chain([FloatDType::F16]);
    let mut found = wanted.filter(|&dtype| known(dtype));
    found.next().unwrap_or(FloatDType::F32)
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

/// Parses a whole number.
pub fn whole<T: FromStr>(text: &str) -> Result<T, String> {
    let number = text.parse();
    number.map_err(|_| format!("expected a whole number, at least 0, found {text:?}"))
}

/// Parses a number above 0.
pub fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok();
    number
        .filter(|number| number.is_finite() && *number > 0.0)
        .ok_or_else(|| format!("expected a number above 0, found {text:?}"))
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
    fn dtype_of_a_gpu_is_that_of_the_checkpoint() {
        use FloatDType::{BF16, F16, F32};
        let all = |_| true;
        for dtype in [F32, F16, BF16] {
            assert_eq!(gpu_dtype(Some(dtype), all), dtype);
        }
        assert_eq!(gpu_dtype(None, all), F16);
        assert_eq!(gpu_dtype(Some(BF16), |dtype| dtype != BF16), F16);
        for stored in [Some(BF16), Some(F16), None] {
            assert_eq!(gpu_dtype(stored, |dtype| dtype == F32), F32);
        }
    }

    #[test]
    fn dtype_of_a_cpu_is_f32_unless_given() {
        let device: DeviceChoice = "flex".parse().unwrap();
        let dtype = |dtype| DtypeArgs { dtype }.of(Some(FloatDType::BF16), &device);
        assert_eq!(dtype(None), FloatDType::F32);
        assert_eq!(dtype(Some(FloatDType::F16)), FloatDType::F16);
    }

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
