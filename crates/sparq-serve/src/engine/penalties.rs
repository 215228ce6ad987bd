//! Changes of logits that depend on the answer so far: [`Penalties`].

use std::collections::HashMap;

/// Changes of logits before sampling, as OpenAI's API defines them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Penalties {
    /// Subtracted from the logit of a token once it has occurred in the answer.
    pub presence: f32,
    /// Subtracted from the logit of a token for each time it has occurred in the answer.
    pub frequency: f32,
    /// Added to the logits of these tokens.
    pub bias: Vec<(u32, f32)>,
}

/// The penalties of an answer, and how often it contains each token.
#[derive(Clone, Debug)]
pub(super) struct PenaltyState {
    penalties: Penalties,
    counts: HashMap<u32, u32>,
}

impl PenaltyState {
    pub(super) fn new(penalties: Penalties) -> Self {
        Self {
            penalties,
            counts: HashMap::new(),
        }
    }

    /// Returns whether logits never change.
    pub(super) fn is_none(&self) -> bool {
        self.penalties == Penalties::default()
    }

    /// Changes logits [vocab].
    pub(super) fn apply(&self, logits: &mut [f32]) {
        let Penalties {
            presence,
            frequency,
            bias,
        } = &self.penalties;
        let mut add = |id: u32, value: f32| {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit += value;
            }
        };
        for (&id, &count) in &self.counts {
            add(id, -presence - frequency * count as f32);
        }
        for &(id, value) in bias {
            add(id, value);
        }
    }

    /// Counts a token of the answer.
    pub(super) fn count(&mut self, token: u32) {
        if self.penalties.presence != 0.0 || self.penalties.frequency != 0.0 {
            *self.counts.entry(token).or_default() += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn penalties_follow_the_counts() {
        let mut state = PenaltyState::new(Penalties {
            presence: 0.5,
            frequency: 0.25,
            bias: vec![(2, -1.0), (9, 1.0)],
        });
        state.count(0);
        state.count(1);
        state.count(1);
        let mut logits = [1.0, 1.0, 1.0, 1.0];
        state.apply(&mut logits);
        assert_eq!(logits, [0.25, 0.0, 0.0, 1.0]);
    }
}
