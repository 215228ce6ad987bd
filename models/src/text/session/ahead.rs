//! Greedy decoding on a device that works while the host waits.

use std::ops::ControlFlow;

use burn::tensor::{Int, Tensor};
use sparq::SparqError;

use super::{
    FinishReason, GenerateError, GenerateOptions, OnEvent, Session, Turn, download, upload,
};
use crate::{CapturedLm, CausalLm, MostProbable};

/// Decode steps that are queued on the device, one ahead of the tokens that the host knows.
struct Queue<'a> {
    decoder: CapturedLm<'a>,
    /// The steps that may still be queued.
    left: usize,
}

/// The result of a queued step.
struct Queued {
    logits: Tensor<3>,
    token: MostProbable,
}

impl Queue<'_> {
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
}

impl Session {
    /// Takes the most probable tokens, as [`Session::decode`] does. The device finds them and goes
    /// on with the next step, while the host reads a token and writes its text.
    ///
    /// A step is queued before its token is known to end the text. Its position is removed at the
    /// end.
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
        let mut queue = Queue {
            decoder: CapturedLm::new(model, &mut self.cache, options.method)
                .with_capture(options.capture),
            left: steps.min(room),
        };
        let eos_ids = options.eos_ids.as_deref();
        let eos_ids = eos_ids.unwrap_or(self.tokenizer.eos_ids());
        let finish = (|| {
            if options.max_new_tokens == 0 {
                return Ok(FinishReason::MaxNewTokens);
            }
            let mut token = turn.sampler.sample(&mut logits, &turn.sequence)?;
            let mut queued = queue.push(upload(model, &[token]))?;
            loop {
                if options.cancel.is_cancelled() {
                    return Ok(FinishReason::Cancelled);
                }
                turn.sequence.push(token);
                if eos_ids.contains(&token) {
                    return Ok(FinishReason::Eos);
                }
                if let ControlFlow::Break(reason) = turn.output.push(token, on_event)? {
                    return Ok(reason);
                }
                let Some(step) = queued else {
                    return Ok(match turn.decode_steps == steps {
                        true => FinishReason::MaxNewTokens,
                        false => FinishReason::ContextFull,
                    });
                };
                let next = step.token.ids();
                let (found, pushed) = step.token.read_while(|| queue.push(next));
                queued = pushed?;
                let found = found.map_err(|error| GenerateError::Device {
                    reason: error.to_string(),
                })?;
                token = match found.first().copied().flatten() {
                    Some(token) => token,
                    None => {
                        let mut logits = download(Ok(step.logits), model)?;
                        turn.sampler.sample(&mut logits, &turn.sequence)?
                    }
                };
                turn.decode_steps += 1;
            }
        })();
        drop(queue);
        let read = &turn.sequence[before..before + turn.decode_steps];
        self.tokens.extend_from_slice(read);
        self.cache.truncate(self.tokens.len());
        finish
    }
}
