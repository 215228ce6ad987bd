//! Decode steps of all sequences, in slots and alone, and the ends of answers.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sparq::SparqError;
use sparq_models::{CausalLm, ModelCache, SequenceStep};

use super::device::{caught, download, guarded, upload};
use super::request::EngineError;
use super::sequence::Sequence;
use super::slots::Slots;
use super::worker::Worker;
use super::{Finish, Shared};

/// A sequence with a cache of its own.
pub(super) struct Alone {
    pub sequence: Sequence,
    pub cache: ModelCache,
    /// The reserved bytes of the cache.
    pub bytes: usize,
}

impl Worker {
    /// Takes a decode step of all sequences.
    pub(super) fn step(&mut self) {
        self.step_slots(true);
        let alone = std::mem::take(&mut self.alone);
        let (cancelled, running): (Vec<_>, Vec<_>) = alone
            .into_iter()
            .partition(|one| one.sequence.is_cancelled());
        let metrics = &self.shared.metrics;
        metrics.cancelled.increment(cancelled.len() as u64);
        if !running.is_empty() {
            self.step_alone(running);
        }
        for one in cancelled {
            self.keep(&one.sequence, &one.cache);
        }
    }

    /// Takes a step of the sequences in slots, and gives the device the next one if `ahead` and
    /// nothing else waits for it.
    fn step_slots(&mut self, ahead: bool) {
        self.drop_cancelled();
        let ahead = ahead && self.is_steady();
        let Some(slots) = &mut self.slots else { return };
        if slots.active().is_empty() {
            return;
        }
        let mut rows = match slots.step(ahead) {
            Ok(rows) => rows,
            Err(error) => return self.dissolve_slots(&error),
        };
        let mut ended = Vec::new();
        for slot in rows.slots.clone() {
            match slots.accept(slot, &mut rows) {
                Ok(None) => {}
                Ok(Some(finish)) => ended.push((slot, Ok(finish))),
                Err(error) => ended.push((slot, Err(error))),
            }
        }
        for (slot, finish) in ended {
            let sequence = self.slots.as_mut().and_then(|slots| slots.sequence(slot));
            if sequence.is_some_and(|sequence| end(&self.shared, sequence, finish)) {
                self.keep_slot(slot);
            }
            self.leave_slot(slot);
        }
    }

    /// Takes the step that the device has been given already.
    pub(super) fn finish_queued(&mut self) {
        if self.slots.as_ref().is_some_and(Slots::has_queued) {
            self.step_slots(false);
        }
    }

    /// Ends the sequences in slots whose clients have left.
    fn drop_cancelled(&mut self) {
        let active = self.slots.as_ref().map(|slots| slots.active());
        for slot in active.unwrap_or_default() {
            let sequence = self.slots.as_mut().and_then(|slots| slots.sequence(slot));
            if sequence.is_some_and(|sequence| sequence.is_cancelled()) {
                self.shared.metrics.cancelled.increment(1);
                self.keep_slot(slot);
                self.leave_slot(slot);
            }
        }
    }

    fn leave_slot(&mut self, slot: usize) {
        if let Some(slots) = &mut self.slots {
            slots.leave(slot);
        }
    }

    /// After a failed step: one sequence may be at fault, and each takes the step alone.
    fn dissolve_slots(&mut self, error: &EngineError) {
        tracing::warn!("a step of all slots failed, each goes on by itself: {error}");
        let Some(slots) = &mut self.slots else { return };
        let bytes_of = slots.limits().size;
        let (sequences, lost) = slots.dissolve();
        for (sequence, cache) in sequences {
            self.alone.push(Alone {
                bytes: bytes_of.bytes(sequence.positions()),
                sequence,
                cache,
            });
        }
        if let Some(lost) = lost {
            self.lose(lost);
        }
    }

    /// Takes a step of sequences that have a cache each.
    fn step_alone(&mut self, mut running: Vec<Alone>) {
        let shared = Arc::clone(&self.shared);
        if let ([only], true) = (&mut running[..], self.none_beside())
            && let Some(config) = only.sequence.drafts()
        {
            // Alone, until another request comes.
            shared.metrics.running.set(1.0);
            let none_waits = || shared.queued.load(Ordering::SeqCst) == 0;
            let Alone {
                sequence, cache, ..
            } = only;
            let finish = caught(|| sequence.speculate(&shared, cache, config, none_waits));
            for only in running {
                self.settle(only, finish.clone());
            }
            return;
        }
        match step_of(&*shared.model, &mut running) {
            Ok(mut logits) => {
                let rows = logits.chunks_mut(shared.model.vocab_size());
                for (one, logits) in running.into_iter().zip(rows) {
                    self.take(one, logits);
                }
            }
            // One sequence may be at fault: each takes the step by itself.
            Err(_) if running.len() > 1 => {
                for mut one in running {
                    match step_of(&*shared.model, std::slice::from_mut(&mut one)) {
                        Ok(mut logits) => self.take(one, &mut logits),
                        Err(error) => self.settle(one, Err(error)),
                    }
                }
            }
            Err(error) => {
                for one in running {
                    self.settle(one, Err(error.clone()));
                }
            }
        }
    }

