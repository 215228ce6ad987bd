//! Continuous batching: [`Engine`], a thread that owns a model's caches.
//!
//! The thread repeats three things. It admits requests from a queue, as long as batch and memory
//! allow. It reads one chunk of one prompt, of each in turn. It takes one decode step of all
//! sequences together. So a long prompt delays a step by a chunk at most, and a request waits for
//! no other to end.
//!
//! On GPUs, the sequences with the engine's first way to decode share a cache
//! ([`EngineConfig::slots`]). Each has a slot of it, which it takes when its prompt has been read,
//! and the step of all slots is one captured graph. Other sequences have caches of their own, so
//! they may differ in method: the linear layers multiply the rows of all at once
//! ([`CausalLm::decode_each`]), and attention runs for each by itself.
//!
//! Keys and values of ended sequences are kept for prompts that begin with the same tokens. Only
//! positions that dense attention determined are kept: prompts, and the answers of dense attention.
//! The answer to a request does not depend on the method of an earlier one.

mod decoding;
mod device;
mod extent;
mod grammar;
mod logprobs;
mod memory;
mod penalties;
mod prefix;
mod request;
mod sequence;
mod slots;
mod step;
mod traffic;
mod worker;

pub use decoding::Decoding;
pub use grammar::{Grammar, Grammars};
pub use logprobs::TokenLogprobs;
pub use penalties::Penalties;
pub use request::{EngineError, Event, Finish, Generation, Request};
pub use traffic::Traffic;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use burn::backend::StreamId;
use burn::tensor::FloatDType;
use sparq::{Method, SparqError};
use sparq_models::CausalLm;
use sparq_models::text::{CancelToken, GeneratedText, Sampler, TextTokenizer, check_prompt};
use tokio::sync::mpsc::unbounded_channel;

use self::request::{Reply, Submitted};
use self::worker::{Message, Worker};
use crate::metrics::Metrics;

/// The settings of an [`Engine`].
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// The type of the caches.
    pub dtype: FloatDType,
    /// The ways to decode that requests may choose.
    pub decodings: Vec<Decoding>,
    /// The most positions of a sequence, prompt and answer together.
    pub context: usize,
    /// The most tokens of an answer whose request gives no number.
    pub default_tokens: usize,
    /// The most sequences that decode together.
    pub max_batch: usize,
    /// The most requests that wait.
    pub max_queue: usize,
    /// The most bytes of all caches, those kept for later prompts included.
    pub cache_bytes: usize,
    /// The most prompt tokens between two decode steps.
    pub prefill_chunk: usize,
    /// Whether sequences with the first of `decodings` share a cache with a slot for each, unless
    /// it is [`Decoding::Lossless`]. Devices with graphs capture the step of all slots then. The
    /// longest sequence decides for all where [`Method::Auto`] chooses.
    pub slots: bool,
}

/// A running engine. Clones share it.
#[derive(Clone)]
pub struct Engine {
    inbox: mpsc::Sender<Message>,
    shared: Arc<Shared>,
}

/// The part that the thread and the handles of an engine share.
pub(crate) struct Shared {
    pub(crate) model: Box<dyn CausalLm>,
    pub(crate) tokenizer: TextTokenizer,
    pub(crate) config: EngineConfig,
    pub(crate) metrics: Arc<Metrics>,
    /// The bytes of a cache for each way to decode of the configuration.
    sizes: Vec<CacheSize>,
    grammars: Grammars,
    /// The time of a request of late.
    pub(crate) request_time: MeanTime,
    /// The requests that were sent and are not admitted yet.
    pub(crate) queued: AtomicUsize,
    stopping: AtomicBool,
    /// Whether the thread has ended.
    ended: AtomicBool,
}

/// A mean of times in which each new one has a tenth of the weight.
#[derive(Default)]
pub(crate) struct MeanTime(AtomicU64);

