//! The number of tokens to draft, from the acceptance so far and the costs of steps.

use sparq::cost::{StepCosts, StepShape};
use sparq::{KvCacheConfig, Method, SparqConfig, ops};

use super::timing::Timing;
use super::{MOST_TOKENS, SpeculativeConfig};
use crate::{CausalLm, ModelCache};

/// The acceptance assumed at first: that of SmolLM2-135M at 4096 positions with k = 128, measured.
const ASSUMED: f64 = 0.9;

/// The weight of a new verdict in the estimate of the acceptance.
const NEW: f64 = 0.02;

/// The weight of the assumed acceptance after a step without a draft, which tells nothing: after
/// some hundred such steps drafts are tried again.
const FORGET: f64 = 0.003;

/// Chooses the number of tokens to draft.
///
/// By the cost model it depends on no clock, so that seeds repeat. Where the number changes no
/// token, the times of the steps so far replace the cost model, which then only excludes lengths at
/// which a draft step takes as long as a dense one.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    tokens: Option<usize>,
    sparq: SparqConfig,
    costs: StepCosts,
    /// The shape of a step of each layer, and its cache.
    layers: Vec<(StepShape, KvCacheConfig)>,
    /// Microseconds in which a dense step and a draft step read the weights.
    weights_us: [f64; 2],
    /// The part of a step's time that each further row of a verification adds.
    per_row: f64,
    /// Whether a verification has the bits of dense steps.
    exact: bool,
    timing: Timing,
    acceptance: f64,
}

impl Policy {
    pub(super) fn new(
        model: &dyn CausalLm,
        cache: &ModelCache,
        config: &SpeculativeConfig,
    ) -> Self {
        let draft = &config.draft;
        let layer = |layer: &sparq::KvCache| {
            let config = *layer.config();
            (draft.step(&config), config)
        };
        let gpu = ops::has_kernels(&model.device());
        Self {
            tokens: config.tokens,
            sparq: draft.sparq,
            costs: draft.costs,
            layers: cache.layers.iter().map(layer).collect(),
            weights_us: [Method::DENSE, draft.sparq.into()]
                .map(|method| model.weight_bytes(&method) as f64 / (1e3 * draft.costs.gb_per_s)),
            // On two cores, five rows of SmolLM2-135M take 1.7 (F16) to 2.5 times (Q4_0) as long as
            // one.
            per_row: if gpu { 0.01 } else { 0.25 },
            exact: !gpu,
            timing: Timing::default(),
            acceptance: ASSUMED,
        }
    }

    /// Returns the number of tokens to draft after `len` positions, 0 where no draft pays. `greedy`
    /// is whether each sequence takes the most probable token.
    pub(super) fn tokens(&mut self, len: usize, greedy: bool) -> usize {
        let method = Method::from(self.sparq);
        let sparse = |(_, cache): &(StepShape, KvCacheConfig)| method.is_sparse(cache, len + 1);
        if !self.layers.iter().any(sparse) {
            return 0;
        }
        if let Some(tokens) = self.tokens {
            return tokens;
        }
        let [dense, draft] = self.step_us(len);
        match self.exact && greedy {
            true if draft >= dense => 0,
            true => self.timing.tokens(self.acceptance),
            false => best(self.acceptance, dense, draft, self.per_row),
        }
    }

    /// Returns the number of coming steps without a draft after `len` positions, at most `most`, as
    /// far as the cost model decides.
    pub(super) fn dense_steps(&self, len: usize, most: usize) -> usize {
        let mut policy = self.clone();
        let dense = |step: &usize| {
            let drafts = policy.tokens(len + step, true) > 0;
            policy.forget();
            !drafts
        };
        (0..most).take_while(dense).count()
    }

    /// Takes note of a drafted token's fate.
    pub(super) fn note(&mut self, accepted: bool) {
        let verdict = f64::from(u8::from(accepted));
        self.acceptance += NEW * (verdict - self.acceptance);
    }

    /// Takes note of the seconds of a step without a draft.
    pub(super) fn rest(&mut self, seconds: f64) {
        self.forget();
        self.timing.dense(seconds);
    }

    fn forget(&mut self) {
        self.acceptance += FORGET * (ASSUMED - self.acceptance);
    }

    /// Takes note of the seconds of a draft of `tokens` tokens and of its verification.
    pub(super) fn verified(&mut self, tokens: usize, draft: f64, verification: f64) {
        self.timing.verified(tokens, draft, verification);
    }

    /// Returns the microseconds of a dense step and of a draft step at `len` positions.
    fn step_us(&self, len: usize) -> [f64; 2] {
        let method = Method::from(self.sparq);
        let mut times = self.weights_us;
        for (shape, cache) in &self.layers {
            let attended = cache.attended(len + 1);
            let dense = self.costs.dense_rows_us(shape, attended, cache.rows);
            times[0] += dense;
            times[1] += match (method.is_sparse(cache, len + 1), cache.sketch) {
                (true, Some(_)) => self.costs.sparq_us(shape, attended, &self.sparq),
                // The layer reuses the positions of another one.
                (true, None) => self.costs.reuse_us(shape, attended, &self.sparq),
                (false, _) => dense,
            };
        }
        times
    }
}

/// Returns the number of tokens to draft that gives the most tokens per time.
///
/// n draft steps and a verification of n + 1 rows give (1 - a^(n + 1)) / (1 - a) tokens on average,
/// if each drafted token is accepted with probability a.
pub(super) fn best(acceptance: f64, dense: f64, draft: f64, per_row: f64) -> usize {
    let mut most = (0, 1.0 / dense);
    let (mut tokens, mut power) = (1.0, 1.0);
    for n in 1..=MOST_TOKENS {
        power *= acceptance;
        tokens += power;
        let rows = n as f64;
        let rate = tokens / (rows * draft + dense * (1.0 + per_row * rows));
        if rate > most.1 {
            most = (n, rate);
        }
    }
    most.0
}

#[cfg(test)]
mod tests {
    use super::best;

    #[test]
    fn no_draft_pays_if_its_steps_are_not_faster() {
        assert_eq!(best(1.0, 10.0, 10.0, 0.0), 0);
        assert_eq!(best(0.9, 10.0, 9.9, 0.01), 0);
    }

    #[test]
    fn drafts_lengthen_with_acceptance_and_with_the_gain() {
        let lengths = [0.5, 0.8, 0.9, 0.97].map(|acceptance| best(acceptance, 10.0, 3.0, 0.02));
        assert!(
            lengths.is_sorted() && lengths[0] < lengths[3],
            "{lengths:?}"
        );
        let lengths = [9.0, 6.0, 3.0, 1.0].map(|draft| best(0.9, 10.0, draft, 0.02));
        assert!(
            lengths.is_sorted() && lengths[0] < lengths[3],
            "{lengths:?}"
        );
    }

    #[test]
    fn chosen_length_is_the_best_by_enumeration() {
        for acceptance in [0.3, 0.7, 0.93, 1.0] {
            for draft in [0.1, 0.4, 0.8] {
                let rate = |n: usize| {
                    let tokens: f64 = (0..=n).map(|i| f64::powi(acceptance, i as i32)).sum();
                    tokens / (n as f64 * draft + 1.0 + 0.05 * n as f64)
                };
                let all: Vec<f64> = (0..16).map(rate).collect();
                let most = all.iter().fold(0.0f64, |m, &rate| m.max(rate));
                let chosen = all[best(acceptance, 1.0, draft, 0.05)];
                assert!((chosen - most).abs() < 1e-12, "{acceptance} {draft}");
            }
        }
    }
}