    /// Gives a sequence the logits [vocab] of its step.
    fn take(&mut self, mut one: Alone, logits: &mut [f32]) {
        one.sequence.count_step(&one.cache, &self.shared.metrics);
        let finish = one.sequence.accept(logits);
        self.settle(one, finish);
    }

    /// Puts a sequence back into the batch, or ends it.
    fn settle(&mut self, mut one: Alone, finish: Result<Option<Finish>, EngineError>) {
        let ended = match finish {
            Ok(None) => return self.alone.push(one),
            Ok(Some(finish)) => end(&self.shared, &mut one.sequence, Ok(finish)),
            Err(error) => end(&self.shared, &mut one.sequence, Err(error)),
        };
        if ended {
            self.keep(&one.sequence, &one.cache);
        }
    }

    /// Keeps the keys and values of a sequence for later prompts.
    pub(super) fn keep(&mut self, sequence: &Sequence, cache: &ModelCache) {
        let tokens = sequence.reusable();
        if let Some(tokens) = tokens.filter(|tokens| self.kept.wants(tokens, cache)) {
            let kept = &mut self.kept;
            if let Err(error) = guarded(|| kept.keep(tokens, cache)) {
                tracing::warn!("keys and values cannot be kept: {error}");
            }
        }
        self.shrink_kept();
    }

    /// Keeps a copy of the keys and values in a slot, if there is room for it beside the slots.
    fn keep_slot(&mut self, slot: usize) {
        let room = self.room();
        let Some(slots) = &mut self.slots else { return };
        let tokens = slots.sequence(slot).and_then(|one| one.reusable());
        let Some((tokens, cache)) = tokens.zip(slots.cache()) else {
            return;
        };
        let bytes = slots.limits().size.bytes(tokens.len());
        if bytes > room || !self.kept.wants(&tokens, cache) {
            return;
        }
        self.kept.shrink(room - bytes);
        let kept = &mut self.kept;
        let copied = guarded(|| match slots.copy_of(slot)? {
            Some(copy) => kept.keep(tokens, &copy),
            None => Ok(()),
        });
        if let Err(error) = copied {
            tracing::warn!("keys and values cannot be kept: {error}");
        }
    }
}

/// Ends an answer. Returns whether its cache is of use.
pub(super) fn end(
    shared: &Shared,
    sequence: &mut Sequence,
    finish: Result<Finish, EngineError>,
) -> bool {
    let metrics = &shared.metrics;
    match finish {
        Ok(finish) => {
            let tokens = sequence.generated() as u64;
            metrics.generated_tokens.increment(tokens);
            metrics.request_time.record(sequence.arrived.elapsed());
            shared.request_time.add(sequence.arrived.elapsed());
            let finish = sequence.end(finish);
            metrics.finished(finish).increment(1);
            true
        }
        Err(error) => {
            metrics.failed.increment(1);
            tracing::error!("a request failed: {error}");
            sequence.fail(error);
            false
        }
    }
}

/// Takes a step of some sequences and returns the logits [sequences, vocab]. After an error the
/// caches are as before.
fn step_of(model: &dyn CausalLm, running: &mut [Alone]) -> Result<Vec<f32>, EngineError> {
    let tokens: Vec<u32> = running.iter().map(|one| one.sequence.next()).collect();
    let logits = guarded(|| {
        let rows = running.iter_mut().map(|one| SequenceStep {
            method: one.sequence.step_method(),
            cache: &mut one.cache,
        });
        let mut rows: Vec<_> = rows.collect();
        let logits = model.decode_each(upload(model, &tokens, [tokens.len(), 1]), &mut rows)?;
        download(logits, model, tokens.len())
    });
    if logits.is_err() {
        guarded(|| {
            for one in running {
                one.cache.truncate(one.sequence.cached());
            }
            Ok::<_, SparqError>(())
        })?;
    }
    logits
}
