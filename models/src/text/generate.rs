//! What goes into a generation and what comes out of it.

use std::time::Duration;

use serde::Serialize;
use sparq::{Method, SparqError};

use super::{
    cancel::CancelToken, sampler::SamplingError, sampling_config::SamplingConfig,
    stop_strings::EmptyStopString, tokenizer::TokenizerError,
};

/// How to generate; see [`Session::generate`](super::Session::generate).
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// How decode steps attend to the cache. Prompts are always read densely.
    pub method: Method,
    /// How tokens are chosen.
    pub sampling: SamplingConfig,
    /// The most tokens to generate; with 0 the prompt is read into the cache and nothing more.
    pub max_new_tokens: usize,
    /// Strings that end the text; they are not part of it.
    pub stop: Vec<String>,
    /// Token ids that end the sequence instead of the tokenizer's; an empty list lets nothing end it.
    pub eos_ids: Option<Vec<u32>>,
    /// Prompt tokens that the model reads at once: between two such pieces a generation can be cancelled.
    pub prefill_chunk: usize,
    /// Whether decode steps are recorded once and replayed, where device and model can; see [`CapturedLm`](crate::CapturedLm).
    pub capture: bool,
    /// Ends the generation from outside.
    pub cancel: CancelToken,
}

impl Default for GenerateOptions {
    /// Dense and greedy, at most 256 tokens, prompts in pieces of 2048, captured.
    fn default() -> Self {
        Self {
            method: Method::DENSE,
            sampling: SamplingConfig::default(),
            max_new_tokens: 256,
            stop: Vec::new(),
            eos_ids: None,
            prefill_chunk: 2048,
            capture: true,
            cancel: CancelToken::new(),
        }
    }
}

/// What happens during a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerateEvent<'a> {
    /// The model has read `done` of the `total` prompt tokens that were not in the cache; the first such event has `done` = 0.
    Prefill {
        /// Tokens read.
        done: usize,
        /// Tokens to read.
        total: usize,
    },
    /// The next piece of the text: whole characters, never part of a stop string.
    Text(&'a str),
}

/// Why a generation ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model chose a token that ends the sequence.
    Eos,
    /// The text reached this stop string.
    StopString(String),
    /// As many tokens were generated as were asked for.
    MaxNewTokens,
    /// The model's context has no position left for the last token.
    ContextFull,
    /// The cancel token was turned, or the caller's callback broke off.
    Cancelled,
}

/// A generated text and what it took.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The tokens that were chosen, with the one that ended the sequence and those of a stop string.
    pub tokens: Vec<u32>,
    /// Their text up to the end or the stop string, without special tokens.
    pub text: String,
    /// Why it ended.
    pub finish: FinishReason,
    /// Number of tokens of the prompt.
    pub prompt_tokens: usize,
    /// Prompt tokens that the cache already held from before.
    pub cached_tokens: usize,
    /// Prompt tokens that the model read: those not cached, or fewer when cancelled.
    pub prefill_tokens: usize,
    /// Decode steps of the model: one less than tokens, because the first comes from the prompt.
    pub decode_steps: usize,
    /// Time until the prompt's last logits were there.
    pub prefill_time: Duration,
    /// Time of everything after that: decode steps, sampling, text and the caller's callback.
    pub decode_time: Duration,
}

impl Generated {
    /// Prompt tokens that the model read in a second; 0 when it read none.
    pub fn prefill_tokens_per_second(&self) -> f64 {
        per_second(self.prefill_tokens, self.prefill_time)
    }

    /// Decode steps in a second; 0 when there was none.
    pub fn decode_tokens_per_second(&self) -> f64 {
        per_second(self.decode_steps, self.decode_time)
    }
}

fn per_second(count: usize, time: Duration) -> f64 {
    match count {
        0 => 0.0,
        count => count as f64 / time.as_secs_f64().max(f64::MIN_POSITIVE),
    }
}

/// Why nothing, or nothing more, could be generated.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// There is nothing to predict from.
    #[error("prompt: expected at least one token, found none")]
    EmptyPrompt,
    /// The prompt is longer than the model's context.
    #[error("prompt: expected at most {context} tokens (the model's context), found {found}")]
    PromptTooLong {
        /// Positions the model was made for.
        context: usize,
        /// Tokens of the prompt.
        found: usize,
    },
    /// A token id of the prompt is not one of the model's.
    #[error(
        "prompt: expected token ids below {vocab} (the model's vocabulary), found {found} at position {position}; is the tokenizer that of the model?"
    )]
    UnknownToken {
        /// Size of the model's vocabulary.
        vocab: usize,
        /// The token id.
        found: u32,
        /// Where in the prompt.
        position: usize,
    },
    /// Prompts can't be read in pieces of nothing.
    #[error("prefill_chunk: expected at least 1, found 0")]
    EmptyChunk,
    /// A stop string is empty.
    #[error(transparent)]
    Stop(#[from] EmptyStopString),
    /// A sampling setting is out of range, or the model's logits are no numbers.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The tokenizer cannot write the text.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The model refuses a step.
    #[error(transparent)]
    Model(#[from] SparqError),
    /// The model's logits have the wrong shape.
    #[error("logits: expected shape {expected:?}, found {found:?}")]
    LogitsShape {
        /// [1, 1, vocab].
        expected: [usize; 3],
        /// The shape that came.
        found: [usize; 3],
    },
    /// The device could not compute the logits or hand them over.
    #[error("logits: cannot be read from the device: {reason}")]
    Device {
        /// What the device says.
        reason: String,
    },
}
