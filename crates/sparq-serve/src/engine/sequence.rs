//! An answer while it is generated: [`Sequence`].

use std::time::Instant;

use sparq::Method;
use sparq_models::ModelCache;
use sparq_models::text::{
    GeneratedText, Released, Sampler, SpeculativeConfig, SpeculativeDecoder, SpeculativeRow,
};

use super::penalties::PenaltyState;
use super::request::{EngineError, Event, Finish, Reply, Submitted};
use super::{Decoding, Grammar, Shared, TokenLogprobs, Traffic};
use crate::metrics::Metrics;

/// One answer to a prompt.
pub(super) struct Sequence {
    choice: usize,
    reply: Reply,
    decoding: Decoding,
    /// The prompt and the answer. The cache lacks the last token.
    tokens: Vec<u32>,
    prompt: usize,
    answer: usize,
    sampler: Sampler,
    penalties: PenaltyState,
    grammar: Option<Grammar>,
    text: GeneratedText,
    eos: Vec<u32>,
    logprobs: Option<usize>,
    /// The tokens whose text is held back.
    unsent: Vec<TokenLogprobs>,
    traffic: Traffic,
    pub(super) arrived: Instant,
    /// When the last token was there.
    last: Instant,
}

impl Sequence {
    /// Begins answer `choice` of a request whose prompt has been read.
    pub(super) fn new(
        shared: &Shared,
        submitted: &Submitted,
        choice: usize,
    ) -> Result<Self, EngineError> {
        let request = &submitted.request;
        let mut sampling = request.sampling;
        sampling.seed = sampling.seed.wrapping_add(choice as u64);
        let text = GeneratedText::new(shared.tokenizer.clone(), &request.stop);
        Ok(Self {
            choice,
            reply: submitted.reply.clone(),
            decoding: request.decoding,
            tokens: request.prompt.clone(),
            prompt: request.prompt.len(),
            answer: submitted.answer,
            sampler: Sampler::new(sampling).map_err(EngineError::request)?,
            penalties: PenaltyState::new(request.penalties.clone()),
            grammar: request.grammar.clone(),
            text: text.map_err(EngineError::request)?,
            eos: match request.ignore_eos {
                true => Vec::new(),
                false => shared.tokenizer.eos_ids().to_vec(),
            },
            logprobs: request.logprobs,
            unsent: Vec::new(),
            traffic: Traffic::default(),
            arrived: submitted.arrived,
            last: Instant::now(),
        })
    }

    /// The token that the next step appends.
    pub(super) fn next(&self) -> u32 {
        self.tokens[self.tokens.len() - 1]
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.reply.is_cancelled()
    }

    /// Returns the method of a step in a batch.
    pub(super) fn step_method(&self) -> Method {
        self.decoding.step_method()
    }

    /// The positions of the cache.
    pub(super) fn cached(&self) -> usize {
        self.tokens.len() - 1
    }

    /// The most positions that the cache may have.
    pub(super) fn positions(&self) -> usize {
        self.prompt + self.answer
    }

    /// Counts a decode step that has appended to the cache, which may hold other sequences too.
    pub(super) fn count_step(&mut self, cache: &ModelCache, metrics: &Metrics) {
        let (method, len) = (self.step_method(), self.tokens.len());
        self.traffic.add(cache, len, &method);
        metrics.token_time.record(self.last.elapsed());
        self.last = Instant::now();
    }

    /// The most tokens that are still to come.
    pub(super) fn left(&self) -> usize {
        self.answer - self.generated()
    }

    /// Returns whether the next token depends on more than the most probable one.
    pub(super) fn needs_logits(&self) -> bool {
        !self.sampler.is_argmax() || self.uses_logits()
    }

    /// Returns whether more than the sampler uses the logits of every step: penalties and grammars
    /// change them, log-probabilities report them.
    fn uses_logits(&self) -> bool {
        self.logprobs.is_some() || self.grammar.is_some() || !self.penalties.is_none()
    }

    /// Returns the settings of drafts. Answers that need the logits of every step have none.
    pub(super) fn drafts(&self) -> Option<SpeculativeConfig> {
        match self.decoding {
            Decoding::Lossless(config) => (!self.uses_logits()).then_some(config),
            Decoding::Steps(_) => None,
        }
    }

