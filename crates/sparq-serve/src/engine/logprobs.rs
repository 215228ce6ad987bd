//! The log-probabilities of a token: [`TokenLogprobs`].

/// A token of an answer with its log-probability under the model, before penalties and temperature.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The token.
    pub token: u32,
    /// Its log-probability, base e.
    pub logprob: f32,
    /// The most probable tokens, most probable first.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprobs {
    /// Reads the log-probabilities of `token` and of the `count` most probable tokens from logits
    /// [vocab].
    pub(super) fn new(logits: &[f32], token: u32, count: usize) -> Self {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights = logits.iter().map(|&x| f64::from(x - largest).exp());
        let norm = largest + weights.sum::<f64>().ln() as f32;
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        let count = count.min(ids.len());
        let rank = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]);
        if count > 0 && count < ids.len() {
            ids.select_nth_unstable_by(count - 1, |a, b| rank(a, b).then(a.cmp(b)));
        }
        ids.truncate(count);
        ids.sort_unstable_by(|a, b| rank(a, b).then(a.cmp(b)));
        let of = |id: u32| logits[id as usize] - norm;
        Self {
            token,
            logprob: of(token),
            top: ids.into_iter().map(|id| (id, of(id))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logprobs_are_those_of_the_softmax() {
        let logits = [1.0f32, 3.0, 2.0, f32::NEG_INFINITY];
        let sum: f32 = logits.iter().map(|x| x.exp()).sum();
        let found = TokenLogprobs::new(&logits, 0, 2);
        assert!((found.logprob - (1.0 - sum.ln())).abs() < 1e-6);
        let ids: Vec<u32> = found.top.iter().map(|&(id, _)| id).collect();
        assert_eq!(ids, [1, 2]);
        assert!((found.top[0].1 - (3.0 - sum.ln())).abs() < 1e-6);
        assert!(TokenLogprobs::new(&logits, 3, 0).top.is_empty());
    }
}
