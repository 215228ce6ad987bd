//! Greedy decoding on a device that works while the host waits.

use std::ops::ControlFlow;

use burn::tensor::{Int, Tensor};
use sparq::SparqError;

use super::{Ends, FinishReason, GenerateError, GenerateOptions, OnEvent, Session, Turn};
use crate::text::transfer::{download, failed, upload};
use crate::{CapturedLm, CausalLm, MostProbable};

/// Decode steps that are queued on the device, one ahead of the tokens that the host knows.
pub(in crate::text) struct Queue<'q, 'a> {
    pub decoder: &'q mut CapturedLm<'a>,
    /// The steps that may still be queued.
    pub left: usize,
}

/// The result of a queued step.
struct Queued {
    logits: Tensor<3>,
    token: MostProbable,
}

impl Queue<'_, '_> {
    /// Queues the step that reads `token` [1, 1]; `None` if no step is left.
    fn push(&mut self, token: Tensor<2, Int>) -> Result<Option<Queued>, SparqError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let logits = self.decoder.step(token)?;
        let token = MostProbable::of(&logits);
        Ok(Some(Queued { logits, token }))
    }

    /// Takes all steps, from the last token of the sequence on. Returns the reason if one of them
    /// ended it: the cache may then hold the position of one more.
    ///
    /// The device finds each token and goes on with the next step, while the host reads the token
    /// and writes its text.
    pub(super) fn run(
        mut self,
        model: &dyn CausalLm,
        turn: &mut Turn,
        ends: &Ends<'_>,
        on_event: OnEvent<'_>,
    ) -> Result<ControlFlow<FinishReason>, GenerateError> {
        let last = turn.sequence[turn.sequence.len() - 1];
        let mut queued = self.push(upload(model, &[&[last]]))?;
        while let Some(step) = queued {
            if ends.cancel.is_cancelled() {
                return Ok(ControlFlow::Break(FinishReason::Cancelled));
            }
            let next = step.token.ids();
            let (found, pushed) = step.token.read_while(|| self.push(next));
            queued = pushed?;
            let token = match found.map_err(failed)?.first().copied().flatten() {
                Some(token) => token,
                // Without a candidate: the sampler tells why.
                None => {
                    let mut logits = download(step.logits, model, [1, 1])?;
                    turn.sampler.sample(&mut logits, &turn.sequence)?
                }
            };
            turn.decode_steps += 1;
            if let ControlFlow::Break(reason) = turn.take(token, ends, on_event)? {
                return Ok(ControlFlow::Break(reason));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

impl Session {
    /// Takes the most probable tokens, as [`Session::decode`] does, with steps queued ahead.
    pub(super) fn decode_ahead(
        &mut self,
        model: &dyn CausalLm,
        mut logits: Vec<f32>,
        turn: &mut Turn,
        options: &GenerateOptions,
        on_event: OnEvent<'_>,
    ) -> Result<FinishReason, GenerateError> {
        let before = turn.sequence.len();
        let steps = options.max_new_tokens.saturating_sub(1);
        let room = model.context_len().saturating_sub(self.tokens.len());
        let decoder = CapturedLm::new(model, &mut self.cache, options.method);
        let mut decoder = decoder.with_capture(options.capture);
        let ends = Ends::new(options, &self.tokenizer);
        let finish = (|| {
            if options.max_new_tokens == 0 {
                return Ok(FinishReason::MaxNewTokens);
            }
            if ends.cancel.is_cancelled() {
                return Ok(FinishReason::Cancelled);
            }
            let token = turn.sampler.sample(&mut logits, &turn.sequence)?;
            if let ControlFlow::Break(reason) = turn.take(token, &ends, on_event)? {
                return Ok(reason);
            }
            let queue = Queue {
                decoder: &mut decoder,
                left: steps.min(room),
            };
            Ok(match queue.run(model, turn, &ends, on_event)? {
                ControlFlow::Break(reason) => reason,
                ControlFlow::Continue(()) if room < steps => FinishReason::ContextFull,
                ControlFlow::Continue(()) => FinishReason::MaxNewTokens,
            })
        })();
        drop(decoder);
        let read = &turn.sequence[before..before + turn.decode_steps];
        self.tokens.extend_from_slice(read);
        self.cache.truncate(self.tokens.len());
        finish
    }
}
