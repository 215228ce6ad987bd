//! Answers, whole or as a stream of events: [`answer`].

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use serde_json::Value;

use super::connection::Connection;
use super::message::HttpResponse;
use super::routes::Failure;
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

/// A connection that may become a stream of events.
pub(super) struct Stream<'a> {
    pub(super) connection: &'a mut Connection,
    pub(super) in_chunks: bool,
    pub(super) keep_alive: bool,
}

/// The time between two looks at whether the client has left.
const LOOK: Duration = Duration::from_millis(100);

/// The state of a response.
struct Answers<'a> {
    state: &'a State,
    head: Head,
    pieces: Vec<Piece>,
    /// The answers that have not ended.
    open: usize,
    choices: usize,
    usage: Usage,
    traffic: Traffic,
    method: &'static str,
}

/// Lets the engine answer. Returns a whole response, or nothing after a stream.
pub(super) fn answer(
    state: &State,
    mut job: Job,
    stream: &mut Stream<'_>,
) -> Result<Option<HttpResponse>, Failure> {
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
    let mut answers = Answers {
        state,
        head: Head {
            kind: job.kind,
            id: format!("{prefix}-{}", state.next_id()),
            created: now(),
            model: state.model.name.clone(),
        },
        pieces: (0..job.requests.len() * choices).map(piece).collect(),
        open: job.requests.len() * choices,
        choices,
        usage: Usage::default(),
        traffic: Traffic::default(),
        method: job.requests[0].method.name(),
    };
    let requests = std::mem::take(&mut job.requests);
    let submit = |request| state.engine.submit(request);
    let generations: Vec<Generation> =
        requests.into_iter().map(submit).collect::<Result<_, _>>()?;
    for generation in &generations {
        answers.usage.add_prompt(generation.prompt_tokens());
    }
    match job.stream {
        false => answers.whole(&generations, stream.connection).map(Some),
        true => answers
            .streamed(&generations, stream, job.stream_usage)
            .map(|()| None),
    }
}

impl Answers<'_> {
    /// Waits for the next event of a request, and looks from time to time whether the client has
    /// left.
    fn next(&self, generation: &Generation, connection: &Connection) -> Result<Event, Failure> {
        loop {
            if let Some(event) = generation.next(LOOK) {
                return Ok(event);
            }
            if connection.has_left() {
                return Err(Failure::Connection(io::ErrorKind::ConnectionAborted.into()));
            }
        }
    }

    /// Returns all answers in one document.
    fn whole(
        mut self,
        generations: &[Generation],
        connection: &Connection,
    ) -> Result<HttpResponse, Failure> {
        for (prompt, generation) in generations.iter().enumerate() {
            let mut open = self.choices;
            while open > 0 {
                let event = self.next(generation, connection)?;
                if let Some(piece) = self.take(prompt, event)? {
                    open -= usize::from(piece.finish.is_some());
                    let whole = &mut self.pieces[piece.index];
                    whole.text += &piece.text;
                    if let (Some(all), Some(more)) = (&mut whole.logprobs, piece.logprobs) {
                        all.extend(more);
                    }
                }
            }
        }
        let stats = SparqStats::new(self.method, &self.traffic);
        let tokenizer = self.state.engine.tokenizer();
        let document = self
            .head
            .whole(&self.pieces, &self.usage, &stats, tokenizer);
        Ok(HttpResponse::json(&document))
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

    /// Sends the answers as they arrive.
    fn streamed(
        mut self,
        generations: &[Generation],
        stream: &mut Stream<'_>,
        with_usage: bool,
    ) -> Result<(), Failure> {
        // Until the prompt is being read, a failure still has its status.
        let mut pending: VecDeque<(usize, Event)> = VecDeque::new();
        let first = self.next(&generations[0], stream.connection)?;
        if let Event::Failed(error) = first {
            return Err(error.into());
        }
        pending.push_back((0, first));
        let sent = stream
            .connection
            .begin_events(stream.in_chunks, stream.keep_alive);
        sent.map_err(Failure::Connection)?;
        self.begin(stream)?;
        while self.open > 0 {
            let (prompt, event) = match pending.pop_front() {
                Some(event) => event,
                None => self.next_of_all(generations, stream.connection)?,
            };
            match self.take(prompt, event) {
                Ok(None) => {}
                Ok(Some(piece)) => {
                    let document = self.head.chunk(&piece, self.state.engine.tokenizer());
                    stream.send(&document)?;
                }
                Err(error) => {
                    stream.send(&error.document())?;
                    return stream.end();
                }
            }
        }
        let stats = SparqStats::new(self.method, &self.traffic);
        if with_usage {
            stream.send(&self.head.closing(&self.usage, &stats))?;
        }
        stream.send_text("[DONE]")?;
        stream.end()
    }

    /// Sends what answers begin with: roles in chats, prompts if they were asked for.
    fn begin(&mut self, stream: &mut Stream<'_>) -> Result<(), Failure> {
        for piece in &self.pieces {
            match self.head.kind {
                Kind::Chat => stream.send(&self.head.opening(piece.index))?,
                Kind::Completion if piece.text.is_empty() => {}
                Kind::Completion => {
                    stream.send(&self.head.chunk(piece, self.state.engine.tokenizer()))?;
                }
            }
        }
        Ok(())
    }

    /// Waits for the next event of any prompt.
    fn next_of_all(
        &self,
        generations: &[Generation],
        connection: &Connection,
    ) -> Result<(usize, Event), Failure> {
        if let [only] = generations {
            return Ok((0, self.next(only, connection)?));
        }
        // The channels of several prompts have no common wait.
        let step = Duration::from_millis(2);
        let mut looked = std::time::Instant::now();
        loop {
            for (prompt, generation) in generations.iter().enumerate() {
                let ended = (0..self.choices)
                    .all(|choice| self.pieces[prompt * self.choices + choice].finish.is_some());
                if ended {
                    continue;
                }
                if let Some(event) = generation.next(Duration::ZERO) {
                    return Ok((prompt, event));
                }
            }
            std::thread::sleep(step);
            if looked.elapsed() > LOOK {
                looked = std::time::Instant::now();
                if connection.has_left() {
                    return Err(Failure::Connection(io::ErrorKind::ConnectionAborted.into()));
                }
            }
        }
    }
}

impl Stream<'_> {
    fn send(&mut self, document: &Value) -> Result<(), Failure> {
        self.send_text(&document.to_string())
    }

    fn send_text(&mut self, data: &str) -> Result<(), Failure> {
        let sent = self.connection.write_event(data, self.in_chunks);
        sent.map_err(Failure::Connection)
    }

    fn end(&mut self) -> Result<(), Failure> {
        let ended = self.connection.end_events(self.in_chunks);
        ended.map_err(Failure::Connection)
    }
}