impl MeanTime {
    /// Adds a time. Only the engine's thread does.
    pub(crate) fn add(&self, time: Duration) {
        let new = match self.seconds() {
            0.0 => time.as_secs_f64(),
            mean => 0.9 * mean + 0.1 * time.as_secs_f64(),
        };
        self.0.store(new.to_bits(), Ordering::Relaxed);
    }

    /// Returns the mean, 0 without any time.
    pub(crate) fn seconds(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

/// The bytes of a cache of one sequence, by capacity.
#[derive(Clone, Copy, Debug)]
struct CacheSize {
    fixed: usize,
    /// Of each [`BLOCK`] positions.
    per_block: usize,
}

/// The positions by which the capacity of a cache grows.
const BLOCK: usize = 64;

impl CacheSize {
    fn of(model: &dyn CausalLm, dtype: FloatDType, method: &Method) -> Result<Self, SparqError> {
        let bytes = |blocks: usize| -> Result<usize, SparqError> {
            let cache = model.new_cache(1, blocks * BLOCK, dtype, method)?;
            Ok(cache.memory().total())
        };
        let (one, two) = (bytes(1)?, bytes(2)?);
        let per_block = two - one;
        Ok(Self {
            fixed: one - per_block,
            per_block,
        })
    }

    fn bytes(&self, positions: usize) -> usize {
        let blocks = positions.max(1).div_ceil(BLOCK);
        self.fixed + blocks.saturating_mul(self.per_block)
    }
}

/// Tells the handles that the thread has ended, also if it panics.
struct EndMark(Arc<Shared>);

impl Drop for EndMark {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::SeqCst);
    }
}

impl Engine {
    /// Starts the thread. The caller must be the thread that loaded the model, whose stream of
    /// launches the engine continues: a captured step reads weights of its own stream only.
    ///
    /// # Errors
    /// If the model makes no caches of the configuration's type and methods, or if the system
    /// starts no thread.
    pub fn start(
        model: Box<dyn CausalLm>,
        tokenizer: TextTokenizer,
        config: EngineConfig,
        metrics: Arc<Metrics>,
    ) -> Result<Self, EngineError> {
        let size =
            |decoding: &Decoding| CacheSize::of(&*model, config.dtype, &decoding.cache_method());
        let sizes = config.decodings.iter().map(size);
        let sizes = sizes
            .collect::<Result<Vec<CacheSize>, _>>()
            .map_err(EngineError::model)?;
        if let Some(size) = sizes.first() {
            metrics.set_blocks(BLOCK, config.cache_bytes / size.per_block.max(1));
        }
        let grammars = Grammars::new(tokenizer.clone(), model.vocab_size());
        let shared = Arc::new(Shared {
            model,
            tokenizer,
            config,
            metrics,
            sizes,
            grammars,
            request_time: MeanTime::default(),
            queued: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let (inbox, messages) = mpsc::channel();
        let of_thread = Arc::clone(&shared);
        let stream = StreamId::current();
        let run = move || {
            let _mark = EndMark(Arc::clone(&of_thread));
            stream.executes(|| Worker::new(of_thread, messages).run());
        };
        let thread = thread::Builder::new().name("engine".into()).spawn(run);
        thread.map_err(|error| EngineError::Failed {
            reason: format!("the engine's thread cannot be started: {error}"),
        })?;
        Ok(Self { inbox, shared })
    }

    /// Returns the settings.
    pub fn config(&self) -> &EngineConfig {
        &self.shared.config
    }

    /// Returns the tokenizer.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.shared.tokenizer
    }

    /// Returns the compiler of JSON schemas for [`Request::grammar`].
    pub fn grammars(&self) -> &Grammars {
        &self.shared.grammars
    }

    /// Returns whether the engine takes requests.
    pub fn is_running(&self) -> bool {
        !self.shared.stopping.load(Ordering::SeqCst) && !self.has_ended()
    }

    /// Returns whether the thread has ended.
    pub fn has_ended(&self) -> bool {
        self.shared.ended.load(Ordering::SeqCst)
    }

    /// Refuses new requests and those in the queue. The thread ends when all admitted ones have.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // It fails if the thread has ended.
        let _ = self.inbox.send(Message::Stop);
    }

