//! Lossless decoding: SparQ drafts tokens, dense attention verifies them: [`SpeculativeDecoder`].

mod pass;
mod policy;
mod stats;
mod timing;
mod verdict;

use std::fmt;
use std::time::{Duration, Instant};

use burn::tensor::{Int, Tensor};
use serde::{Deserialize, Serialize};
use sparq::methods::Auto;
use sparq::{Method, SparqError};

use self::pass::Pass;
use self::policy::Policy;
pub use self::stats::SpeculativeStats;
#[doc(hidden)]
pub use self::verdict::judge;
use super::generation::GenerateError;
use super::sampler::{Candidate, Sampler};
use super::session::Queue;
use super::transfer::{download, failed, upload};
use crate::lm::ModelMark;
use crate::{CapturedLm, CausalLm, ModelCache, MostProbable};

/// The most tokens of a draft. The operations of a verification of one more token give the bits of
/// decode steps on the CPU backend `flex`.
const MOST_TOKENS: usize = 15;

/// The most dense steps that are queued without a look at the policy.
const QUEUED_STEPS: usize = 64;

/// The settings of a [`SpeculativeDecoder`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpeculativeConfig {
    /// The method of draft steps, with the costs of steps on the device.
    pub draft: Auto,
    /// The number of tokens of a draft. `None` adapts it to the acceptance so far and to the costs.
    pub tokens: Option<usize>,
}

impl SpeculativeConfig {
    /// Drafts of an adaptive number of tokens.
    pub fn new(draft: Auto) -> Self {
        Self {
            draft,
            tokens: None,
        }
    }

    /// Sets the number of tokens of a draft, 1 to 15. `None` adapts it.
    pub fn with_tokens(self, tokens: Option<usize>) -> Self {
        Self { tokens, ..self }
    }

    /// Returns the method to make a cache for.
    pub fn cache_method(&self) -> Method {
        self.draft.sparq.into()
    }

    /// Checks the settings against a model's head_dim.
    ///
    /// # Errors
    /// [`SparqError`] for the first setting out of range.
    pub fn validate(&self, head_dim: usize) -> Result<(), SparqError> {
        Method::from(self.draft).validate(head_dim)?;
        match self.tokens {
            Some(found) if found == 0 || found > MOST_TOKENS => Err(SparqError::Value {
                what: "draft tokens",
                expected: format!("1 to {MOST_TOKENS}"),
                found: found.to_string(),
            }),
            _ => Ok(()),
        }
    }
}

/// One sequence of a [`SpeculativeDecoder`].
pub struct SpeculativeRow<'r> {
    /// All tokens so far. The cache holds all but the last.
    pub sequence: &'r [u32],
    /// Samples the tokens of this sequence.
    pub sampler: &'r mut Sampler,
    /// The most tokens that a step may return. With 0, the sequence stays as it is.
    pub limit: usize,
}

/// Decodes with drafts by SparQ and verification by dense attention: the tokens are those of dense
/// decoding.
///
/// A step drafts n tokens with SparQ, rolls the cache back, and reads all of them in one dense pass
/// of n + 1 rows, which writes their keys and values anew. The longest prefix of the draft that
/// agrees is kept, with the pass's own token after it. Greedy sampling gives the tokens of dense
/// decode steps, unless logits are closer than rounding: a pass over several rows may sum in
/// another order. On the backend `flex` it does not, and the tokens are equal. Other sampling draws
/// from the same distribution (speculative sampling, Leviathan et al., arXiv 2211.17192), with
/// other random numbers.
///
/// The sequences of a batch keep as many tokens as each accepts, so their lengths differ.
///
/// ```
/// use burn::tensor::{Device, FloatDType, Int, Tensor};
/// use sparq::{SparqConfig, methods::Auto};
/// use sparq_models::text::{
///     Sampler, SamplingConfig, SpeculativeConfig, SpeculativeDecoder, SpeculativeRow,
/// };
/// use sparq_models::{CausalLm, Decoder, DecoderConfig, embedded};
///
/// let (device, checkpoint) = (Device::default(), embedded::checkpoint()?);
/// let model_config = DecoderConfig::from_checkpoint(&checkpoint)?;
/// let model = Decoder::load(&checkpoint, &model_config, FloatDType::F32, &device)?;
/// let group = model_config.num_attention_heads / model_config.num_key_value_heads;
/// let draft = Auto::new(SparqConfig::new(16, 32), group, &device);
/// let config = SpeculativeConfig::new(draft).with_tokens(Some(4));
///
/// let prompt = "And it came to pass in those days, that";
/// let mut sequence: Vec<u32> = prompt.bytes().map(u32::from).collect();
/// let mut cache = model.new_cache(1, 128, FloatDType::F32, &config.cache_method())?;
/// let before: Vec<i64> = sequence[..sequence.len() - 1].iter().map(|&id| id.into()).collect();
/// let before = Tensor::<1, Int>::from_ints(before.as_slice(), &device).unsqueeze();
/// model.prefill(before, &mut cache, 1)?;
/// let mut sampler = Sampler::new(SamplingConfig::default())?;
/// let mut decoder = SpeculativeDecoder::new(&model, &mut cache, config)?;
/// while sequence.len() < 60 {
///     let limit = 60 - sequence.len();
///     let row = SpeculativeRow { sequence: &sequence, sampler: &mut sampler, limit };
///     let tokens = decoder.step(&mut [row])?.remove(0);
///     sequence.extend(tokens);
/// }
/// assert!(decoder.stats().tokens_per_verification() > Some(1.0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct SpeculativeDecoder<'a> {
    model: &'a dyn CausalLm,
    step: CapturedLm<'a>,
    draft: Method,
    ends: Vec<u32>,
    policy: Policy,
    stats: SpeculativeStats,
    /// The lengths after the last step, if it drafted.
    mark: Option<ModelMark>,
}

