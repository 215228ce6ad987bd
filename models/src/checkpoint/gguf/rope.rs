//! The scaling of RoPE in GGUF files, as `rope_scaling` of `config.json`.

use serde_json::{Value, json};

use super::super::{CheckpointError, formats::StoredType};
use super::{
    Gguf,
    names::{LONGROPE_FACTORS, ROPE_FACTORS},
};

const TYPE: &str = "{arch}.rope.scaling.type";
const FACTOR: &str = "{arch}.rope.scaling.factor";
const OLD_FACTOR: &str = "{arch}.rope.scale_linear";
const ATTENTION: &str = "{arch}.rope.scaling.attn_factor";
const ORIGINAL: &str = "{arch}.rope.scaling.original_context_length";

/// The frequency factors of RoPE in every Llama 3 model. GGUF files only have the divisors that
/// follow from them, the factor and the context.
const LOW_FREQ_FACTOR: f64 = 1.0;
const HIGH_FREQ_FACTOR: f64 = 4.0;

/// The original contexts that are tried, as exponents of 2.
const ORIGINAL_CONTEXTS: std::ops::RangeInclusive<u32> = 5..=20;

/// The divisors of the frequencies that a file has as tensors.
struct Divisors {
    /// Those of short sequences.
    short: Vec<f64>,
    /// Those of long sequences.
    long: Vec<f64>,
}

