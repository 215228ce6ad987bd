//! The times of steps so far, and the number of tokens to draft that follows from them: [`Timing`].

use super::policy::best;

/// The weight of a new time in a mean.
const NEW: f64 = 0.2;

/// The dense steps before drafts are tried for the first time. The first step of a process is slow.
const FIRST: usize = 2;

/// Tokens of a draft that is tried for its time.
const TRIED: usize = 2;

/// The steps without a draft before drafts are tried again. It doubles with each try in vain.
const PAUSE: usize = 64;

/// The longest pause.
const LONGEST_PAUSE: usize = 1024;

/// The verifications after which a dense step is timed again.
const DRAFTS: usize = 64;

/// The gain in time below which dense steps are taken.
const MARGIN: f64 = 0.02;

/// The mean time of each kind of step.
#[derive(Clone, Debug, Default)]
pub(super) struct Timing {
    dense: Mean,
    draft: Mean,
    /// The time that each further row adds to a verification over a dense step.
    row: Mean,
    /// The dense steps since the last draft, and the drafts since the last dense step.
    since: [usize; 2],
    /// The drafts so far that were only tried.
    tries: u32,
}

impl Timing {
    /// Returns the number of tokens to draft, 0 for a dense step.
    pub(super) fn tokens(&mut self, acceptance: f64) -> usize {
        let [dense_steps, drafts] = self.since;
        let (Some(dense), Some(draft), Some(row)) =
            (self.dense.value(), self.draft.value(), self.row.value())
        else {
            return if dense_steps < FIRST { 0 } else { TRIED };
        };
        let found = best(acceptance, dense * (1.0 - MARGIN), draft, row / dense);
        if found > 0 {
            self.tries = 0;
            return if drafts < DRAFTS { found } else { 0 };
        }
        let pause = (PAUSE << self.tries.min(8)).min(LONGEST_PAUSE);
        if dense_steps < pause {
            return 0;
        }
        self.tries += 1;
        TRIED
    }

    /// Takes note of the seconds of a dense step.
    pub(super) fn dense(&mut self, seconds: f64) {
        self.dense.add(seconds);
        self.since = [self.since[0] + 1, 0];
    }

    /// Takes note of the seconds of a draft of `tokens` tokens and of its verification.
    pub(super) fn verified(&mut self, tokens: usize, draft: f64, verification: f64) {
        let tokens = tokens.max(1) as f64;
        self.draft.add(draft / tokens);
        if let Some(dense) = self.dense.value() {
            self.row.add(((verification - dense) / tokens).max(0.0));
        }
        self.since = [0, self.since[1] + 1];
    }
}

/// A mean that follows changes, of numbers that are not negative.
#[derive(Clone, Copy, Debug, Default)]
struct Mean(Option<f64>);

impl Mean {
    fn value(self) -> Option<f64> {
        self.0
    }

    /// Adds a number. Interruptions of a step count as twice the mean.
    fn add(&mut self, value: f64) {
        self.0 = Some(match self.0 {
            None => value,
            // A slow first number is no mean.
            Some(mean) if value < 0.5 * mean => value,
            Some(mean) => mean + NEW * (value.min(2.0 * mean) - mean),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the number of tokens per draft of some steps, which take these times.
    fn drafted(steps: usize, dense: f64, draft: f64, row: f64) -> Vec<usize> {
        let mut timing = Timing::default();
        let step = |_| {
            let tokens = timing.tokens(0.95);
            match tokens {
                0 => timing.dense(dense),
                n => timing.verified(n, n as f64 * draft, dense + n as f64 * row),
            }
            tokens
        };
        (0..steps).map(step).collect()
    }

    #[test]
    fn drafts_are_taken_where_they_pay() {
        let found = drafted(400, 1.0, 0.3, 0.05);
        assert_eq!(found[..3], [0, 0, TRIED]);
        let best = best(0.95, 0.98, 0.3, 0.05);
        let taken = found.iter().filter(|&&tokens| tokens == best).count();
        assert!(best > 2 && taken > 390, "{taken} {found:?}");
        // Dense steps are timed again.
        assert!(found[3..].contains(&0));
    }

    #[test]
    fn drafts_that_do_not_pay_are_tried_ever_less() {
        let found = drafted(4000, 1.0, 0.8, 0.3);
        let tries = found.iter().filter(|&&tokens| tokens > 0).count();
        assert!((3..10).contains(&tries), "{tries}");
        let last = found.iter().rposition(|&tokens| tokens > 0).unwrap();
        let before = found[..last].iter().rposition(|&tokens| tokens > 0);
        assert!(last - before.unwrap() > LONGEST_PAUSE);
    }

    #[test]
    fn changed_times_are_followed() {
        let mut timing = Timing::default();
        let mut run = |steps: usize, draft: f64| {
            let mut drafted = 0;
            for _ in 0..steps {
                match timing.tokens(0.95) {
                    0 => timing.dense(1.0),
                    n => timing.verified(n, n as f64 * draft, 1.0 + 0.1 * n as f64),
                }
                drafted = timing.tokens(0.95);
            }
            drafted
        };
        assert!(run(30, 0.3) > 0);
        assert_eq!(run(60, 1.1), 0);
    }
}
