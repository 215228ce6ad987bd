//! Sampling the next token: [`Sampler`].

use std::cmp::Ordering;

use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::sampling_config::SamplingConfig;

/// An error in sampling a token.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum SamplingError {
    /// A setting is out of its range.
    #[error("{field}: expected {expected}, found {found}")]
    Setting {
        /// The field of [`SamplingConfig`].
        field: &'static str,
        /// The range.
        expected: &'static str,
        /// The value.
        found: f32,
    },
    /// Logits are NaN or positive infinity.
    #[error("logits: expected finite values or -inf, found {nan} NaN and {infinite} +inf of {len}")]
    NotANumber {
        /// The number of NaN.
        nan: usize,
        /// The number of positive infinities.
        infinite: usize,
        /// The number of logits.
        len: usize,
    },
    /// Every token is excluded: there are no logits, or all are negative infinity.
    #[error("logits: expected at least one above -inf, found none of {len}")]
    NoCandidate {
        /// The number of logits.
        len: usize,
    },
}

/// A token that may be sampled, with its probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The token id.
    pub id: u32,
    /// The probability among the candidates.
    pub probability: f64,
}

/// Samples tokens according to a [`SamplingConfig`].
///
/// The order is that of Hugging Face transformers: repetition penalty, temperature, top-k, top-p,
/// then the draw. Equal logits rank by id, lowest first: `top_k` = 1 is greedy, and `top_k` keeps
/// exactly k tokens.
///
/// ```
/// # use sparq_models::text::{Sampler, SamplingConfig, SamplingError};
/// let mut greedy = Sampler::new(SamplingConfig::default())?;
/// assert_eq!(greedy.sample(&mut [0.5, 2.0, 2.0], &[])?, 1);
/// # Ok::<(), SamplingError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sampler {
    config: SamplingConfig,
    rng: SmallRng,
}

impl Sampler {
    /// Makes a sampler, seeded with `config.seed`.
    ///
    /// # Errors
    /// As [`SamplingConfig::validate`].
    pub fn new(config: SamplingConfig) -> Result<Self, SamplingError> {
        config.validate()?;
        Ok(Self {
            config,
            rng: SmallRng::seed_from_u64(config.seed),
        })
    }

    /// Samples the next token from `logits` `[vocab]`, given the tokens so far. Applies the
    /// repetition penalty to `logits` in place.
    ///
    /// # Errors
    /// If a logit is NaN or positive infinity, or if none is above negative infinity.
    pub fn sample(&mut self, logits: &mut [f32], history: &[u32]) -> Result<u32, SamplingError> {
        if self.config.is_greedy() {
            self.penalize(logits, history)?;
            return Ok(argmax(logits));
        }
        let candidates = self.candidates(logits, history)?;
        Ok(self.draw(&candidates))
    }

    /// Returns whether sampling draws no random number.
    pub(super) fn is_greedy(&self) -> bool {
        self.config.is_greedy()
    }

    /// Returns whether the token with the largest logit is always sampled.
    pub fn is_argmax(&self) -> bool {
        self.config.is_greedy() && self.config.repetition_penalty == 1.0
    }

    /// Draws one of the candidates, of which there is at least one.
    pub(super) fn draw(&mut self, candidates: &[Candidate]) -> u32 {
        let last = candidates[candidates.len() - 1].id;
        if candidates.len() == 1 {
            return last;
        }
        let mut left = self.uniform();
        for candidate in candidates {
            left -= candidate.probability;
            if left < 0.0 {
                return candidate.id;
            }
        }
        // Rounding can leave the sum of the probabilities below the number drawn.
        last
    }

    /// Draws a number from [0, 1).
    pub(super) fn uniform(&mut self) -> f64 {
        self.rng.random()
    }