impl Gguf {
    /// Returns the entry `rope_scaling` of the configuration.
    ///
    /// llama.cpp divides frequencies by the divisors and by the factor, and multiplies queries and
    /// keys by the attention factor, whichever of them a file has.
    pub(super) fn rope_scaling(&self) -> Result<Option<Value>, CheckpointError> {
        let number = |key: &str| match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) if number >= 0.0 => Ok(Some(number)),
                _ => Err(self.unexpected(key, "a number, at least 0")),
            },
        };
        let factor = match number(FACTOR)? {
            Some(factor) => Some(factor),
            None => number(OLD_FACTOR)?,
        };
        // llama.cpp takes 0 for a missing factor.
        let factor = factor.filter(|&factor| factor != 0.0).unwrap_or(1.0);
        let attention = number(ATTENTION)?.unwrap_or(1.0);
        let context = self.original_context()?;
        let divisors = self.divisors()?;
        // A missing type means linear.
        let kind = self.get(TYPE).and_then(Value::as_str).unwrap_or("linear");
        match (kind, &divisors) {
            ("none" | "linear", _) | ("longrope", Some(_)) => {}
            ("yarn", None) => {
                return Ok(Some(json!({
                    "rope_type": "yarn",
                    "factor": factor,
                    "attention_factor": attention * (1.0 + 0.1 * factor.max(1.0).ln()),
                    "original_max_position_embeddings": context,
                })));
            }
            (_, None) => return Err(self.unexpected(TYPE, "none, linear or yarn")),
            (_, Some(_)) => {
                let expected = "none, linear or longrope beside divisors of the frequencies";
                return Err(self.unexpected(TYPE, expected));
            }
        }
        let factor = if kind == "none" { 1.0 } else { factor };
        let divisors = match divisors {
            Some(divisors) => divisors,
            None if attention == 1.0 => {
                let linear = || json!({"rope_type": "linear", "factor": factor});
                return Ok((factor != 1.0).then(linear));
            }
            None => Divisors::all(vec![1.0; self.head_dim()? / 2]),
        };
        if (factor, attention) == (1.0, 1.0)
            && divisors.short == divisors.long
            && let Some(scaling) = self.llama3_scaling(&divisors.short)
        {
            return Ok(Some(scaling));
        }
        // The one type with a divisor for each frequency and a factor of queries and keys.
        Ok(Some(json!({
            "rope_type": "longrope",
            "short_factor": divisors.short.iter().map(|divisor| divisor * factor).collect::<Vec<_>>(),
            "long_factor": divisors.long.iter().map(|divisor| divisor * factor).collect::<Vec<_>>(),
            "attention_factor": attention,
            "original_max_position_embeddings": context,
        })))
    }

    /// Returns the number of positions in training.
    pub(super) fn original_context(&self) -> Result<&Value, CheckpointError> {
        match self.get(ORIGINAL) {
            Some(context) => Ok(context),
            None => self.required("{arch}.context_length", "a number"),
        }
    }

    fn divisors(&self) -> Result<Option<Divisors>, CheckpointError> {
        let [short, long] = LONGROPE_FACTORS.map(|name| self.divisors_of(name));
        Ok(match (short?, long?) {
            (Some(short), Some(long)) => Some(Divisors { short, long }),
            _ => self.divisors_of(ROPE_FACTORS)?.map(Divisors::all),
        })
    }

    /// Returns the numbers of an F32 tensor with one for each rotated pair of a head's components.
    fn divisors_of(&self, name: &str) -> Result<Option<Vec<f64>>, CheckpointError> {
        let Some((source, tensor)) = self.tensor(name) else {
            return Ok(None);
        };
        let rotated = self.get("{arch}.rope.dimension_count");
        let rotated = match rotated.and_then(Value::as_u64) {
            Some(rotated) => rotated,
            None => self.head_dim()? as u64,
        };
        let pairs = rotated / 2;
        let (dtype, shape) = (tensor.dtype, &*tensor.shape);
        let count = match *shape {
            [count] if dtype == StoredType::F32 && count as u64 == pairs => count,
            _ => {
                let found = format!("{dtype} {shape:?}");
                return Err(self.error(name, format!("F32 [{pairs}]"), found));
            }
        };
        let mut bytes = vec![0; 4 * count];
        source.read_at(tensor.offset, &mut bytes)?;
        let numbers = bytes.as_chunks().0.iter();
        let numbers = numbers.map(|&bytes| f64::from(f32::from_le_bytes(bytes)));
        let numbers: Vec<_> = numbers.collect();
        let is_divisor = |number: &f64| *number > 0.0 && number.is_finite();
        match numbers.iter().find(|&number| !is_divisor(number)) {
            None => Ok(Some(numbers)),
            Some(other) => Err(self.error(name, "positive divisors", other.to_string())),
        }
    }

    /// Returns the settings of Llama 3 from which the divisors follow, if there are such.
    fn llama3_scaling(&self, divisors: &[f64]) -> Option<Value> {
        let rotated = 2 * divisors.len();
        let theta = self
            .get("{arch}.rope.freq_base")
            .and_then(Value::as_f64)
            .unwrap_or(10_000.0);
        let factor = divisors.iter().copied().fold(1.0, f64::max);
        let divisor = |context: u64, pair: usize| {
            let frequency = theta.powf(-2.0 * pair as f64 / rotated as f64);
            let rotations = context as f64 * frequency / std::f64::consts::TAU;
            let kept = (rotations - LOW_FREQ_FACTOR) / (HIGH_FREQ_FACTOR - LOW_FREQ_FACTOR);
            let kept = kept.clamp(0.0, 1.0);
            1.0 / ((1.0 - kept) / factor + kept)
        };
        let fits = |&context: &u64| {
            divisors.iter().enumerate().all(|(pair, &found)| {
                let expected = divisor(context, pair);
                (found - expected).abs() <= 1e-4 * expected
            })
        };
        let context = ORIGINAL_CONTEXTS.map(|power| 1 << power).find(fits);
        context.map(|context| {
            json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": LOW_FREQ_FACTOR,
                "high_freq_factor": HIGH_FREQ_FACTOR,
                "original_max_position_embeddings": context,
            })
        })
    }
}

impl Divisors {
    /// Divisors of sequences of every length.
    fn all(divisors: Vec<f64>) -> Self {
        Self {
            short: divisors.clone(),
            long: divisors,
        }
    }
}