impl fmt::Debug for SpeculativeDecoder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("SpeculativeDecoder");
        fields.field("draft", &self.draft);
        fields.field("stats", &self.stats).finish_non_exhaustive()
    }
}

impl<'a> SpeculativeDecoder<'a> {
    /// Makes the decoder of `model` on a cache made for
    /// [`cache_method`](SpeculativeConfig::cache_method).
    ///
    /// # Errors
    /// As [`SpeculativeConfig::validate`].
    pub fn new(
        model: &'a dyn CausalLm,
        cache: &'a mut ModelCache,
        config: SpeculativeConfig,
    ) -> Result<Self, SparqError> {
        if let Some(layer) = cache.layers.first() {
            config.validate(layer.config().head_dim)?;
        }
        Ok(Self {
            policy: Policy::new(model, cache, &config),
            step: CapturedLm::new(model, cache, Method::DENSE),
            draft: config.cache_method(),
            model,
            ends: Vec::new(),
            stats: SpeculativeStats::default(),
            mark: None,
        })
    }

    /// Sets whether draft steps are captured if device and model support it. The default is true.
    pub fn with_capture(mut self, capture: bool) -> Self {
        self.step = self.step.with_capture(capture);
        self
    }

    /// Sets the tokens that end a sequence. A step returns nothing after such a token.
    pub fn with_ends(self, ends: &[u32]) -> Self {
        Self {
            ends: ends.to_vec(),
            ..self
        }
    }

    /// Returns the counts and times so far.
    pub fn stats(&self) -> &SpeculativeStats {
        &self.stats
    }

    /// Returns the cache.
    pub fn cache_mut(&mut self) -> &mut ModelCache {
        self.mark = None;
        self.step.cache_mut()
    }

    /// Returns the queue of the next dense steps of a single greedy sequence, at most `most`.
    /// `None` unless there are several before the next draft.
    pub(super) fn queue(&mut self, most: usize) -> Option<Queue<'_, 'a>> {
        let len = self.step.caches_mut().len();
        let left = self.policy.dense_steps(len, most.min(QUEUED_STEPS));
        if left < 2 {
            return None;
        }
        self.mark = None;
        self.step.set_method(Method::DENSE);
        Some(Queue {
            decoder: &mut self.step,
            left,
        })
    }

    /// Takes note of dense steps of a [queue](Self::queue).
    pub(super) fn note_dense(&mut self, steps: usize, time: Duration) {
        self.stats.tokens += steps;
        self.stats.dense_steps += steps;
        self.stats.dense_seconds += time.as_secs_f64();
        for _ in 0..steps {
            self.policy.rest(time.as_secs_f64() / steps as f64);
        }
    }

