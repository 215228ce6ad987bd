//! A generation with drafts and their verification.

use std::ops::ControlFlow;

use super::{FinishReason, GenerateError, GenerateOptions, OnEvent, Session, Turn};
use crate::CausalLm;
use crate::text::speculative::{SpeculativeConfig, SpeculativeDecoder, SpeculativeRow};

impl Session {
    /// Samples the first token from the prompt's logits, and decodes further ones with drafts until
    /// one ends the sequence.
    pub(super) fn speculate(
        &mut self,
        model: &dyn CausalLm,
        mut logits: Vec<f32>,
        config: SpeculativeConfig,
        turn: &mut Turn,
        options: &GenerateOptions,
        on_event: OnEvent<'_>,
    ) -> Result<FinishReason, GenerateError> {
        let before = turn.sequence.len();
        let eos_ids = options.eos_ids.as_deref();
        let eos_ids = eos_ids.unwrap_or(self.tokenizer.eos_ids()).to_vec();
        let decoder = SpeculativeDecoder::new(model, &mut self.cache, config)?;
        let mut decoder = decoder.with_capture(options.capture).with_ends(&eos_ids);
        let finish = (|| {
            let mut new = Vec::new();
            let mut generated = 0;
            while generated < options.max_new_tokens {
                if options.cancel.is_cancelled() {
                    return Ok(FinishReason::Cancelled);
                }
                if generated == 0 {
                    new = vec![turn.sampler.sample(&mut logits, &turn.sequence)?];
                } else {
                    if turn.sequence.len() > model.context_len() {
                        return Ok(FinishReason::ContextFull);
                    }
                    let row = SpeculativeRow {
                        sequence: &turn.sequence,
                        sampler: &mut turn.sampler,
                        limit: options.max_new_tokens - generated,
                    };
                    new.extend(decoder.step(&mut [row])?.remove(0));
                }
                for token in new.drain(..) {
                    if options.cancel.is_cancelled() {
                        return Ok(FinishReason::Cancelled);
                    }
                    turn.sequence.push(token);
                    generated += 1;
                    if eos_ids.contains(&token) {
                        return Ok(FinishReason::Eos);
                    }
                    if let ControlFlow::Break(reason) = turn.output.push(token, on_event)? {
                        return Ok(reason);
                    }
                }
            }
            Ok(FinishReason::MaxNewTokens)
        })();
        turn.speculative = Some(*decoder.stats());
        drop(decoder);
        // Accepted tokens after the one that ended the text leave the cache, and the last token of
        // the sequence has not been in it.
        let generated = turn.sequence.len() - before;
        turn.decode_steps = generated.saturating_sub(1);
        self.tokens
            .extend_from_slice(&turn.sequence[before..before + turn.decode_steps]);
        self.cache.truncate(self.tokens.len());
        finish
    }
}