    /// Returns the most tokens of the answer of a request.
    ///
    /// # Errors
    /// [`EngineError::Context`] if prompt and answer do not fit the context.
    fn answer_tokens(&self, request: &Request) -> Result<usize, EngineError> {
        let EngineConfig {
            context,
            default_tokens,
            ..
        } = self.shared.config;
        let prompt = request.prompt.len();
        let room = context.saturating_sub(prompt);
        match request.max_tokens {
            Some(tokens) if tokens <= room => Ok(tokens),
            None if room > 0 => Ok(room.min(default_tokens)),
            tokens => Err(EngineError::Context {
                context,
                prompt,
                answer: tokens.unwrap_or(1),
            }),
        }
    }

    /// Puts a request into the queue.
    ///
    /// # Errors
    /// If the request cannot be served: a prompt or an answer that is too long, a setting out of
    /// range, more sequences than the batch or the memory holds; if the queue is full; or if the
    /// engine stops.
    pub fn submit(&self, request: Request) -> Result<Generation, EngineError> {
        let Shared { config, model, .. } = &*self.shared;
        if !self.is_running() {
            return Err(EngineError::Stopping);
        }
        check_prompt(&**model, &request.prompt).map_err(EngineError::prompt)?;
        let answer = self.answer_tokens(&request)?;
        Sampler::new(request.sampling).map_err(EngineError::request)?;
        GeneratedText::new(self.shared.tokenizer.clone(), &request.stop)
            .map_err(EngineError::request)?;
        if !(1..=config.max_batch).contains(&request.choices) {
            return Err(EngineError::Choices {
                most: config.max_batch,
                found: request.choices,
            });
        }
        let mut decodings = config.decodings.iter();
        let decoding = decodings.position(|&decoding| decoding == request.decoding);
        let size = decoding.map(|index| self.shared.sizes[index]);
        let size = size.ok_or_else(|| EngineError::Request {
            reason: format!(
                "method: expected one of this engine, found {}",
                request.decoding.name()
            ),
        })?;
        let positions = request.prompt.len() + answer;
        let bytes = size.bytes(positions);
        if bytes.saturating_mul(request.choices) > config.cache_bytes {
            return Err(EngineError::Memory {
                available: config.cache_bytes,
                needed: bytes.saturating_mul(request.choices),
                positions,
            });
        }
        self.enter_queue()?;
        let (events, receiver) = unbounded_channel();
        let cancel = CancelToken::new();
        let reply = Reply::new(events, cancel.clone());
        let prompt_tokens = request.prompt.len();
        let submitted = Submitted::new(request, reply, answer, bytes);
        if self
            .inbox
            .send(Message::Submit(Box::new(submitted)))
            .is_err()
        {
            return Err(EngineError::Stopping);
        }
        Ok(Generation::new(receiver, cancel, prompt_tokens))
    }

    /// Counts a request of the queue.
    fn enter_queue(&self) -> Result<(), EngineError> {
        let (queued, most) = (&self.shared.queued, self.shared.config.max_queue);
        let one_more = |waiting: usize| (waiting < most).then_some(waiting + 1);
        match queued.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more) {
            Ok(waiting) => {
                self.shared.metrics.waiting.set(waiting as f64 + 1.0);
                Ok(())
            }
            Err(waiting) => {
                let seconds = self.shared.request_time.seconds();
                let rounds = waiting as f64 / self.shared.config.max_batch as f64;
                Err(EngineError::QueueFull {
                    most,
                    retry_seconds: (seconds * rounds).ceil().clamp(1.0, 60.0) as u64,
                })
            }
        }
    }
}
