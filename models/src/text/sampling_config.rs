//! The settings of sampling: [`SamplingConfig`].

use serde::{Deserialize, Serialize};

use super::sampler::SamplingError;

/// Settings of a [`Sampler`](super::Sampler), named as in Hugging Face transformers.
///
/// The default is greedy: always the most probable token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingConfig {
    /// The divisor of the logits. 0 is greedy, 1 keeps the model's distribution.
    pub temperature: f32,
    /// The number of most probable tokens to keep. 0 keeps all.
    pub top_k: usize,
    /// The probability to keep, in (0, 1]: the fewest most probable tokens that reach this sum. 1
    /// keeps all.
    pub top_p: f32,
    /// The penalty on tokens of the history: positive logits are divided by it, negative ones
    /// multiplied. 1 has no effect.
    pub repetition_penalty: f32,
    /// The number of last tokens that form the history. 0 means all, prompt included.
    pub repetition_window: usize,
    /// The seed of the random numbers. Equal seeds, settings and logits give equal tokens.
    pub seed: u64,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            repetition_window: 0,
            seed: 0,
        }
    }
}

impl SamplingConfig {
    /// Returns whether the most probable token is always chosen.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Checks the range of every field.
    ///
    /// # Errors
    /// [`SamplingError::Setting`] for the first field out of its range.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let Self {
            temperature,
            top_p,
            repetition_penalty,
            ..
        } = *self;
        let fields = [
            (
                "temperature",
                "a finite number, at least 0 (0 is greedy)",
                temperature,
                temperature >= 0.0 && temperature.is_finite(),
            ),
            (
                "top_p",
                "a number above 0 and at most 1 (1 keeps all tokens)",
                top_p,
                top_p > 0.0 && top_p <= 1.0,
            ),
            (
                "repetition_penalty",
                "a finite number above 0 (1 has no effect)",
                repetition_penalty,
                repetition_penalty > 0.0 && repetition_penalty.is_finite(),
            ),
        ];
        for (field, expected, found, valid) in fields {
            if !valid {
                return Err(SamplingError::Setting {
                    field,
                    expected,
                    found,
                });
            }
        }
        Ok(())
    }
}
