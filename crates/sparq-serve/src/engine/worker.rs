//! The engine's thread: [`Worker`], and how it admits requests and reads their prompts.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use sparq::SparqError;
use sparq_models::ModelCache;

use super::Shared;
use super::device::{download, guarded, upload};
use super::memory::Place;
use super::prefix::Kept;
use super::request::{EngineError, Event, Submitted};
use super::sequence::Sequence;
use super::slots::Slots;
use super::step::{Alone, end};

/// The time between two upkeeps of the metrics.
const UPKEEP: Duration = Duration::from_secs(5);

/// A message of a handle to the thread.
pub(super) enum Message {
    Submit(Box<Submitted>),
    Stop,
}

/// A request whose prompt is being read.
pub(super) struct Reading {
    pub submitted: Box<Submitted>,
    pub place: Place,
    cache: ModelCache,
    /// The bytes reserved for it.
    pub bytes: usize,
    /// The tokens in the cache.
    read: usize,
}

/// The state of the thread.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    inbox: mpsc::Receiver<Message>,
    pub(super) waiting: VecDeque<Box<Submitted>>,
    pub(super) reading: VecDeque<Reading>,
    pub(super) slots: Option<Slots>,
    /// The sequences without a slot.
    pub(super) alone: Vec<Alone>,
    pub(super) kept: Kept,
    /// The steps in which the slots were much larger than needed.
    pub(super) oversized: usize,
    stopping: bool,
    last_upkeep: Instant,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, inbox: mpsc::Receiver<Message>) -> Self {
        Self {
            slots: Slots::new(&shared),
            shared,
            inbox,
            waiting: VecDeque::new(),
            reading: VecDeque::new(),
            alone: Vec::new(),
            kept: Kept::default(),
            oversized: 0,
            stopping: false,
            last_upkeep: Instant::now(),
        }
    }

    /// Serves requests until it is told to stop and all admitted ones have ended.
    pub(super) fn run(mut self) {
        while self.receive() {
            self.admit();
            self.read_chunks();
            self.step();
            self.shrink_slots();
            self.report();
        }
    }

    /// Takes what has arrived, and waits for it if there is nothing to do. Returns false at the
    /// end.
    fn receive(&mut self) -> bool {
        loop {
            let is_idle = self.sequences() == 0;
            if is_idle && self.stopping {
                return false;
            }
            let message = match is_idle && self.waiting.is_empty() {
                true => self.inbox.recv().ok(),
                false => match self.inbox.try_recv() {
                    Ok(message) => Some(message),
                    Err(mpsc::TryRecvError::Empty) => return true,
                    Err(mpsc::TryRecvError::Disconnected) => None,
                },
            };
            match message {
                Some(Message::Submit(submitted)) if self.stopping => {
                    self.leave_queue();
                    submitted.reply.send(Event::Failed(EngineError::Stopping));
                }
                Some(Message::Submit(submitted)) => self.waiting.push_back(submitted),
                Some(Message::Stop) => self.stop(),
                // Every handle is gone.
                None => match is_idle {
                    true => return false,
                    false => return true,
                },
            }
        }
    }

    fn stop(&mut self) {
        self.stopping = true;
        for submitted in std::mem::take(&mut self.waiting) {
            self.leave_queue();
            submitted.reply.send(Event::Failed(EngineError::Stopping));
        }
    }

    fn leave_queue(&self) {
        self.shared.queued.fetch_sub(1, Ordering::SeqCst);
    }

    /// Moves requests from the queue to the prompts being read, in order of arrival.
    fn admit(&mut self) {
        let cancelled = |submitted: &Submitted| submitted.reply.is_cancelled();
        let before = self.waiting.len();
        self.waiting.retain(|submitted| !cancelled(submitted));
        for _ in self.waiting.len()..before {
            self.leave_queue();
            self.shared.metrics.cancelled.increment(1);
        }
        while let Some(submitted) = self.waiting.front() {
            let in_batch =
                self.sequences() + submitted.request.choices <= self.shared.config.max_batch;
            let Some((place, extent)) = self.place(submitted).filter(|_| in_batch) else {
                return;
            };
            if let Some(submitted) = self.waiting.pop_front() {
                self.leave_queue();
                self.resize(extent);
                self.begin(submitted, place);
            }
        }
    }

    /// Makes the cache of a prompt, with what is known of it.
    fn begin(&mut self, submitted: Box<Submitted>, place: Place) {
        let (positions, bytes) = match (place, &self.slots) {
            (Place::Slots, Some(slots)) => {
                let positions = slots.limits().stepped(submitted.request.prompt.len());
                (positions, self.prompt_bytes(&submitted))
            }
            _ => (submitted.positions(), submitted.all_bytes()),
        };
        self.kept.shrink(self.room().saturating_sub(bytes));
        self.give_back_memory();
        let Shared {
            model,
            config,
            metrics,
            ..
        } = &*self.shared;
        metrics.queue_time.record(submitted.arrived.elapsed());
        let prompt = &submitted.request.prompt;
        let kept = &mut self.kept;
        let rows = submitted.request.decoding.cache_method().rows();
        let begun = guarded(|| kept.begin(&**model, config.dtype, rows, prompt, positions));
        match begun {
            Ok((cache, cached)) => {
                metrics.prompt_tokens.increment(prompt.len() as u64);
                metrics.prefix_queries.increment(prompt.len() as u64);
                metrics.prefix_hits.increment(cached as u64);
                submitted.reply.send(Event::Prompt { cached });
                self.reading.push_back(Reading {
                    submitted,
                    place,
                    cache,
                    bytes,
                    read: cached,
                });
            }
            Err(error) => self.fail(&submitted, error),
        }
    }

    fn fail(&self, submitted: &Submitted, error: EngineError) {
        self.shared.metrics.failed.increment(1);
        tracing::error!("a request failed: {error}");
        submitted.reply.send(Event::Failed(error));
    }

    /// Reads a chunk of the prompt whose turn it is, and as many more as are no longer together.
    ///
    /// The limits of the chunks of a prompt do not depend on other prompts, so that its sums do not
    /// either.
    fn read_chunks(&mut self) {
        let chunk = self.shared.config.prefill_chunk;
        let mut left = chunk;
        while let Some(reading) = self.reading.pop_front() {
            let next = chunk.min(reading.submitted.request.prompt.len() - reading.read);
            if next > left {
                return self.reading.push_front(reading);
            }
            left -= next;
            self.read_chunk(reading);
        }
    }

    /// Reads a chunk of a prompt.
    fn read_chunk(&mut self, mut reading: Reading) {
        if reading.submitted.reply.is_cancelled() {
            self.shared.metrics.cancelled.increment(1);
            return;
        }
        let (model, chunk) = (&*self.shared.model, self.shared.config.prefill_chunk);
        let prompt = &reading.submitted.request.prompt;
        let end = prompt.len().min(reading.read + chunk);
        let (tokens, is_last) = (&prompt[reading.read..end], end == prompt.len());
        let cache = &mut reading.cache;
        let logits = guarded(|| {
            let logits = model.prefill(upload(model, tokens, [1, tokens.len()]), cache, 1)?;
            // Waiting for every chunk keeps the device's queue short: a step comes next.
            download(logits, model, 1)
        });
        match logits {
            Ok(logits) if is_last => {
                let (submitted, place) = (&reading.submitted, reading.place);
                if let Err(error) = self.start(submitted, place, reading.cache, &logits) {
                    self.fail(submitted, error);
                }
            }
            Ok(_) => {
                reading.read = end;
                self.reading.push_back(reading);
            }
            Err(error) => self.fail(&reading.submitted, error),
        }
    }

    /// Begins the answers to a prompt that has been read, with its last logits [vocab].
    fn start(
        &mut self,
        submitted: &Submitted,
        place: Place,
        prompt: ModelCache,
        logits: &[f32],
    ) -> Result<(), EngineError> {
        let request = &submitted.request;
        let mut cache = guarded(|| prompt.for_method(&request.decoding.cache_method()))?;
        // The first append would otherwise copy the buffers that both share.
        drop(prompt);
        guarded(|| {
            cache.finish_prompt();
            Ok::<_, SparqError>(())
        })?;
        let metrics = &self.shared.metrics;
        metrics.first_token_time.record(submitted.arrived.elapsed());
        let (mut going, mut ended) = (Vec::new(), Vec::new());
        for choice in 0..request.choices {
            let mut sequence = Sequence::new(&self.shared, submitted, choice)?;
            match sequence.accept(&mut logits.to_vec())? {
                None => going.push(sequence),
                Some(finish) => ended.push((sequence, finish)),
            }
        }
        match (place, going.is_empty()) {
            (_, true) => {}
            (Place::Slots, false) => self.join(going, &cache)?,
            (Place::Alone, false) => {
                let bytes = submitted.bytes;
                let alone = |sequence| Alone {
                    sequence,
                    cache: cache.clone(),
                    bytes,
                };
                self.alone.extend(going.into_iter().map(alone));
            }
        }
        for (mut sequence, finish) in ended {
            if end(&self.shared, &mut sequence, Ok(finish)) {
                self.keep(&sequence, &cache);
            }
        }
        Ok(())
    }

    /// Moves the answers to a prompt to slots.
    fn join(&mut self, sequences: Vec<Sequence>, prompt: &ModelCache) -> Result<(), EngineError> {
        self.finish_queued();
        let Some(slots) = &mut self.slots else {
            return Ok(());
        };
        if let Err(lost) = slots.make_room() {
            let error = lost.error.clone();
            self.lose(lost);
            return Err(error);
        }
        slots.join(sequences, prompt)
    }

    /// Updates the gauges.
    fn report(&mut self) {
        if self.last_upkeep.elapsed() > UPKEEP {
            self.last_upkeep = Instant::now();
            self.shared.metrics.run_upkeep();
        }
        let Shared {
            metrics, config, ..
        } = &*self.shared;
        metrics.running.set(self.sequences() as f64);
        let queued = self.shared.queued.load(Ordering::SeqCst);
        metrics.waiting.set(queued as f64);
        metrics.set_cache(self.reserved(), self.kept.bytes(), config.cache_bytes);
    }
}
