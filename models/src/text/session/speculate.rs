//! A generation with drafts and their verification.

use std::{ops::ControlFlow, time::Instant};

use sparq::ops;

use super::{Ends, FinishReason, GenerateError, GenerateOptions, OnEvent, Session, Turn};
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
        let ends = Ends::new(options, &self.tokenizer);
        let decoder = SpeculativeDecoder::new(model, &mut self.cache, config)?;
        let decoder = decoder.with_capture(options.capture);
        let mut decoder = decoder.with_ends(ends.eos_ids);
        let queues = turn.sampler.is_argmax() && ops::has_kernels(&model.device());
        let finish = (|| {
            let mut new = Vec::new();
            while turn.sequence.len() < before + options.max_new_tokens {
                if ends.cancel.is_cancelled() {
                    return Ok(FinishReason::Cancelled);
                }
                let limit = before + options.max_new_tokens - turn.sequence.len();
                let room = (model.context_len() + 1).saturating_sub(turn.sequence.len());
                if turn.sequence.len() == before {
                    new = vec![turn.sampler.sample(&mut logits, &turn.sequence)?];
                } else if room == 0 {
                    return Ok(FinishReason::ContextFull);
                } else if queues && let Some(queue) = decoder.queue(limit.min(room)) {
                    let (started, steps) = (Instant::now(), turn.decode_steps);
                    let ended = queue.run(model, turn, &ends, on_event)?;
                    decoder.note_dense(turn.decode_steps - steps, started.elapsed());
                    if let ControlFlow::Break(reason) = ended {
                        return Ok(reason);
                    }
                } else {
                    let row = SpeculativeRow {
                        sequence: &turn.sequence,
                        sampler: &mut turn.sampler,
                        limit,
                    };
                    new.extend(decoder.step(&mut [row])?.remove(0));
                }
                for token in new.drain(..) {
                    if ends.cancel.is_cancelled() {
                        return Ok(FinishReason::Cancelled);
                    }
                    if let ControlFlow::Break(reason) = turn.take(token, &ends, on_event)? {
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
