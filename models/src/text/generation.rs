//! The options, events, results and errors of a generation.

use std::{ops::ControlFlow, time::Duration};

use serde::Serialize;
use sparq::{Method, SparqError};

use super::{
    cancel::CancelToken,
    sampler::SamplingError,
    sampling_config::SamplingConfig,
    speculative::{SpeculativeConfig, SpeculativeStats},
    stop_strings::EmptyStopString,
    tokenizer::TokenizerError,
};

/// Receives the events of a generation. Breaking ends the generation.
pub(super) type OnEvent<'a> = &'a mut dyn FnMut(GenerateEvent<'_>) -> ControlFlow<()>;

/// Options of [`Session::generate`](super::Session::generate).
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// The method of decode steps. Prefill is always dense.
    pub method: Method,
    /// Decodes with drafts by these settings, verified by dense attention, in place of steps of
    /// `method`. See [`SpeculativeDecoder`](super::SpeculativeDecoder).
    pub speculative: Option<SpeculativeConfig>,
    /// The settings of sampling.
    pub sampling: SamplingConfig,
    /// The maximum number of tokens to generate. With 0, only the prompt is read into the cache.
    pub max_new_tokens: usize,
    /// The strings that end the text, in the spelling of special tokens too. The text does not
    /// contain them.
    pub stop: Vec<String>,
    /// The ids of the end-of-sequence tokens. `None` means those of the tokenizer, an empty list
    /// none.
    pub eos_ids: Option<Vec<u32>>,
    /// The number of prompt tokens per prefill pass. A generation can be cancelled between two
    /// passes.
    pub prefill_chunk: usize,
    /// Whether decode steps are captured, if device and model support it. See
    /// [`CapturedLm`](crate::CapturedLm).
    pub capture: bool,
    /// Cancels the generation from another thread.
    pub cancel: CancelToken,
}

impl GenerateOptions {
    /// Returns a number of prompt tokens per prefill pass that suits a GPU or a CPU.
    ///
    /// A pass reads all weights and waits for its logits. On a GPU, with 8192 tokens, it does 16384
    /// operations per weight, 40 times as many as an H200 can do while it reads a weight of 16
    /// bits. The activations of an 8B model are then about 1 GiB.
    pub fn prefill_chunk_of(gpu: bool) -> usize {
        match gpu {
            true => 8192,
            false => 2048,
        }
    }
}

impl Default for GenerateOptions {
    /// Dense attention, greedy sampling, at most 256 tokens, prefill passes of 2048, captured
    /// steps.
    fn default() -> Self {
        Self {
            method: Method::DENSE,
            speculative: None,
            sampling: SamplingConfig::default(),
            max_new_tokens: 256,
            stop: Vec::new(),
            eos_ids: None,
            prefill_chunk: Self::prefill_chunk_of(false),
            capture: true,
            cancel: CancelToken::new(),
        }
    }
}

/// An event during a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerateEvent<'a> {
    /// The model has read `done` of the `total` prompt tokens that the cache lacked. The first
    /// event has `done` = 0.
    Prefill {
        /// The tokens read so far.
        done: usize,
        /// The tokens to read.
        total: usize,
    },
    /// The next piece of the text: complete characters, never a part of a stop string.
    Text(&'a str),
}

/// The reason why a generation ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// An end-of-sequence token.
    Eos,
    /// This stop string.
    StopString(String),
    /// The maximum number of tokens.
    MaxNewTokens,
    /// The model's context, which has no position left for the last token.
    ContextFull,
    /// The cancel token or the callback.
    Cancelled,
}

/// A generated text with its statistics.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The generated tokens, including an end-of-sequence token and those of a stop string.
    pub tokens: Vec<u32>,
    /// Their text up to the stop string, without special tokens.
    pub text: String,
    /// The reason for the end.
    pub finish: FinishReason,
    /// The number of prompt tokens.
    pub prompt_tokens: usize,
    /// The number of prompt tokens that the cache already held.
    pub cached_tokens: usize,
    /// The number of prompt tokens that the model read: those not cached, or fewer if cancelled.
    pub prefill_tokens: usize,
    /// The number of tokens that decode steps gave: usually one less than all, since prefill gives
    /// the first. Each is from a step of its own, unless drafts were verified.
    pub decode_steps: usize,
    /// The counts and times of drafts and verifications, if there were to be any.
    pub speculative: Option<SpeculativeStats>,
    /// The time until the last logits of the prompt arrived.
    pub prefill_time: Duration,
    /// The time after that: decode steps, sampling, decoding tokens to text, and the callback.
    pub decode_time: Duration,
}

impl Generated {
    /// Returns the prompt tokens read per second, 0 if none was read.
    pub fn prefill_tokens_per_second(&self) -> f64 {
        per_second(self.prefill_tokens, self.prefill_time)
    }

    /// Returns the decode steps per second, 0 if there was none.
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

/// An error in generating text.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The prompt is empty.
    #[error("prompt: expected at least one token, found none")]
    EmptyPrompt,
    /// The prompt is longer than the context.
    #[error("prompt: expected at most {context} tokens (the model's context), found {found}")]
    PromptTooLong {
        /// The context length of the model, in positions.
        context: usize,
        /// The number of prompt tokens.
        found: usize,
    },
    /// A token of the prompt is not in the vocabulary of the model.
    #[error(
        "prompt: expected token ids below {vocab} (the model's vocabulary), found {found} at \
         position {position}; does the tokenizer belong to the model?"
    )]
    UnknownToken {
        /// The size of the vocabulary.
        vocab: usize,
        /// The token id.
        found: u32,
        /// The position in the prompt.
        position: usize,
    },
    /// `prefill_chunk` is 0.
    #[error("prefill_chunk: expected at least 1, found 0")]
    EmptyChunk,
    /// A stop string is empty.
    #[error(transparent)]
    Stop(#[from] EmptyStopString),
    /// A sampling setting is out of range, or the logits are NaN or infinite.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The tokenizer cannot decode the tokens.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The model fails.
    #[error(transparent)]
    Model(#[from] SparqError),
    /// The model's logits have the wrong shape.
    #[error("logits: expected shape {expected:?}, found {found:?}")]
    LogitsShape {
        /// [B, T, vocab].
        expected: [usize; 3],
        /// The shape found.
        found: [usize; 3],
    },
    /// The logits cannot be computed or copied from the device.
    #[error("logits: cannot be read from the device: {reason}")]
    Device {
        /// The message of the device.
        reason: String,
    },
}