    /// Returns the distribution that [`Sampler::sample`] draws from, most probable first. Greedy
    /// sampling has one candidate.
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    #[doc(hidden)]
    pub fn candidates(
        &self,
        logits: &mut [f32],
        history: &[u32],
    ) -> Result<Vec<Candidate>, SamplingError> {
        self.penalize(logits, history)?;
        if self.config.is_greedy() {
            return Ok(vec![Candidate {
                id: argmax(logits),
                probability: 1.0,
            }]);
        }
        let mut ids: Vec<u32> = (0..).zip(&*logits).map(|(id, _)| id).collect();
        ids.retain(|&id| logits[id as usize] > f32::NEG_INFINITY);
        if self.config.top_k > 0 {
            keep_top_k(&mut ids, logits, self.config.top_k);
        }
        let largest = f64::from(largest(logits));
        let temperature = f64::from(self.config.temperature);
        // exp((x - max) / T) is at most 1 and reaches it: no overflow, and no sum of 0.
        let weight = |id: u32| ((f64::from(logits[id as usize]) - largest) / temperature).exp();
        if self.config.top_p < 1.0 {
            keep_top_p(&mut ids, logits, weight, f64::from(self.config.top_p));
        }
        ids.sort_unstable_by(|&a, &b| rank(logits, a, b));
        let sum: f64 = ids.iter().map(|&id| weight(id)).sum();
        let candidate = |&id: &u32| Candidate {
            id,
            probability: weight(id) / sum,
        };
        Ok(ids.iter().map(candidate).collect())
    }

    /// Applies the repetition penalty and checks the resulting logits.
    fn penalize(&self, logits: &mut [f32], history: &[u32]) -> Result<(), SamplingError> {
        let penalty = self.config.repetition_penalty;
        if penalty != 1.0 {
            let window = match self.config.repetition_window {
                0 => history.len(),
                window => window.min(history.len()),
            };
            // A token is penalised once, however often it occurs.
            let mut seen = history[history.len() - window..].to_vec();
            seen.sort_unstable();
            seen.dedup();
            for id in seen {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit = if *logit > 0.0 {
                        *logit / penalty
                    } else {
                        *logit * penalty
                    };
                }
            }
        }
        let len = logits.len();
        let nan = logits.iter().filter(|x| x.is_nan()).count();
        let infinite = logits.iter().filter(|&&x| x == f32::INFINITY).count();
        if nan + infinite > 0 {
            return Err(SamplingError::NotANumber { nan, infinite, len });
        }
        if largest(logits) == f32::NEG_INFINITY {
            return Err(SamplingError::NoCandidate { len });
        }
        Ok(())
    }
}

/// Orders two tokens by logit, largest first, then by id.
fn rank(logits: &[f32], a: u32, b: u32) -> Ordering {
    logits[b as usize]
        .partial_cmp(&logits[a as usize])
        .unwrap_or(Ordering::Equal)
        .then(a.cmp(&b))
}

/// Returns the id of the largest logit, the lowest id of equal ones.
fn argmax(logits: &[f32]) -> u32 {
    let largest = largest(logits);
    let id = logits.iter().position(|&logit| logit == largest);
    id.unwrap_or(0) as u32
}

/// Returns the largest logit, or -inf if there is none.
fn largest(logits: &[f32]) -> f32 {
    // In lanes, so that the compiler can use vectors.
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; 32];
    let chunks = logits.chunks_exact(lanes.len());
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, logit);
        }
    }
    let all = lanes.iter().chain(rest).copied();
    all.fold(f32::NEG_INFINITY, larger)
}

/// Keeps the `count` tokens with the largest logits, in any order.
fn keep_top_k(ids: &mut Vec<u32>, logits: &[f32], count: usize) {
    if count < ids.len() {
        ids.select_nth_unstable_by(count - 1, |&a, &b| rank(logits, a, b));
        ids.truncate(count);
    }
}

/// Keeps the fewest tokens with the largest logits whose weights reach `share` of the total.
fn keep_top_p(ids: &mut Vec<u32>, logits: &[f32], weight: impl Fn(u32) -> f64, share: f64) {
    let enough = share * ids.iter().map(|&id| weight(id)).sum::<f64>();
    // Sorting a vocabulary of 128k takes longer than a decode step of a small model. Most of the
    // weight lies on few tokens, so sort a few and more only if they do not reach `share`.
    let mut count = 64.min(ids.len());
    loop {
        if count < ids.len() {
            ids.select_nth_unstable_by(count - 1, |&a, &b| rank(logits, a, b));
        }
        ids[..count].sort_unstable_by(|&a, &b| rank(logits, a, b));
        let mut sum = 0.0;
        let kept = ids[..count].iter().position(|&id| {
            sum += weight(id);
            sum >= enough
        });
        match kept {
            Some(last) => return ids.truncate(last + 1),
            // Rounding can leave the sum of all below `enough`.
            None if count == ids.len() => return,
            None => count = (count * 8).min(ids.len()),
        }
    }
}