    /// Decodes with drafts until the answer ends, or `goes_on` returns false after a step.
    pub(super) fn speculate(
        &mut self,
        shared: &Shared,
        cache: &mut ModelCache,
        config: SpeculativeConfig,
        goes_on: impl Fn() -> bool,
    ) -> Result<Option<Finish>, EngineError> {
        let decoder = SpeculativeDecoder::new(&*shared.model, cache, config);
        let mut decoder = decoder.map_err(EngineError::model)?.with_ends(&self.eos);
        let finish = loop {
            let limit = self.left();
            let row = SpeculativeRow {
                sequence: &self.tokens,
                sampler: &mut self.sampler,
                limit,
            };
            let found = decoder.step(&mut [row]).map_err(EngineError::model);
            let finish = found.and_then(|found| self.take_drafts(shared, &found[0]));
            if !matches!(finish, Ok(None)) || !goes_on() || self.is_cancelled() {
                break finish;
            }
        };
        let stats = *decoder.stats();
        drop(decoder);
        self.traffic
            .add_drafts(cache, &config.cache_method(), &stats);
        finish
    }

    /// Takes tokens that were verified together.
    fn take_drafts(
        &mut self,
        shared: &Shared,
        tokens: &[u32],
    ) -> Result<Option<Finish>, EngineError> {
        let each = self.last.elapsed() / tokens.len().max(1) as u32;
        self.last = Instant::now();
        for &token in tokens {
            shared.metrics.token_time.record(each);
            let finish = self.push(token, None)?;
            if finish.is_some() {
                return Ok(finish);
            }
        }
        Ok(None)
    }

    /// Samples the next token from logits [vocab], to which penalties and the grammar are applied
    /// in place. Returns whether it ends the answer.
    pub(super) fn accept(&mut self, logits: &mut [f32]) -> Result<Option<Finish>, EngineError> {
        if self.answer == 0 {
            return Ok(Some(Finish::Length));
        }
        let before = self.logprobs.map(|_| logits.to_vec());
        self.penalties.apply(logits);
        if let Some(grammar) = &mut self.grammar {
            grammar.mask(logits)?;
        }
        let token = self.sampler.sample(logits, &self.tokens);
        let token = token.map_err(EngineError::model)?;
        self.push(token, before.as_deref())
    }

    /// Takes the most probable token as the next one, if the sequence needs no more. Returns
    /// whether it ends the answer.
    pub(super) fn accept_token(&mut self, token: u32) -> Result<Option<Finish>, EngineError> {
        self.push(token, None)
    }

    /// Appends a token, and its log-probabilities under logits [vocab] if the request asked for
    /// them. Returns whether it ends the answer.
    fn push(&mut self, token: u32, logits: Option<&[f32]>) -> Result<Option<Finish>, EngineError> {
        self.tokens.push(token);
        self.penalties.count(token);
        if self.eos.contains(&token) {
            return Ok(Some(Finish::Stop));
        }
        if let Some((count, logits)) = self.logprobs.zip(logits) {
            self.unsent.push(TokenLogprobs::new(logits, token, count));
        }
        let is_complete = match &mut self.grammar {
            Some(grammar) => grammar.push(token)?,
            None => false,
        };
        let released = self.text.push(token).map_err(EngineError::model)?;
        if self.release(released) || is_complete {
            return Ok(Some(Finish::Stop));
        }
        let is_last = self.generated() >= self.answer;
        Ok(is_last.then_some(Finish::Length))
    }

    /// Sends text. Returns whether a stop string ends it.
    fn release(&mut self, Released { text, stop }: Released) -> bool {
        if stop.is_some() {
            // They are the tokens of the stop string.
            self.unsent.clear();
        }
        if !text.is_empty() {
            let logprobs = std::mem::take(&mut self.unsent);
            self.reply.send(Event::Text {
                choice: self.choice,
                text,
                logprobs,
            });
        }
        stop.is_some()
    }

    /// The number of tokens of the answer.
    pub(super) fn generated(&self) -> usize {
        self.tokens.len() - self.prompt
    }

    /// Sends what was held back and the end. Returns the final reason.
    pub(super) fn end(&mut self, finish: Finish) -> Finish {
        let rest = self.text.finish().unwrap_or_default();
        let finish = match self.release(rest) {
            true => Finish::Stop,
            false => finish,
        };
        if !self.unsent.is_empty() {
            // Tokens without text, such as half a character.
            self.reply.send(Event::Text {
                choice: self.choice,
                text: String::new(),
                logprobs: std::mem::take(&mut self.unsent),
            });
        }
        self.reply.send(Event::End {
            choice: self.choice,
            finish,
            tokens: self.generated(),
            traffic: self.traffic,
        });
        finish
    }

    pub(super) fn fail(&self, error: EngineError) {
        self.reply.send(Event::Failed(error));
    }

    /// Returns the first tokens in the cache that may serve other prompts: those whose positions
    /// dense attention determined. `None` for an answer beside the first.
    pub(super) fn reusable(&self) -> Option<Vec<u32>> {
        let len = match self.traffic.sparse_steps {
            0 => self.cached(),
            _ => self.prompt,
        };
        (self.choice == 0).then(|| self.tokens[..len].to_vec())
    }
}
