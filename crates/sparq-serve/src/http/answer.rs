//! Answers, whole or as a stream of events: [`answer`].

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::Value;

use super::response::json;
use super::server::{State, now};
use crate::api::ApiError;
use crate::api::response::{Head, Kind, Piece, SparqStats, Usage};
use crate::engine::{Event, Generation, Request, Traffic};

/// The work of a request.
pub(super) struct Job {
    pub(super) kind: Kind,
    /// One per prompt.
    pub(super) requests: Vec<Request>,
    /// The beginning of the answers to each prompt.
    pub(super) beginnings: Vec<String>,
    pub(super) stream: bool,
    pub(super) stream_usage: bool,
}

/// The state of a response. Dropping it cancels what has not ended.
struct Answers {
    state: Arc<State>,
    /// One per prompt.
    generations: Vec<Generation>,
    /// The prompt whose events are looked for first.
    turn: usize,
    head: Head,
    pieces: Vec<Piece>,
    /// The answers that have not ended.
    open: usize,
    choices: usize,
    usage: Usage,
    traffic: Traffic,
    method: &'static str,
}

/// Lets the engine answer.
///
/// # Errors
/// If the engine refuses a request, or fails before a stream begins.
pub(super) async fn answer(state: Arc<State>, job: Job) -> Result<Response, ApiError> {
    let (stream, with_usage) = (job.stream, job.stream_usage);
    let answers = Answers::begin(state, job)?;
    match stream {
        false => Ok(json(&answers.whole().await?)),
        true => answers.streamed(with_usage).await,
    }
}

impl Answers {
    /// Gives the engine the requests of a job.
    fn begin(state: Arc<State>, job: Job) -> Result<Self, ApiError> {
        let choices = job.requests[0].choices;
        let prefix = match job.kind {
            Kind::Completion => "cmpl",
            Kind::Chat => "chatcmpl",
        };
        let with_logprobs = job.requests[0].logprobs.is_some();
        let piece = |index: usize| Piece {
            index,
            text: job.beginnings[index / choices].clone(),
            logprobs: with_logprobs.then(Vec::new),
            ..Piece::default()
        };
        let open = job.requests.len() * choices;
        let pieces = (0..open).map(piece).collect();
        let head = Head {
            kind: job.kind,
            id: format!("{prefix}-{}", state.next_id()),
            created: now(),
            model: state.model.name.clone(),
        };
        let method = job.requests[0].decoding.name();
        let requests = job.requests.into_iter();
        let generations: Vec<Generation> = requests
            .map(|request| state.engine.submit(request))
            .collect::<Result<_, _>>()?;
        let mut usage = Usage::default();
        for generation in &generations {
            usage.add_prompt(generation.prompt_tokens());
        }
        Ok(Self {
            state,
            generations,
            turn: 0,
            head,
            pieces,
            open,
            choices,
            usage,
            traffic: Traffic::default(),
            method,
        })
    }

