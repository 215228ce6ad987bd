//! The stages of the algorithm for one batch head.

use std::ops::Range;

use sparq::SparqConfig;
use sparq::methods::{Components, GroupScore, Magnitude};

/// The inputs of a decode step for one batch head.
#[derive(Clone)]
pub(crate) struct HeadInput<'a> {
    /// The settings.
    pub(crate) config: &'a SparqConfig,
    /// The queries of the group, [g, d].
    pub(crate) q: &'a [f32],
    /// The keys, [S, d].
    pub(crate) k: &'a [f32],
    /// The values, [S, d].
    pub(crate) v: &'a [f32],
    /// d.
    pub(crate) head_dim: usize,
    /// The valid positions.
    pub(crate) valid: Range<usize>,
}

/// The codes of the key sketch.
#[derive(Clone, Copy)]
pub(crate) struct Codes<'a> {
    /// [d, S].
    pub(crate) codes: &'a [u8],
    /// The scale of each channel, [d].
    pub(crate) scales: &'a [f32],
}

/// The approximate logits of one query head.
pub(crate) struct Approximation {
    /// [S].
    pub(crate) logits: Vec<f64>,
    /// The sums of the magnitudes of the terms, [S]. Rounding errors are proportional to them.
    pub(crate) magnitudes: Vec<f64>,
}

impl<'a> HeadInput<'a> {
    /// Returns S, the number of positions of the buffers.
    pub(crate) fn seq(&self) -> usize {
        self.k.len() / self.head_dim
    }

    /// Returns the local window.
    pub(crate) fn window(&self) -> Range<usize> {
        let Range { start, end } = self.valid;
        end.saturating_sub(self.config.local_window).max(start)..end
    }

    /// Returns the number of positions to select.
    pub(crate) fn count(&self) -> usize {
        self.config.top_k.min(self.valid.len())
    }

    /// Returns the queries of the group.
    pub(crate) fn queries(&self) -> impl ExactSizeIterator<Item = &'a [f32]> + Clone + use<'a> {
        self.q.chunks_exact(self.head_dim)
    }

