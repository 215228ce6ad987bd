//! Generating text over several turns: [`Session`].

mod ahead;
mod speculate;

pub(super) use self::ahead::Queue;

use std::{ops::ControlFlow, time::Instant};

use sparq::ops;

use super::{
    cancel::CancelToken,
    generation::{FinishReason, GenerateError, GenerateEvent, GenerateOptions, Generated, OnEvent},
    output::Output,
    sampler::Sampler,
    speculative::SpeculativeStats,
    tokenizer::TextTokenizer,
    transfer::{download, upload},
};
use crate::{CapturedLm, CausalLm, ModelCache};

/// A cache and the tokens in it, kept from one generation to the next.
///
/// The turns of a conversation begin with the same tokens. A generation reads only the tokens that
/// the cache does not hold. The keys and values of decode steps stay in the cache: after sparse
/// attention they differ slightly from those of a prefill of the same tokens.
///
/// After every call the cache holds exactly [`tokens`](Self::tokens), even if the call failed or
/// was cancelled.
#[derive(Debug)]
pub struct Session {
    cache: ModelCache,
    tokenizer: TextTokenizer,
    /// The tokens at the positions of the cache. A cache without layers has no length of its own.
    tokens: Vec<u32>,
}

impl Session {
    /// Makes a session with a cache for one sequence. Clears the cache.
    pub fn new(mut cache: ModelCache, tokenizer: TextTokenizer) -> Self {
        cache.clear();
        Self {
            cache,
            tokenizer,
            tokens: Vec::new(),
        }
    }

    /// Returns the tokenizer of this session.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// Returns the tokens in the cache.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Returns the cache.
    pub fn cache(&self) -> &ModelCache {
        &self.cache
    }

    /// Removes all tokens from the cache.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Continues a prompt, which is the whole sequence with all earlier turns.
    ///
    /// A dense prefill reads the part of the prompt that the cache does not hold. Decode steps with
    /// `options.method` then generate one token each. `on_event` receives progress and text. If it
    /// breaks, the generation ends.
    ///
    /// # Errors
    /// If the prompt is empty, longer than the context or not in the vocabulary, if an option is
    /// out of range, if the model or the tokenizer fails, or if logits are NaN.
    pub fn generate(
        &mut self,
        model: &dyn CausalLm,
        prompt_tokens: &[u32],
        options: &GenerateOptions,
        on_event: &mut dyn FnMut(GenerateEvent<'_>) -> ControlFlow<()>,
    ) -> Result<Generated, GenerateError> {
        let _span = tracing::debug_span!(
            "generate",
            prompt = prompt_tokens.len(),
            method = options.method.name()
        )
        .entered();
        check_prompt(model, prompt_tokens)?;
        if options.prefill_chunk == 0 {
            return Err(GenerateError::EmptyChunk);
        }
        let mut turn = Turn {
            sampler: Sampler::new(options.sampling)?,
            output: Output::new(self.tokenizer.clone(), &options.stop)?,
            sequence: prompt_tokens.to_vec(),
            decode_steps: 0,
            speculative: None,
        };

        let started = Instant::now();
        let cached_tokens = self.keep_common_prefix(prompt_tokens);
        let logits = self.prefill(model, prompt_tokens, options, on_event)?;
        let prefill_time = started.elapsed();
        let prefill_tokens = self.tokens.len() - cached_tokens;
        tracing::debug!(cached_tokens, prefill_tokens, ?prefill_time, "prefill");

        let started = Instant::now();
        let finish = match (logits, options.speculative) {
            (None, _) => FinishReason::Cancelled,
            (Some(logits), None)
                if turn.sampler.is_argmax() && ops::has_kernels(&model.device()) =>
            {
                self.decode_ahead(model, logits, &mut turn, options, on_event)?
            }
            (Some(logits), None) => self.decode(model, logits, &mut turn, options, on_event)?,
            (Some(logits), Some(config)) => {
                self.speculate(model, logits, config, &mut turn, options, on_event)?
            }
        };
        let (text, finish) = turn.output.finish(finish, on_event)?;
        let decode_time = started.elapsed();
        let decode_steps = turn.decode_steps;
        tracing::debug!(decode_steps, ?decode_time, ?finish, "decode");
        Ok(Generated {
            tokens: turn.sequence.split_off(prompt_tokens.len()),
            text,
            finish,
            prompt_tokens: prompt_tokens.len(),
            cached_tokens,
            prefill_tokens,
            decode_steps,
            speculative: turn.speculative,
            prefill_time,
            decode_time,
        })
    }

    /// Truncates the cache to the prefix it shares with the prompt and returns the prefix length.
    ///
    /// The last prompt token is always read again, because generation begins with its logits and
    /// the cache does not hold them.
    fn keep_common_prefix(&mut self, prompt: &[u32]) -> usize {
        let common = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b);
        let kept = common.count().min(prompt.len() - 1);
        self.truncate(kept);
        kept
    }

    fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
        self.cache.truncate(len);
    }

    /// Reads the part of the prompt that the cache lacks. Returns the logits after its last token,
    /// or `None` if cancelled.
    fn prefill(
        &mut self,
        model: &dyn CausalLm,
        prompt: &[u32],
        options: &GenerateOptions,
        on_event: OnEvent<'_>,
    ) -> Result<Option<Vec<f32>>, GenerateError> {
        let cached = self.tokens.len();
        let total = prompt.len() - cached;
        if on_event(GenerateEvent::Prefill { done: 0, total }).is_break() {
            return Ok(None);
        }
        let mut logits = None;
        for chunk in prompt[cached..].chunks(options.prefill_chunk) {
            if options.cancel.is_cancelled() {
                return Ok(None);
            }
            // Downloading the logits of every chunk waits for the device. Otherwise progress and
            // cancellation would run ahead of the work.
            logits = Some(self.prefill_chunk(model, chunk)?);
            let done = self.tokens.len() - cached;
            if on_event(GenerateEvent::Prefill { done, total }).is_break() {
                return Ok(None);
            }
        }
        self.cache.finish_prompt();
        Ok(logits)
    }

    /// Reads `tokens` in one prefill and returns the logits [vocab] after the last.
    fn prefill_chunk(
        &mut self,
        model: &dyn CausalLm,
        tokens: &[u32],
    ) -> Result<Vec<f32>, GenerateError> {
        let logits = model.prefill(upload(model, &[tokens]), &mut self.cache, 1);
        let logits = logits.map_err(GenerateError::from);
        let logits = logits.and_then(|logits| download(logits, model, [1, 1]));
        match logits {
            Ok(_) => self.tokens.extend_from_slice(tokens),
            // A model that fails in one layer has already appended to the caches of earlier ones.
            Err(_) => self.cache.truncate(self.tokens.len()),
        }
        logits
    }

    /// Samples tokens and decodes them until one ends the sequence.
    fn decode(
        &mut self,
        model: &dyn CausalLm,
        mut logits: Vec<f32>,
        turn: &mut Turn,
        options: &GenerateOptions,
        on_event: OnEvent<'_>,
    ) -> Result<FinishReason, GenerateError> {
        let ends = Ends::new(options, &self.tokenizer);
        let mut decoder =
            CapturedLm::new(model, &mut self.cache, options.method).with_capture(options.capture);
        for step in 0..options.max_new_tokens {
            if ends.cancel.is_cancelled() {
                return Ok(FinishReason::Cancelled);
            }
            // The prompt's logits give the first token. Every other one needs a decode step.
            if step > 0 {
                if self.tokens.len() >= model.context_len() {
                    return Ok(FinishReason::ContextFull);
                }
                let last = turn.sequence[turn.sequence.len() - 1];
                let step = decoder.step(upload(model, &[&[last]]));
                let step = step.map_err(GenerateError::from);
                logits = match step.and_then(|logits| download(logits, model, [1, 1])) {
                    Ok(logits) => logits,
                    Err(error) => {
                        decoder.cache_mut().truncate(self.tokens.len());
                        return Err(error);
                    }
                };
                self.tokens.push(last);
                turn.decode_steps += 1;
            }
            let token = turn.sampler.sample(&mut logits, &turn.sequence)?;
            if let ControlFlow::Break(reason) = turn.take(token, &ends, on_event)? {
                return Ok(reason);
            }
        }
        Ok(FinishReason::MaxNewTokens)
    }
}

/// The state of one call of [`Session::generate`].
struct Turn {
    sampler: Sampler,
    output: Output,
    /// The prompt and the generated tokens.
    sequence: Vec<u32>,
    decode_steps: usize,
    speculative: Option<SpeculativeStats>,
}

impl Turn {
    /// Adds a generated token and sends its text. Breaks if it ends the text.
    fn take(
        &mut self,
        token: u32,
        ends: &Ends<'_>,
        on_event: OnEvent<'_>,
    ) -> Result<ControlFlow<FinishReason>, GenerateError> {
        self.sequence.push(token);
        match ends.eos_ids.contains(&token) {
            true => Ok(ControlFlow::Break(FinishReason::Eos)),
            false => Ok(self.output.push(token, on_event)?),
        }
    }
}

/// The conditions that end a generation beside its text and its length.
struct Ends<'a> {
    eos_ids: &'a [u32],
    cancel: &'a CancelToken,
}

impl<'a> Ends<'a> {
    fn new(options: &'a GenerateOptions, tokenizer: &'a TextTokenizer) -> Self {
        Self {
            eos_ids: options.eos_ids.as_deref().unwrap_or(tokenizer.eos_ids()),
            cancel: &options.cancel,
        }
    }
}

/// Checks the length and the token ids of a prompt.
///
/// # Errors
/// If it is empty, longer than the context, or not in the vocabulary.
pub fn check_prompt(model: &dyn CausalLm, prompt: &[u32]) -> Result<(), GenerateError> {
    let (context, vocab) = (model.context_len(), model.vocab_size());
    if prompt.is_empty() {
        return Err(GenerateError::EmptyPrompt);
    }
    if prompt.len() > context {
        return Err(GenerateError::PromptTooLong {
            context,
            found: prompt.len(),
        });
    }
    match prompt.iter().position(|&id| id as usize >= vocab) {
        Some(position) => Err(GenerateError::UnknownToken {
            vocab,
            found: prompt[position],
            position,
        }),
        None => Ok(()),
    }
}
