//! The arguments that say how tokens are chosen and when the text ends.

use anyhow::Result;
use clap::Args;
use sparq::Method;
use sparq_models::text::{GenerateOptions, SamplingConfig};

/// How tokens are chosen and when the text ends.
#[derive(Args, Clone, Debug)]
pub struct SamplingArgs {
    /// The most tokens to generate
    #[arg(long, default_value_t = 256, value_name = "N")]
    max_new_tokens: usize,
    /// Logits are divided by it; 0 always takes the most probable token
    #[arg(long, default_value_t = 0.0, value_name = "T")]
    temperature: f32,
    /// Keep the fewest most probable tokens whose probabilities reach this sum
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    top_p: f32,
    /// Keep so many of the most probable tokens; 0 keeps all (--top-k is SparQ's)
    #[arg(long, default_value_t = 0, value_name = "N")]
    top_k_sampling: usize,
    /// Make tokens that occurred less probable; 1 does nothing
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    repetition_penalty: f32,
    /// Seed of the random numbers
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// End the text where it reaches one of these
    #[arg(long, value_name = "TEXT", num_args = 1..)]
    stop: Vec<String>,
}

impl SamplingArgs {
    /// The options of a generation, checked.
    ///
    /// # Errors
    /// When a setting is out of its range.
    pub fn options(&self, method: Method) -> Result<GenerateOptions> {
        let sampling = SamplingConfig {
            temperature: self.temperature,
            top_k: self.top_k_sampling,
            top_p: self.top_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            ..SamplingConfig::default()
        };
        sampling.validate()?;
        Ok(GenerateOptions {
            method,
            sampling,
            max_new_tokens: self.max_new_tokens,
            stop: self.stop.clone(),
            ..GenerateOptions::default()
        })
    }
}
