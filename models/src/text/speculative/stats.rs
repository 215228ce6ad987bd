//! Counts and times of lossless decoding: [`SpeculativeStats`].

use serde::{Deserialize, Serialize};

/// Counts and times of lossless decoding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SpeculativeStats {
    /// The tokens returned.
    pub tokens: usize,
    /// The tokens drafted.
    pub drafted: usize,
    /// The drafted tokens up to the first rejection of each draft.
    pub judged: usize,
    /// The drafted tokens accepted.
    pub accepted: usize,
    /// The verifications, each a pass over the tokens of a draft.
    pub verifications: usize,
    /// The dense decode steps, where a draft would not pay.
    pub dense_steps: usize,
    /// The seconds of draft steps and their sampling.
    pub draft_seconds: f64,
    /// The seconds of verifications, their sampling and rollbacks.
    pub verify_seconds: f64,
    /// The seconds of dense decode steps and their sampling.
    pub dense_seconds: f64,
}

impl SpeculativeStats {
    /// Returns the share of judged tokens that were accepted, `None` without a draft.
    pub fn acceptance(&self) -> Option<f64> {
        (self.judged > 0).then(|| self.accepted as f64 / self.judged as f64)
    }

    /// Returns the mean number of tokens that a verification of a sequence gives, `None` without
    /// one.
    pub fn tokens_per_verification(&self) -> Option<f64> {
        let tokens = self.tokens.saturating_sub(self.dense_steps);
        (self.verifications > 0).then(|| tokens as f64 / self.verifications as f64)
    }

    /// Returns an estimate of the seconds saved over dense decode steps alone: one for each token,
    /// each as long as the mean dense step, or as a verification if there was no dense step.
    pub fn seconds_saved(&self) -> Option<f64> {
        let mean = |seconds: f64, count: usize| (count > 0).then(|| seconds / count as f64);
        let verification = mean(self.verify_seconds, self.verifications)?;
        let step = mean(self.dense_seconds, self.dense_steps).unwrap_or(verification);
        let took = self.draft_seconds + self.verify_seconds + self.dense_seconds;
        Some(self.tokens as f64 * step.min(verification) - took)
    }
}