    /// Returns the next tokens of each sequence: at least one, at most `limit`, none after an end.
    /// The cache then holds each sequence with all of these but the last.
    ///
    /// # Errors
    /// If the number of rows is not the batch size of the cache, if a sequence is empty, or if the
    /// model, the device or sampling fails. The cache is then as before.
    pub fn step(
        &mut self,
        rows: &mut [SpeculativeRow<'_>],
    ) -> Result<Vec<Vec<u32>>, GenerateError> {
        let most = rows.iter().map(|row| row.limit).max().unwrap_or(0);
        if rows.iter().any(|row| row.sequence.is_empty()) {
            return Err(GenerateError::EmptyPrompt);
        }
        if most == 0 {
            return Ok(vec![Vec::new(); rows.len()]);
        }
        let cache = self.step.caches_mut();
        let len = cache.len();
        let greedy = rows.iter().all(|row| row.sampler.is_greedy());
        let tokens = self.policy.tokens(len, greedy);
        // A cache that grows is copied, and a draft must not be the reason.
        let capacity = cache
            .layers
            .first()
            .map_or(usize::MAX, |layer| layer.capacity());
        let room = capacity
            .min(self.model.context_len())
            .saturating_sub(len + 1);
        let tokens = tokens.min(room).min(most - 1);
        // A dense step of one sequence is taken back only after an error.
        let mark = self.mark.take();
        let mut mark = (tokens > 0 || rows.len() > 1)
            .then(|| mark.unwrap_or_else(|| self.step.caches_mut().mark()));
        let found = match &mut mark {
            Some(mark) if tokens > 0 => self.speculate(rows, tokens, mark),
            _ => self.dense(rows),
        };
        let found = found.and_then(|found| {
            let kept: Vec<usize> = found.iter().map(Vec::len).collect();
            match &mut mark {
                Some(mark) if tokens > 0 || kept.contains(&0) => {
                    self.step.caches_mut().roll_back(mark, &kept)?;
                }
                _ => mark = None,
            }
            Ok(found)
        });
        match (&found, mark) {
            (Ok(found), mark) => {
                self.stats.tokens += found.iter().map(Vec::len).sum::<usize>();
                self.mark = mark;
            }
            (Err(_), None) => self.step.cache_mut().truncate(len),
            (Err(_), Some(mark)) => self.restore(mark, rows.len()),
        }
        found
    }

    /// Takes a dense decode step.
    fn dense(&mut self, rows: &mut [SpeculativeRow<'_>]) -> Result<Vec<Vec<u32>>, GenerateError> {
        let started = Instant::now();
        self.step.set_method(Method::DENSE);
        let last: Vec<&[u32]> = rows.iter().map(|row| last(row.sequence)).collect();
        let logits = self.step.step(upload(self.model, &last))?;
        let mut pass = Pass::new(self.model, logits, rows, 1)?;
        let sample = |(index, row): (usize, &mut SpeculativeRow<'_>)| match row.limit {
            0 => Ok(Vec::new()),
            _ => {
                let candidates = pass.candidates(row.sampler, [index, 0], row.sequence)?;
                Ok(vec![row.sampler.draw(&candidates)])
            }
        };
        let found: Result<Vec<_>, GenerateError> =
            rows.iter_mut().enumerate().map(sample).collect();
        let active = rows.iter().filter(|row| row.limit > 0).count();
        let seconds = started.elapsed().as_secs_f64();
        self.stats.dense_steps += active;
        self.stats.dense_seconds += seconds;
        self.policy.rest(seconds);
        found
    }

    /// Drafts `tokens` tokens and verifies them. Leaves the positions of all in the cache.
    fn speculate(
        &mut self,
        rows: &mut [SpeculativeRow<'_>],
        tokens: usize,
        mark: &mut ModelMark,
    ) -> Result<Vec<Vec<u32>>, GenerateError> {
        let started = Instant::now();
        let (read, sampled) = self.draft(rows, tokens)?;
        let drafted = Instant::now();
        let tokens = read.dims()[1] - 1;
        let none = vec![0; rows.len()];
        self.step.caches_mut().roll_back(mark, &none)?;
        let logits = self.step.prefill(read.clone())?;
        let drafts = match sampled {
            Some(drafts) => drafts,
            None => most_probable(read)?,
        };
        let mut pass = Pass::new(self.model, logits, rows, tokens + 1)?;
        let mut found = Vec::with_capacity(rows.len());
        for (index, (row, draft)) in rows.iter_mut().zip(&drafts).enumerate() {
            found.push(self.verify(row, draft, &mut pass, index)?);
        }
        let (draft, verification) = (drafted - started, drafted.elapsed());
        let [draft, verification] = [draft, verification].map(|time| time.as_secs_f64());
        self.stats.draft_seconds += draft;
        self.stats.verify_seconds += verification;
        self.policy.verified(tokens, draft, verification);
        Ok(found)
    }

    /// Drafts up to `tokens` tokens of every sequence, fewer if all sequences end. Returns the last
    /// token of every sequence and its draft, [B, 1 + tokens], and the drafts that were sampled on
    /// the host.
    fn draft(
        &mut self,
        rows: &mut [SpeculativeRow<'_>],
        tokens: usize,
    ) -> Result<(Tensor<2, Int>, Option<Vec<Draft>>), GenerateError> {
        self.step.set_method(self.draft);
        let last: Vec<&[u32]> = rows.iter().map(|row| last(row.sequence)).collect();
        let mut read = vec![upload(self.model, &last)];
        if rows.iter().all(|row| row.sampler.is_argmax()) {
            // The host waits for none of the steps.
            for step in 0..tokens {
                let logits = self.step.step(read[step].clone())?;
                read.push(MostProbable::of(&logits).ids());
            }
            return Ok((Tensor::cat(read, 1), None));
        }
        let drafts = self.sampled(rows, tokens)?;
        let drafted: Vec<&[u32]> = drafts.iter().map(|draft| &draft.tokens[..]).collect();
        read.push(upload(self.model, &drafted));
        Ok((Tensor::cat(read, 1), Some(drafts)))
    }

    /// Drafts up to `tokens` tokens of every sequence, each sampled on the host.
    fn sampled(
        &mut self,
        rows: &mut [SpeculativeRow<'_>],
        tokens: usize,
    ) -> Result<Vec<Draft>, GenerateError> {
        let vocab = self.model.vocab_size();
        let mut histories: Vec<Vec<u32>> = rows.iter().map(|row| row.sequence.to_vec()).collect();
        let mut drafts: Vec<Draft> = rows.iter().map(|_| Draft::default()).collect();
        for _ in 0..tokens {
            let last: Vec<&[u32]> = histories.iter().map(|history| last(history)).collect();
            let logits = self.step.step(upload(self.model, &last))?;
            let mut logits = download(logits, self.model, [rows.len(), 1])?;
            let mut ended = true;
            let drafted = rows.iter_mut().zip(&mut histories).zip(&mut drafts);
            for (((row, history), draft), logits) in drafted.zip(logits.chunks_exact_mut(vocab)) {
                // A sequence that stays as it is reads its last token again.
                let token = match row.limit {
                    0 => history[history.len() - 1],
                    _ => {
                        let candidates = row.sampler.candidates(logits, history)?;
                        let token = row.sampler.draw(&candidates);
                        draft.candidates.push(candidates);
                        ended &= self.ends.contains(&token);
                        token
                    }
                };
                history.push(token);
                draft.tokens.push(token);
            }
            if ended {
                break;
            }
        }
        Ok(drafts)
    }

    /// Returns the accepted tokens of a draft and the token after them, from the pass that verifies
    /// it.
    fn verify(
        &mut self,
        row: &mut SpeculativeRow<'_>,
        draft: &Draft,
        pass: &mut Pass<'_>,
        sequence: usize,
    ) -> Result<Vec<u32>, GenerateError> {
        let mut found = Vec::new();
        if row.limit == 0 {
            return Ok(found);
        }
        self.stats.verifications += 1;
        self.stats.drafted += draft.tokens.len();
        let mut history = row.sequence.to_vec();
        for index in 0..=draft.tokens.len() {
            let candidates = pass.candidates(row.sampler, [sequence, index], &history)?;
            let (token, accepted) = match draft.tokens.get(index) {
                None => (row.sampler.draw(&candidates), false),
                Some(&token) => {
                    let from = &draft.candidates[index];
                    let replaced = judge(row.sampler, token, from, &candidates);
                    self.stats.judged += 1;
                    self.stats.accepted += usize::from(replaced.is_none());
                    self.policy.note(replaced.is_none());
                    (replaced.unwrap_or(token), replaced.is_none())
                }
            };
            found.push(token);
            history.push(token);
            if !accepted || found.len() == row.limit || self.ends.contains(&token) {
                break;
            }
        }
        Ok(found)
    }

    /// Takes back everything since a mark, after an error.
    fn restore(&mut self, mut mark: ModelMark, batch: usize) {
        // A model that failed in one layer has appended to the caches of earlier ones only.
        let restored = self.step.cache_mut().roll_back(&mut mark, &vec![0; batch]);
        if let Err(error) = restored {
            tracing::error!(%error, "cache not rolled back");
        }
    }
}

/// The draft of one sequence.
#[derive(Default)]
struct Draft {
    tokens: Vec<u32>,
    /// The distribution that each token was drawn from.
    candidates: Vec<Vec<Candidate>>,
}

/// Returns the last token of a sequence that is not empty.
fn last(sequence: &[u32]) -> &[u32] {
    &sequence[sequence.len() - 1..]
}

/// Copies drafts of the most probable tokens from the device, from [B, 1 + tokens].
fn most_probable(read: Tensor<2, Int>) -> Result<Vec<Draft>, GenerateError> {
    let [_, len] = read.dims();
    let ids = read.try_into_vec_as::<i64>();
    let ids = ids.map_err(failed)?;
    let candidate = |&id: &i64| Candidate {
        id: id as u32,
        probability: 1.0,
    };
    let draft = |row: &[i64]| Draft {
        tokens: row[1..].iter().map(|&id| id as u32).collect(),
        candidates: row[1..].iter().map(|id| vec![candidate(id)]).collect(),
    };
    Ok(ids.chunks_exact(len).map(draft).collect())
}
