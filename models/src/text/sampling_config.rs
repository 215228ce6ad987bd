//! How the next token is chosen: [`SamplingConfig`].

use serde::{Deserialize, Serialize};

use super::sampler::SamplingError;

/// The settings of a [`Sampler`](super::Sampler), with the names and the meaning that they have in Hugging Face transformers.
///
/// The default is greedy: the most probable token, always.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingConfig {
    /// Logits are divided by it; 0 is greedy, 1 leaves the model's distribution.
    pub temperature: f32,
    /// Keep the `top_k` most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest most probable tokens whose probabilities sum to at least `top_p`, in (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// Makes tokens of the history less probable: positive logits are divided by it and negative ones multiplied; 1 does nothing.
    pub repetition_penalty: f32,
    /// How many of the last tokens are the history that the penalty looks at; 0 means all, prompt included.
    pub repetition_window: usize,
    /// Seed of the random numbers. The same seed, settings and logits give the same tokens.
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
    /// Whether the most probable token is taken without drawing.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Checks that every field is in its range.
    ///
    /// # Errors
    /// Names the field, the range and the value of the first one that is not.
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
                "a finite number of at least 0 (0 is greedy)",
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
                "a finite number above 0 (1 does nothing)",
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