    /// Waits for the next event of any prompt.
    async fn next(&mut self) -> (usize, Event) {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<(usize, Event)> {
        let prompts = self.generations.len();
        for prompt in (0..prompts).map(|step| (self.turn + step) % prompts) {
            let answers = prompt * self.choices..(prompt + 1) * self.choices;
            if self.pieces[answers]
                .iter()
                .all(|piece| piece.finish.is_some())
            {
                continue;
            }
            if let Poll::Ready(event) = self.generations[prompt].poll_next(context) {
                self.turn = prompt + 1;
                return Poll::Ready((prompt, event));
            }
        }
        Poll::Pending
    }

    /// Takes an event of a prompt. Returns the piece of an answer that it has.
    fn take(&mut self, prompt: usize, event: Event) -> Result<Option<Piece>, ApiError> {
        let index = |choice: usize| prompt * self.choices + choice;
        Ok(match event {
            Event::Prompt { cached } => {
                self.usage.prompt_tokens_details.cached_tokens += cached;
                None
            }
            Event::Text {
                choice,
                text,
                logprobs,
            } => {
                let whole = &mut self.pieces[index(choice)];
                let offset = whole.offset;
                whole.offset += text.chars().count();
                Some(Piece {
                    index: whole.index,
                    text,
                    logprobs: whole.logprobs.is_some().then_some(logprobs),
                    offset,
                    finish: None,
                })
            }
            Event::End {
                choice,
                finish,
                tokens,
                traffic,
            } => {
                self.usage.add_answer(tokens);
                self.traffic += traffic;
                self.open -= 1;
                let index = index(choice);
                self.pieces[index].finish = Some(finish);
                Some(Piece {
                    index,
                    finish: Some(finish),
                    ..Piece::default()
                })
            }
            Event::Failed(error) => return Err(error.into()),
        })
    }

    fn stats(&self) -> SparqStats {
        SparqStats::new(self.method, &self.traffic)
    }

    /// Waits for all answers and returns them in one document.
    async fn whole(mut self) -> Result<Value, ApiError> {
        while self.open > 0 {
            let (prompt, event) = self.next().await;
            if let Some(piece) = self.take(prompt, event)? {
                let whole = &mut self.pieces[piece.index];
                whole.text += &piece.text;
                if let (Some(all), Some(more)) = (&mut whole.logprobs, piece.logprobs) {
                    all.extend(more);
                }
            }
        }
        let tokenizer = self.state.engine.tokenizer();
        let Self {
            head,
            pieces,
            usage,
            ..
        } = &self;
        Ok(head.whole(pieces, usage, &self.stats(), tokenizer))
    }

    /// Returns a response that sends the answers as they arrive.
    async fn streamed(mut self, with_usage: bool) -> Result<Response, ApiError> {
        // Until the prompt is being read, a failure still has its status.
        let (prompt, first) = self.next().await;
        if let Event::Failed(error) = first {
            return Err(error.into());
        }
        let mut events = Events {
            unsent: self.opening(),
            answers: self,
            with_usage,
            ended: false,
        };
        events.take(prompt, first);
        let events = stream::unfold(events, |mut events| async move {
            let data = events.next().await?;
            let event = sse::Event::default().data(data);
            Some((Ok::<_, Infallible>(event), events))
        });
        Ok(Sse::new(events)
            .keep_alive(KeepAlive::default())
            .into_response())
    }

    /// Returns the documents that answers begin with: roles in chats, prompts if they were asked
    /// for.
    fn opening(&self) -> VecDeque<String> {
        let opening = |piece: &Piece| match self.head.kind {
            Kind::Chat => Some(self.head.opening(piece.index)),
            Kind::Completion if piece.text.is_empty() => None,
            Kind::Completion => Some(self.head.chunk(piece, self.state.engine.tokenizer())),
        };
        let documents = self.pieces.iter().filter_map(opening);
        documents.map(|document| document.to_string()).collect()
    }
}

/// The events of a response, one document each.
struct Events {
    answers: Answers,
    unsent: VecDeque<String>,
    with_usage: bool,
    /// Whether `unsent` has the last event.
    ended: bool,
}

impl Events {
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(data) = self.unsent.pop_front() {
                return Some(data);
            }
            if self.ended {
                return None;
            }
            let (prompt, event) = self.answers.next().await;
            self.take(prompt, event);
        }
    }

    fn push(&mut self, document: &Value) {
        self.unsent.push_back(document.to_string());
    }

    fn take(&mut self, prompt: usize, event: Event) {
        match self.answers.take(prompt, event) {
            Ok(None) => {}
            Ok(Some(piece)) => {
                let tokenizer = self.answers.state.engine.tokenizer();
                let document = self.answers.head.chunk(&piece, tokenizer);
                self.push(&document);
            }
            Err(error) => {
                self.push(&error.document());
                self.ended = true;
                return;
            }
        }
        if self.answers.open == 0 {
            if self.with_usage {
                let answers = &self.answers;
                let document = answers.head.closing(&answers.usage, &answers.stats());
                self.push(&document);
            }
            self.unsent.push_back("[DONE]".into());
            self.ended = true;
        }
    }
}
