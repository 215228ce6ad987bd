//! Requests to the engine, their events and errors.

use std::fmt::Display;
use std::task::{Context, Poll};
use std::time::Instant;

use sparq_models::text::{CancelToken, SamplingConfig};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::{Decoding, Grammar, Penalties, TokenLogprobs, Traffic};

/// A prompt to continue.
#[derive(Clone, Debug)]
pub struct Request {
    /// The tokens.
    pub prompt: Vec<u32>,
    /// The number of answers to the prompt, which is read once.
    pub choices: usize,
    /// The most tokens of an answer. `None` stands for the engine's default, or what the context
    /// leaves.
    pub max_tokens: Option<usize>,
    /// The settings of sampling. Answer i has the seed plus i.
    pub sampling: SamplingConfig,
    /// The changes of logits before sampling.
    pub penalties: Penalties,
    /// The strings that end an answer.
    pub stop: Vec<String>,
    /// Whether an end-of-sequence token does not end an answer.
    pub ignore_eos: bool,
    /// The number of most probable tokens to report with each token. `None` reports nothing.
    pub logprobs: Option<usize>,
    /// The form of the answers. `None` allows any text.
    pub grammar: Option<Grammar>,
    /// The way to decode.
    pub decoding: Decoding,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// An end-of-sequence token, a stop string, or the end of a document of the given form.
    Stop,
    /// The most tokens.
    Length,
}

/// A step in the life of a request.
#[derive(Clone, Debug)]
pub enum Event {
    /// The prompt is read. `cached` of its tokens were known already.
    Prompt {
        /// The number of tokens.
        cached: usize,
    },
    /// The next piece of an answer.
    Text {
        /// The index of the answer.
        choice: usize,
        /// Complete characters, never a part of a stop string. May be empty with `logprobs`.
        text: String,
        /// The tokens since the last piece, if the request asked for them.
        logprobs: Vec<TokenLogprobs>,
    },
    /// The end of an answer.
    End {
        /// The index of the answer.
        choice: usize,
        /// The reason.
        finish: Finish,
        /// The number of its tokens, an end-of-sequence token included.
        tokens: usize,
        /// The bytes that its decode steps moved.
        traffic: Traffic,
    },
    /// The request failed. No event follows.
    Failed(EngineError),
}

/// The events of a request. Dropping it cancels what has not ended.
///
/// The engine does not wait for a reader. The events that nobody has read are at most those of the
/// longest answers that the request may have.
#[derive(Debug)]
pub struct Generation {
    events: UnboundedReceiver<Event>,
    cancel: CancelToken,
    prompt_tokens: usize,
}

impl Generation {
    pub(super) fn new(
        events: UnboundedReceiver<Event>,
        cancel: CancelToken,
        prompt_tokens: usize,
    ) -> Self {
        Self {
            events,
            cancel,
            prompt_tokens,
        }
    }

    /// Returns the number of tokens of the prompt.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// Polls for the next event.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        self.events.poll_recv(context).map(or_ended)
    }

    /// Waits for the next event.
    pub async fn next(&mut self) -> Event {
        or_ended(self.events.recv().await)
    }

    /// Blocks the thread until the next event.
    ///
    /// # Panics
    /// In an asynchronous context.
    pub fn wait(&mut self) -> Event {
        or_ended(self.events.blocking_recv())
    }
}

/// A thread that has ended sends no events.
fn or_ended(event: Option<Event>) -> Event {
    event.unwrap_or_else(|| {
        Event::Failed(EngineError::Failed {
            reason: "the engine has ended".into(),
        })
    })
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// The engine's end of a [`Generation`].
#[derive(Clone, Debug)]
pub(super) struct Reply {
    events: UnboundedSender<Event>,
    cancel: CancelToken,
}

impl Reply {
    pub(super) fn new(events: UnboundedSender<Event>, cancel: CancelToken) -> Self {
        Self { events, cancel }
    }

    /// Sends an event, unless nobody waits.
    pub(super) fn send(&self, event: Event) {
        if self.events.send(event).is_err() {
            self.cancel.cancel();
        }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }
}

/// A request on its way through the queue.
pub(super) struct Submitted {
    pub(super) request: Request,
    pub(super) reply: Reply,
    /// The most tokens of an answer.
    pub(super) answer: usize,
    /// The bytes of the cache of one answer.
    pub(super) bytes: usize,
    pub(super) arrived: Instant,
}

impl Submitted {
    pub(super) fn new(request: Request, reply: Reply, answer: usize, bytes: usize) -> Self {
        Self {
            request,
            reply,
            answer,
            bytes,
            arrived: Instant::now(),
        }
    }

    /// The most positions of an answer with its prompt.
    pub(super) fn positions(&self) -> usize {
        self.request.prompt.len() + self.answer
    }

    /// The bytes of all caches.
    pub(super) fn all_bytes(&self) -> usize {
        self.bytes * self.request.choices
    }
}

/// Why a request is not served.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EngineError {
    /// The prompt is empty or not in the vocabulary.
    #[error("{reason}")]
    Prompt {
        /// The expected and the found value.
        reason: String,
    },
    /// Prompt and answer do not fit the context.
    #[error(
        "expected at most {context} tokens (the context of this server), found {} ({prompt} in the \
         prompt, {answer} in the answer); shorten the prompt or lower max_tokens",
        .prompt + .answer
    )]
    Context {
        /// The positions of the context.
        context: usize,
        /// The tokens of the prompt.
        prompt: usize,
        /// The most tokens of the answer.
        answer: usize,
    },
    /// More answers than the batch holds.
    #[error("n: expected 1 to {most} (the batch of this server), found {found}")]
    Choices {
        /// The batch.
        most: usize,
        /// The number asked for.
        found: usize,
    },
    /// The caches of the request exceed the memory for caches.
    #[error(
        "expected a request of at most {available} bytes of cache, found {needed} for \
         {positions} positions; shorten the prompt, or lower max_tokens or n"
    )]
    Memory {
        /// The memory for caches, in bytes.
        available: usize,
        /// The bytes needed.
        needed: usize,
        /// The positions of one sequence.
        positions: usize,
    },
    /// A setting is wrong.
    #[error("{reason}")]
    Request {
        /// The expected and the found value.
        reason: String,
    },
    /// No answers can be made to follow the given form.
    #[error("{reason}")]
    Schema {
        /// The expected and the found value.
        reason: String,
    },
    /// The queue is full.
    #[error("expected at most {most} waiting requests, found as many; retry in {retry_seconds} s")]
    QueueFull {
        /// The length of the queue.
        most: usize,
        /// An estimate of the time until a place is free.
        retry_seconds: u64,
    },
    /// The engine stops and takes no requests.
    #[error("the server is stopping")]
    Stopping,
    /// Model or device fail.
    #[error("{reason}")]
    Failed {
        /// The message.
        reason: String,
    },
}

impl EngineError {
    pub(super) fn prompt(error: impl Display) -> Self {
        let reason = error.to_string();
        Self::Prompt { reason }
    }

    pub(super) fn request(error: impl Display) -> Self {
        let reason = error.to_string();
        Self::Request { reason }
    }

    pub(super) fn model(error: impl Display) -> Self {
        let reason = error.to_string();
        Self::Failed { reason }
    }
}
