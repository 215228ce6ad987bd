//! The options that choose tokens and end the text.

use anyhow::Result;
use clap::Args;
use sparq::Method;
use sparq_models::text::{GenerateOptions, SamplingConfig};

use crate::args::whole;

/// The options that choose tokens and end the text.
#[derive(Args, Clone, Debug)]
pub struct SamplingArgs {
    /// Most tokens to generate
    #[arg(long, default_value_t = 256, value_parser = whole::<usize>, value_name = "N")]
    max_new_tokens: usize,
    /// Divide logits by this. 0 always takes the most probable token
    #[arg(long, default_value_t = 0.0, value_name = "T")]
    temperature: f32,
    /// Sample from the fewest most probable tokens whose probabilities reach this sum
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    top_p: f32,
    /// Sample from this number of most probable tokens. 0 allows all. (--top-k is a setting of
    /// SparQ)
    #[arg(long, default_value_t = 0, value_parser = whole::<usize>, value_name = "N")]
    top_k_sampling: usize,
    /// Make tokens that occurred before less probable. 1 has no effect
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    repetition_penalty: f32,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0, value_parser = whole::<u64>)]
    seed: u64,
    /// End the text before any of these strings
    #[arg(long, value_name = "TEXT", num_args = 1..)]
    stop: Vec<String>,
}

impl SamplingArgs {
    /// Returns the options of a generation.
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
