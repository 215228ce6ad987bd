//! The engine's thread: [`Worker`].

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use burn::tensor::{Int, Tensor, TensorData};
use sparq::SparqError;
use sparq_models::{CausalLm, ModelCache, SequenceStep};

use super::prefix::Kept;
use super::request::{EngineError, Event, Submitted};
use super::sequence::Sequence;
use super::{Finish, Shared};

/// The time between two upkeeps of the metrics.
const UPKEEP: Duration = Duration::from_secs(5);

/// A message of a handle to the thread.
pub(super) enum Message {
    Submit(Box<Submitted>),
    Stop,
}

/// A request whose prompt is being read.
struct Reading {
    submitted: Box<Submitted>,
    cache: ModelCache,
    /// The tokens in the cache.
    read: usize,
}

/// The state of the thread.
pub(super) struct Worker {
    shared: Arc<Shared>,
    inbox: mpsc::Receiver<Message>,
    waiting: VecDeque<Box<Submitted>>,
    reading: VecDeque<Reading>,
    running: Vec<Sequence>,
    kept: Kept,
    stopping: bool,
    last_upkeep: Instant,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, inbox: mpsc::Receiver<Message>) -> Self {
        Self {
            shared,
            inbox,
            waiting: VecDeque::new(),
            reading: VecDeque::new(),
            running: Vec::new(),
            kept: Kept::default(),
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
            self.report();
        }
    }

    /// Takes what has arrived, and waits for it if there is nothing to do. Returns false at the
    /// end.
    fn receive(&mut self) -> bool {
        loop {
            let is_idle = self.reading.is_empty() && self.running.is_empty();
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
            let config = &self.shared.config;
            let in_batch = self.sequences() + submitted.request.choices <= config.max_batch;
            let reserved = self.reserved() + submitted.all_bytes();
            if !in_batch || reserved > config.cache_bytes {
                return;
            }
            self.kept.shrink(config.cache_bytes - reserved);
            if let Some(submitted) = self.waiting.pop_front() {
                self.leave_queue();
                self.begin(submitted);
            }
        }
    }

    /// The sequences that decode, or will when their prompts are read.
    fn sequences(&self) -> usize {
        let reading = self.reading.iter();
        let reading = reading.map(|reading| reading.submitted.request.choices);
        self.running.len() + reading.sum::<usize>()
    }

    /// The bytes reserved for caches, apart from those kept.
    fn reserved(&self) -> usize {
        let reading = self.reading.iter();
        let reading = reading.map(|reading| reading.submitted.all_bytes());
        let running = self.running.iter().map(|sequence| sequence.bytes);
        reading.chain(running).sum()
    }

    /// Makes the cache of a prompt, with what is known of it.
    fn begin(&mut self, submitted: Box<Submitted>) {
        let Shared {
            model,
            config,
            metrics,
            ..
        } = &*self.shared;
        metrics.queue_time.record(submitted.arrived.elapsed());
        let (prompt, positions) = (&submitted.request.prompt, submitted.positions());
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
                    cache,
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
                if let Err(error) = self.start(&reading.submitted, reading.cache, &logits) {
                    self.fail(&reading.submitted, error);
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
        let mut caches = vec![cache.clone(); request.choices - 1];
        caches.push(cache);
        let mut started = Vec::new();
        for (choice, cache) in caches.into_iter().enumerate() {
            let mut sequence = Sequence::new(&self.shared, submitted, choice, cache)?;
            let finish = sequence.accept(&mut logits.to_vec())?;
            started.push((sequence, finish));
        }
        for (sequence, finish) in started {
            self.settle(sequence, Ok(finish));
        }
        Ok(())
    }

    /// Puts a sequence back into the batch, or ends it.
    fn settle(&mut self, mut sequence: Sequence, finish: Result<Option<Finish>, EngineError>) {
        let metrics = &self.shared.metrics;
        match finish {
            Ok(None) => return self.running.push(sequence),
            Ok(Some(finish)) => {
                metrics
                    .generated_tokens
                    .increment(sequence.generated() as u64);
                metrics.request_time.record(sequence.arrived.elapsed());
                self.shared.request_time.add(sequence.arrived.elapsed());
                let finish = sequence.end(finish);
                metrics.finished(finish).increment(1);
            }
            Err(error) => {
                metrics.failed.increment(1);
                tracing::error!("a request failed: {error}");
                return sequence.fail(error);
            }
        }
        self.keep(&sequence);
    }

    /// Keeps the keys and values of a sequence for later prompts.
    fn keep(&mut self, sequence: &Sequence) {
        let Some((tokens, len)) = sequence.reusable() else {
            return;
        };
        let kept = &mut self.kept;
        if let Err(error) = guarded(|| kept.keep(tokens, &sequence.cache, len)) {
            tracing::warn!("keys and values cannot be kept: {error}");
        }
        let reserved = self.reserved();
        let room = self.shared.config.cache_bytes.saturating_sub(reserved);
        self.kept.shrink(room);
    }

    /// Takes a decode step of all sequences.
    fn step(&mut self) {
        let running = std::mem::take(&mut self.running);
        let (cancelled, mut running): (Vec<_>, Vec<_>) =
            running.into_iter().partition(Sequence::is_cancelled);
        self.shared
            .metrics
            .cancelled
            .increment(cancelled.len() as u64);
        if running.is_empty() {
            cancelled.iter().for_each(|sequence| self.keep(sequence));
            return;
        }
        let shared = Arc::clone(&self.shared);
        if let ([only], true) = (&mut running[..], self.reading.is_empty())
            && let Some(config) = only.drafts()
        {
            // Alone, until another request comes.
            shared.metrics.running.set(1.0);
            let none_waits = || shared.queued.load(Ordering::SeqCst) == 0;
            let finish = caught(|| only.speculate(&shared, config, none_waits));
            running
                .into_iter()
                .for_each(|only| self.settle(only, finish.clone()));
            cancelled.iter().for_each(|sequence| self.keep(sequence));
            return;
        }
        let logits = step_of(&*shared.model, &mut running);
        match logits {
            Ok(mut logits) => {
                let rows = logits.chunks_mut(shared.model.vocab_size());
                for (sequence, logits) in running.into_iter().zip(rows) {
                    self.take(sequence, logits);
                }
            }
            // One sequence may be at fault: each takes the step alone.
            Err(_) if running.len() > 1 => {
                for mut sequence in running {
                    match step_of(&*shared.model, std::slice::from_mut(&mut sequence)) {
                        Ok(mut logits) => self.take(sequence, &mut logits),
                        Err(error) => self.settle(sequence, Err(error)),
                    }
                }
            }
            Err(error) => {
                for sequence in running {
                    self.settle(sequence, Err(error.clone()));
                }
            }
        }
        cancelled.iter().for_each(|sequence| self.keep(sequence));
    }

    /// Gives a sequence the logits [vocab] of its step.
    fn take(&mut self, mut sequence: Sequence, logits: &mut [f32]) {
        sequence.count_step();
        let metrics = &self.shared.metrics;
        metrics.token_time.record(sequence.last.elapsed());
        sequence.last = Instant::now();
        let finish = sequence.accept(logits);
        self.settle(sequence, finish);
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

/// Takes a step of some sequences and returns the logits [sequences, vocab]. After an error the
/// caches are as before.
fn step_of(model: &dyn CausalLm, sequences: &mut [Sequence]) -> Result<Vec<f32>, EngineError> {
    let tokens: Vec<u32> = sequences.iter().map(Sequence::next).collect();
    let lengths: Vec<usize> = sequences
        .iter()
        .map(|sequence| sequence.cache.len())
        .collect();
    let logits = guarded(|| {
        let rows = sequences.iter_mut().map(|sequence| SequenceStep {
            method: sequence.step_method(),
            cache: &mut sequence.cache,
        });
        let mut rows: Vec<_> = rows.collect();
        let logits = model.decode_each(upload(model, &tokens, [tokens.len(), 1]), &mut rows)?;
        download(logits, model, tokens.len())
    });
    if logits.is_err() {
        guarded(|| {
            for (sequence, len) in sequences.iter_mut().zip(lengths) {
                sequence.cache.truncate(len);
            }
            Ok::<_, SparqError>(())
        })?;
    }
    logits
}

/// Copies tokens to the device.
fn upload(model: &dyn CausalLm, tokens: &[u32], shape: [usize; 2]) -> Tensor<2, Int> {
    let ids: Vec<i64> = tokens.iter().map(|&id| i64::from(id)).collect();
    Tensor::from_data(TensorData::new(ids, shape), &model.device())
}

/// Copies logits [rows, 1, vocab] from the device.
fn download(logits: Tensor<3>, model: &dyn CausalLm, rows: usize) -> Result<Vec<f32>, SparqError> {
    let expected = [rows, 1, model.vocab_size()];
    if logits.dims() != expected {
        return Err(SparqError::Shape {
            what: "logits [rows, 1, vocab]",
            expected: expected.to_vec(),
            found: logits.dims().to_vec(),
        });
    }
    logits
        .try_into_vec_as::<f32>()
        .map_err(|error| SparqError::Value {
            what: "logits",
            expected: "values that can be read from the device".into(),
            found: error.to_string(),
        })
}

/// Runs work on the device. A panic in it is an error of the request, not the end of the thread.
fn guarded<T>(work: impl FnOnce() -> Result<T, SparqError>) -> Result<T, EngineError> {
    caught(|| work().map_err(EngineError::model))
}

/// As [`guarded`], for work with other errors.
fn caught<T>(work: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        Err(EngineError::Failed {
            reason: format!("the model failed: {}", message_of(&*panic)),
        })
    })
}

fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}
