//! The engine's thread: [`Worker`], and how it admits requests and reads their prompts.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use sparq::SparqError;
use sparq_models::ModelCache;

use super::Shared;
use super::device::{download, guarded, upload};
use super::extent::Extent;
use super::prefix::Kept;
use super::request::{EngineError, Event, Submitted};
use super::sequence::Sequence;
use super::slots::{Lost, Slots};
use super::step::{Alone, end};

/// The time between two upkeeps of the metrics.
const UPKEEP: Duration = Duration::from_secs(5);

/// The steps after which slots that are not needed are given back.
const PATIENCE: usize = 128;

/// A message of a handle to the thread.
pub(super) enum Message {
    Submit(Box<Submitted>),
    Stop,
}

/// Where the answers to a request will decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In slots.
    Slots,
    /// In caches of their own.
    Alone,
}

/// A request whose prompt is being read.
struct Reading {
    submitted: Box<Submitted>,
    place: Place,
    cache: ModelCache,
    /// The bytes reserved for it.
    bytes: usize,
    /// The tokens in the cache.
    read: usize,
}

/// The state of the thread.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    inbox: mpsc::Receiver<Message>,
    waiting: VecDeque<Box<Submitted>>,
    reading: VecDeque<Reading>,
    pub(super) slots: Option<Slots>,
    /// The sequences without a slot.
    pub(super) alone: Vec<Alone>,
    pub(super) kept: Kept,
    /// The steps in which the slots were much larger than needed.
    oversized: usize,
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

    /// Returns where the answers to a request can decode, and the extent of the slots then; `None`
    /// while there is no room.
    ///
    /// A request that memory has no slots for gets caches of its own. It waits if only the prompts
    /// that are being read are in the way, which move to their slots.
    fn place(&self, submitted: &Submitted) -> Option<(Place, Extent)> {
        let available = self.shared.config.cache_bytes;
        let (prompts, others): (Vec<&Reading>, Vec<&Reading>) = self
            .reading
            .iter()
            .partition(|reading| reading.place == Place::Slots);
        let bytes = |readings: &[&Reading]| readings.iter().map(|one| one.bytes).sum::<usize>();
        let alone = self.alone.iter().map(|alone| alone.bytes).sum::<usize>() + bytes(&others);
        let Some(slots) = &self.slots else {
            let fits = alone + submitted.all_bytes() <= available;
            return fits.then_some((Place::Alone, Extent::default()));
        };
        let (now, demand) = (slots.extent(), self.demand());
        let plan = |demand, taken| {
            let left = available.checked_sub(taken)?;
            slots.limits().plan(now, demand, left)
        };
        if slots.takes(submitted.request.decoding) {
            let demand = Extent {
                slots: demand.slots + submitted.request.choices,
                positions: demand.positions.max(submitted.positions()),
            };
            let own = alone + self.prompt_bytes(submitted);
            if let Some(extent) = plan(demand, own + bytes(&prompts)) {
                return Some((Place::Slots, extent));
            }
            if !prompts.is_empty() && plan(demand, own).is_some() {
                return None;
            }
        }
        let extent = plan(demand, alone + bytes(&prompts) + submitted.all_bytes())?;
        Some((Place::Alone, extent))
    }

    /// The slots that admitted requests need.
    fn demand(&self) -> Extent {
        let running = self.slots.as_ref().map(Slots::demand);
        let prompts = self
            .reading
            .iter()
            .filter(|reading| reading.place == Place::Slots);
        prompts.fold(running.unwrap_or_default(), |all, reading| Extent {
            slots: all.slots + reading.submitted.request.choices,
            positions: all.positions.max(reading.submitted.positions()),
        })
    }

    /// The bytes of the cache in which a prompt is read that moves to a slot then.
    fn prompt_bytes(&self, submitted: &Submitted) -> usize {
        let bytes = |slots: &Slots| {
            let limits = slots.limits();
            limits
                .size
                .bytes(limits.stepped(submitted.request.prompt.len()))
        };
        self.slots.as_ref().map_or(0, bytes)
    }

    /// Sets the extent of the slots.
    fn resize(&mut self, extent: Extent) {
        self.finish_queued();
        let resized = self.slots.as_mut().map(|slots| slots.set_target(extent));
        if let Some(Err(lost)) = resized {
            self.lose(lost);
        }
        self.shrink_kept();
    }

    /// Gives slots back that have not been needed for long, or if nothing runs.
    fn shrink_slots(&mut self) {
        let demand = self.demand();
        let Some(slots) = &self.slots else { return };
        let target = slots.target();
        if demand.slots == 0 && self.waiting.is_empty() {
            if target.slots > 1 {
                self.resize(Extent { slots: 1, ..target });
            }
            return;
        }
        let shrunk = slots.limits().shrunk(target, demand);
        self.oversized = if shrunk.is_some() {
            self.oversized + 1
        } else {
            0
        };
        if let Some(extent) = shrunk
            && self.oversized > PATIENCE
        {
            self.oversized = 0;
            self.resize(extent);
        }
    }

    /// Keeps as much for later prompts as the memory has room for.
    pub(super) fn shrink_kept(&mut self) {
        self.kept.shrink(self.room());
    }

    /// The bytes that are not reserved.
    pub(super) fn room(&self) -> usize {
        let available = self.shared.config.cache_bytes;
        available.saturating_sub(self.reserved())
    }

    pub(super) fn lose(&self, Lost { sequences, error }: Lost) {
        tracing::error!("the cache of the slots is lost: {error}");
        for sequence in sequences {
            self.shared.metrics.failed.increment(1);
            sequence.fail(error.clone());
        }
    }

    /// Returns whether the next step of the slots is likely to have the same sequences as this one.
    pub(super) fn is_steady(&self) -> bool {
        let queued = self.shared.queued.load(Ordering::SeqCst);
        queued == 0 && self.reading.is_empty() && self.alone.is_empty()
    }

    /// Returns whether no sequence decodes in a slot and no prompt is being read.
    pub(super) fn none_beside(&self) -> bool {
        let in_slots = self.slots.as_ref().map_or(0, |slots| slots.demand().slots);
        in_slots == 0 && self.reading.is_empty()
    }

    /// The sequences that decode, or will when their prompts are read.
    fn sequences(&self) -> usize {
        let reading = self.reading.iter();
        let reading = reading.map(|reading| reading.submitted.request.choices);
        let in_slots = self.slots.as_ref().map_or(0, |slots| slots.demand().slots);
        self.alone.len() + in_slots + reading.sum::<usize>()
    }

    /// The bytes reserved for caches, apart from those kept.
    fn reserved(&self) -> usize {
        let reading = self.reading.iter().map(|reading| reading.bytes);
        let alone = self.alone.iter().map(|alone| alone.bytes);
        let slots = self.slots.as_ref().map(Slots::bytes);
        reading.chain(alone).chain(slots).sum()
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
        let Shared {
            model,
            config,
            metrics,
            ..
        } = &*self.shared;
        metrics.queue_time.record(submitted.arrived.elapsed());
        let prompt = &submitted.request.prompt;
        let kept = &mut self.kept;
        let begun = guarded(|| kept.begin(&**model, config.dtype, prompt, positions));
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
