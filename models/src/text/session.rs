//! Generating text with a model, turn after turn: [`Session`].

use std::{ops::ControlFlow, time::Instant};

use burn::tensor::{Int, Tensor, TensorData};
use sparq::SparqError;

use super::{
    generate::{FinishReason, GenerateError, GenerateEvent, GenerateOptions, Generated},
    output::Output,
    sampler::Sampler,
    tokenizer::TextTokenizer,
};
use crate::{CapturedLm, CausalLm, ModelCache};

/// What hears of a generation's events, and can break it off.
pub(super) type OnEvent<'a> = &'a mut dyn FnMut(GenerateEvent<'_>) -> ControlFlow<()>;

/// A model's cache and the tokens that it holds, kept from one generation to the next.
///
/// Turns of a conversation begin with the same tokens: those that the cache holds already are not read again. What a decode step
/// left in the cache is used as it is: keys and values behind sparse attention differ a little from those that reading the same
/// tokens as a prompt would give, as they do within one generation.
///
/// The cache holds the keys and values of exactly the recorded tokens after every call, whether it succeeded, failed or was cancelled.
#[derive(Debug)]
pub struct Session {
    cache: ModelCache,
    tokenizer: TextTokenizer,
    /// The tokens at the cache's positions. The model's layers need not be asked: a cache without layers has no length.
    tokens: Vec<u32>,
}

impl Session {
    /// A session without tokens around a cache for one sequence, which is cleared.
    pub fn new(mut cache: ModelCache, tokenizer: TextTokenizer) -> Self {
        cache.clear();
        Self {
            cache,
            tokenizer,
            tokens: Vec::new(),
        }
    }

    /// The tokens that the cache holds.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The cache.
    pub fn cache(&self) -> &ModelCache {
        &self.cache
    }

    /// The tokenizer that writes the text.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// Forgets all tokens.
    pub fn clear(&mut self) {
        self.rewind(0);
    }

    /// Reads `prompt_tokens`, as far as the cache does not hold them, and generates what follows.
    ///
    /// The prompt is the whole sequence, earlier turns included. It is read densely; then tokens are chosen one by one,
    /// with decode steps that attend as `options.method` says. `on_event` hears of progress and text, and ends the generation when it breaks.
    ///
    /// # Errors
    /// When the prompt is empty, beyond the model's context or not of its vocabulary; when an option is out of range;
    /// when the model or the tokenizer fails; when logits are NaN.
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
        };

        let started = Instant::now();
        let cached_tokens = self.reuse(prompt_tokens);
        let logits = self.prefill(model, prompt_tokens, options, on_event)?;
        let prefill_time = started.elapsed();
        let prefill_tokens = self.tokens.len() - cached_tokens;
        tracing::debug!(cached_tokens, prefill_tokens, ?prefill_time, "prefill");

        let started = Instant::now();
        let finish = match logits {
            Some(logits) => self.decode(model, logits, &mut turn, options, on_event)?,
            None => FinishReason::Cancelled,
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
            prefill_time,
            decode_time,
        })
    }

    /// Rolls the cache back to what it has in common with the prompt and returns how many tokens that are.
    ///
    /// The last prompt token is always read again: its logits are not kept, and they are what generation begins with.
    fn reuse(&mut self, prompt: &[u32]) -> usize {
        let common = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b);
        let reused = common.count().min(prompt.len() - 1);
        self.rewind(reused);
        reused
    }

    /// Rolls the cache back to the first `len` tokens.
    fn rewind(&mut self, len: usize) {
        self.tokens.truncate(len);
        self.cache.truncate(len);
    }

    /// Reads what the cache lacks of the prompt; the logits behind its last token, or none when cancelled.
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
            // Reading the logits of every piece waits for the device: without it, progress and cancellation would be ahead of the work.
            logits = Some(self.read(model, chunk)?);
            let done = self.tokens.len() - cached;
            if on_event(GenerateEvent::Prefill { done, total }).is_break() {
                return Ok(None);
            }
        }
        Ok(logits)
    }

    /// Chooses tokens and feeds them back until something ends the sequence.
    fn decode(
        &mut self,
        model: &dyn CausalLm,
        mut logits: Vec<f32>,
        turn: &mut Turn,
        options: &GenerateOptions,
        on_event: OnEvent<'_>,
    ) -> Result<FinishReason, GenerateError> {
        let eos_ids = options.eos_ids.clone();
        let eos_ids = eos_ids.unwrap_or_else(|| self.tokenizer.eos_ids().to_vec());
        let mut decoder =
            CapturedLm::new(model, &mut self.cache, options.method).with_capture(options.capture);
        for step in 0..options.max_new_tokens {
            if options.cancel.is_cancelled() {
                return Ok(FinishReason::Cancelled);
            }
            // The first token comes from the prompt's logits; every other from those behind the token before.
            if step > 0 {
                if self.tokens.len() >= model.context_len() {
                    return Ok(FinishReason::ContextFull);
                }
                let last = turn.sequence[turn.sequence.len() - 1];
                let read = decoder.step(upload(model, &[last]));
                logits = match to_host(read, model) {
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
            turn.sequence.push(token);
            if eos_ids.contains(&token) {
                return Ok(FinishReason::Eos);
            }
            if let ControlFlow::Break(reason) = turn.output.push(token, on_event)? {
                return Ok(reason);
            }
        }
        Ok(FinishReason::MaxNewTokens)
    }

    /// Lets the model read tokens as a prompt and returns the logits [vocab] behind the last.
    ///
    /// On an error the cache is rolled back: a model that fails in its third layer has filled two already.
    fn read(&mut self, model: &dyn CausalLm, tokens: &[u32]) -> Result<Vec<f32>, GenerateError> {
        let read = model.prefill(upload(model, tokens), &mut self.cache, 1);
        let logits = to_host(read, model);
        match logits {
            Ok(_) => self.tokens.extend_from_slice(tokens),
            Err(_) => self.cache.truncate(self.tokens.len()),
        }
        logits
    }
}

/// What one call of [`Session::generate`] changes beside the cache.
struct Turn {
    sampler: Sampler,
    output: Output,
    /// The prompt and what was generated.
    sequence: Vec<u32>,
    decode_steps: usize,
}

/// Refuses what the model cannot read.
fn check_prompt(model: &dyn CausalLm, prompt: &[u32]) -> Result<(), GenerateError> {
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

/// Tokens of one sequence as the tensor [1, T] that the model reads.
fn upload(model: &dyn CausalLm, tokens: &[u32]) -> Tensor<2, Int> {
    let ids: Vec<i64> = tokens.iter().map(|&id| i64::from(id)).collect();
    let ids = TensorData::new(ids, [1, tokens.len()]);
    Tensor::from_data(ids, &model.device())
}

/// Brings logits [1, 1, vocab] from the device.
fn to_host(
    logits: Result<Tensor<3>, SparqError>,
    model: &dyn CausalLm,
) -> Result<Vec<f32>, GenerateError> {
    let logits = logits?;
    let (expected, found) = ([1, 1, model.vocab_size()], logits.dims());
    if found != expected {
        return Err(GenerateError::LogitsShape { expected, found });
    }
    logits
        .try_into_vec_as::<f32>()
        .map_err(|error| GenerateError::Device {
            reason: error.to_string(),
        })
}