    /// Returns the key at position `s`, [d].
    pub(crate) fn key_at(&self, s: usize) -> &'a [f32] {
        &self.k[s * self.head_dim..][..self.head_dim]
    }

    /// Returns the value at position `s`, [d].
    pub(crate) fn value_at(&self, s: usize) -> &'a [f32] {
        &self.v[s * self.head_dim..][..self.head_dim]
    }

    /// Returns zero point and scale of a channel, in fp32 as stored. Ignores keys that are not
    /// finite.
    fn range(&self, c: usize, levels: f32) -> (f32, f32) {
        let channel = || {
            let keys = self.valid.clone().map(|s| self.key_at(s)[c]);
            keys.filter(|key| key.is_finite())
        };
        let lo = channel().fold(f32::INFINITY, f32::min);
        let hi = channel().fold(f32::NEG_INFINITY, f32::max);
        if lo > hi {
            return (0.0, 0.0);
        }
        let scale = (hi - lo) / levels;
        (lo, if scale.is_finite() { scale } else { 0.0 })
    }

    /// Returns zero point and scale of every channel, [d].
    pub(crate) fn ranges(&self, levels: f32) -> Vec<(f32, f32)> {
        let channels = 0..self.head_dim;
        channels.map(|c| self.range(c, levels)).collect()
    }

    /// Returns the largest distance of a scaled key from its code over the valid positions, minus
    /// the 0.5 of correct rounding. Keys outside the range are clamped. The code of NaN is 0, and
    /// so is every code of a channel with a scale of 0.
    pub(crate) fn distance(&self, codes: &[u8], ranges: &[(f32, f32)], levels: f32) -> f64 {
        let mut farthest = 0f64;
        for (c, &(zero_point, scale)) in ranges.iter().enumerate() {
            for s in self.valid.clone() {
                let key = self.key_at(s)[c];
                let scaled = match scale == 0.0 || key.is_nan() {
                    true => 0.0,
                    false => f64::from((key - zero_point) / scale).clamp(0.0, f64::from(levels)),
                };
                let code = f64::from(codes[c * self.seq() + s]);
                farthest = farthest.max((scaled - code).abs());
            }
        }
        farthest - 0.5
    }

    /// Returns the number that a component of the queries counts times: the scale of its codes if
    /// the contribution counts.
    pub(crate) fn weight(&self, c: usize, codes: Option<Codes<'_>>) -> f64 {
        match (self.config.magnitude, codes) {
            (Magnitude::Contribution, Some(codes)) => f64::from(codes.scales[c]),
            _ => 1.0,
        }
    }

    /// Returns the magnitudes by which stage 1 ranks the components, [d].
    pub(crate) fn component_scores(&self, codes: Option<Codes<'_>>) -> Vec<f64> {
        let sum = |c: usize, term: fn(f64) -> f64| -> f64 {
            let sum: f64 = self.queries().map(|q| term(f64::from(q[c]))).sum();
            sum * self.weight(c, codes)
        };
        (0..self.head_dim)
            .map(|c| match self.config.components {
                Components::SumAbs => sum(c, f64::abs),
                Components::AbsSum => sum(c, |x| x).abs(),
            })
            .collect()
    }

    /// Returns the approximate logits of every query head of the group, from the codes if there are
    /// any, else from the keys.
    pub(crate) fn approximate(
        &self,
        components: &[usize],
        codes: Option<Codes<'_>>,
    ) -> Vec<Approximation> {
        let head = |q: &[f32]| {
            let tau = self.temperature(q, components, codes);
            self.logits(components, codes, |c| vec![f64::from(q[c]) / tau])
        };
        self.queries().map(head).collect()
    }

    /// Returns the temperature of a head's query for the selected components.
    fn temperature(&self, q: &[f32], components: &[usize], codes: Option<Codes<'_>>) -> f64 {
        let size = |c: usize| f64::from(q[c]).abs() * self.weight(c, codes);
        let selected: f64 = components.iter().map(|&c| size(c)).sum();
        let all: f64 = (0..q.len()).map(size).sum();
        let ratio = if selected == 0.0 { 1.0 } else { selected / all };
        (q.len() as f64 * ratio).sqrt()
    }

    /// Returns the sum of the group's logits, computed with the sum of the heads' weights.
    pub(crate) fn summed(&self, components: &[usize], codes: Option<Codes<'_>>) -> Approximation {
        let tau = |q| self.temperature(q, components, codes);
        let heads = self.queries().map(|q| (q, tau(q)));
        let heads: Vec<(&[f32], f64)> = heads.collect();
        self.logits(components, codes, |c| {
            let weights = heads.iter().map(|(q, tau)| f64::from(q[c]) / tau);
            weights.collect()
        })
    }

    /// Returns the products of the keys with a query whose weight on a component is the sum of
    /// `terms`. As in the algorithm, NaN becomes the lowest finite number, and infinities become
    /// the nearest finite ones.
    fn logits(
        &self,
        components: &[usize],
        codes: Option<Codes<'_>>,
        terms: impl Fn(usize) -> Vec<f64>,
    ) -> Approximation {
        let seq = self.seq();
        let mut found = Approximation {
            logits: vec![0.0; seq],
            magnitudes: vec![0.0; seq],
        };
        for &c in components {
            let terms = terms(c);
            let weight: f64 = terms.iter().sum();
            let size: f64 = terms.iter().map(|term| term.abs()).sum();
            let sums = found.logits.iter_mut().zip(&mut found.magnitudes);
            for (s, (logit, magnitude)) in sums.enumerate() {
                let key = match codes {
                    None => f64::from(self.key_at(s)[c]),
                    // The zero point adds the same to every position, so softmax and ranking ignore
                    // it.
                    Some(Codes { codes, scales }) => {
                        f64::from(scales[c]) * f64::from(codes[c * seq + s])
                    }
                };
                *logit += weight * key;
                *magnitude += (size * key).abs();
            }
        }
        found.logits.iter_mut().for_each(|x| *x = finite(*x));
        found
    }

    /// Returns the approximate scores of one head, [S], 0 at invalid positions.
    pub(crate) fn probabilities(&self, logits: &[f64]) -> Vec<f64> {
        softmax(logits, |s| self.valid.contains(&s))
    }

    /// Returns the scores by which stage 2 ranks the positions, [S]: the group's logits, or the
    /// logarithm of summed probabilities.
    ///
    /// The logarithm does not change the ranking, and makes leads of both group scores comparable
    /// with errors of logits.
    pub(crate) fn scores(&self, components: &[usize], codes: Option<Codes<'_>>) -> Vec<f64> {
        match self.config.group_score {
            GroupScore::Logits => self.summed(components, codes).logits,
            GroupScore::Probabilities => {
                let heads = self.approximate(components, codes);
                let all = heads.iter().map(|head| self.probabilities(&head.logits));
                let all: Vec<Vec<f64>> = all.collect();
                let sum = |s: usize| all.iter().map(|head| head[s]).sum::<f64>();
                (0..self.seq()).map(|s| sum(s).ln()).collect()
            }
        }
    }

    /// Returns the exact logit q . k / sqrt(d) at position `s`, and the sum of the magnitudes of
    /// its terms.
    pub(crate) fn exact_logit(&self, q: &[f32], s: usize) -> (f64, f64) {
        let products = q.iter().zip(self.key_at(s));
        let products = products.map(|(&a, &b)| f64::from(a) * f64::from(b));
        let (sum, magnitude) =
            products.fold((0.0, 0.0), |(sum, all), x| (sum + x, all + f64::abs(x)));
        let scale = (q.len() as f64).sqrt();
        (sum / scale, magnitude / scale)
    }

    /// Returns exact attention of one query head over the selected positions, [d].
    pub(crate) fn attend(&self, q: &[f32], selected: &[u8]) -> Vec<f64> {
        let logits: Vec<f64> = (0..selected.len())
            .map(|s| self.exact_logit(q, s).0)
            .collect();
        let weights = softmax(&logits, |s| selected[s] == 1);
        let mut output = vec![0.0; q.len()];
        for s in (0..selected.len()).filter(|&s| selected[s] == 1) {
            let values = output.iter_mut().zip(self.value_at(s));
            values.for_each(|(y, &value)| *y += weights[s] * f64::from(value));
        }
        output
    }

    /// Returns the mean of V over the valid positions, [d], or 0 if there are none.
    pub(crate) fn mean_value(&self) -> Vec<f64> {
        let mut mean = vec![0.0; self.head_dim];
        for s in self.valid.clone() {
            let values = mean.iter_mut().zip(self.value_at(s));
            values.for_each(|(sum, &value)| *sum += f64::from(value));
        }
        let count = self.valid.len().max(1) as f64;
        mean.iter().map(|sum| sum / count).collect()
    }
}

/// Replaces NaN by the lowest finite number of fp32, and clamps to the finite numbers of fp32.
pub(crate) fn finite(x: f64) -> f64 {
    let largest = f64::from(f32::MAX);
    match x.is_nan() {
        true => -largest,
        false => x.clamp(-largest, largest),
    }
}

/// Returns the softmax over the positions `within`, and 0 at the others.
pub(crate) fn softmax(logits: &[f64], within: impl Fn(usize) -> bool) -> Vec<f64> {
    let logit = |s: usize| match within(s) {
        true => logits[s],
        false => f64::NEG_INFINITY,
    };
    let all = || (0..logits.len()).map(logit);
    let max = all().fold(f64::NEG_INFINITY, f64::max);
    let exps: Vec<f64> = all().map(|logit| (logit - max).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.iter().map(|exp| exp / sum).collect()
}
