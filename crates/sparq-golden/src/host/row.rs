//! The steps of the algorithm for one sequence and key/value head.

use std::ops::Range;

use sparq::{Components, GroupScore};

use crate::{Array, Case};

/// One sequence `b` and key/value head `h` of a case.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) case: &'a Case,
    pub(super) b: usize,
    pub(super) h: usize,
}

impl<'a> Row<'a> {
    /// Every row of a case, in the order of tensors that start with [B, H_kv].
    pub(super) fn all(case: &'a Case) -> impl Iterator<Item = Row<'a>> {
        let (batch, kv_heads) = (case.problem.batch, case.problem.n_kv_heads);
        (0..batch).flat_map(move |b| (0..kv_heads).map(move |h| Row { case, b, h }))
    }

    /// The elements of this row in a tensor [B, H_kv, ...].
    pub(super) fn part<'t, T>(&self, tensor: &'t Array<T>) -> &'t [T] {
        let problem = &self.case.problem;
        let len = tensor.values().len() / (problem.batch * problem.n_kv_heads);
        &tensor.values()[(self.b * problem.n_kv_heads + self.h) * len..][..len]
    }

    /// The positions that hold a token.
    pub(super) fn valid(&self) -> Range<usize> {
        self.case.left_padding[self.b]..self.case.problem.seq
    }

    /// The positions that are always kept.
    pub(super) fn window(&self) -> Range<usize> {
        let Range { start, end } = self.valid();
        end.saturating_sub(self.case.config.local_window).max(start)..end
    }

    /// How many positions are kept.
    pub(super) fn kept(&self) -> usize {
        self.case.config.top_k.min(self.valid().len())
    }

    /// The queries of the group, g rows of d.
    pub(super) fn queries(&self) -> impl Iterator<Item = &'a [f32]> + Clone + use<'a> {
        // The query heads of a group follow each other, so that [B, H, 1, d] is [B, H_kv, g, d].
        let (q, case) = (&self.case.inputs.q, self.case);
        self.part(q).chunks_exact(case.problem.head_dim)
    }

    fn key(&self, s: usize) -> &'a [f32] {
        let (k, d) = (&self.case.inputs.k, self.case.problem.head_dim);
        &self.part(k)[s * d..][..d]
    }

    fn value(&self, s: usize) -> &'a [f32] {
        let (v, d) = (&self.case.inputs.v, self.case.problem.head_dim);
        &self.part(v)[s * d..][..d]
    }

    /// The lower end and the step of a channel's codes, in fp32 as they are stored.
    fn range(&self, c: usize, levels: f32) -> (f32, f32) {
        let channel = || self.valid().map(|s| self.key(s)[c]);
        let lo = channel().fold(f32::INFINITY, f32::min);
        let hi = channel().fold(f32::NEG_INFINITY, f32::max);
        (lo, (hi - lo) / levels)
    }

    /// [`Row::range`] of every channel, d of them.
    pub(super) fn ranges(&self, levels: f32) -> Vec<(f32, f32)> {
        let channels = 0..self.case.problem.head_dim;
        channels.map(|c| self.range(c, levels)).collect()
    }

    /// The keys in units of their channel's codes and not yet rounded, d rows of S; 0 in a channel that does not vary and in the padding.
    pub(super) fn scaled_keys(&self, levels: f32) -> impl Iterator<Item = f32> {
        let ranges = self.ranges(levels);
        let valid = self.valid();
        let seq = self.case.problem.seq;
        (0..ranges.len() * seq).map(move |at| {
            let (c, s) = (at / seq, at % seq);
            let (lo, step) = ranges[c];
            if step == 0.0 || !valid.contains(&s) {
                return 0.0;
            }
            (self.key(s)[c] - lo) / step
        })
    }

    /// What step 1 ranks the components by, d of them.
    pub(super) fn magnitudes(&self) -> Vec<f64> {
        let sum = |c: usize, term: fn(f64) -> f64| -> f64 {
            self.queries().map(|q| term(f64::from(q[c]))).sum()
        };
        (0..self.case.problem.head_dim)
            .map(|c| match self.case.config.components {
                Components::SumAbs => sum(c, f64::abs),
                Components::AbsSum => sum(c, |x| x).abs(),
            })
            .collect()
    }

    /// Step 3 before the softmax: g rows of S, by the codes if there are any and else by the keys.
    pub(super) fn logits(&self, components: &[i64], codes: Option<(&[u8], f32)>) -> Vec<Vec<f64>> {
        let seq = self.case.problem.seq;
        let column = |c: usize| -> Vec<f64> {
            match codes {
                None => (0..seq).map(|s| f64::from(self.key(s)[c])).collect(),
                // The lower end is the same at every position and drops out of the softmax and of the ranking.
                Some((codes, levels)) => {
                    let step = f64::from(self.range(c, levels).1);
                    let codes = &codes[c * seq..][..seq];
                    codes.iter().map(|&code| step * f64::from(code)).collect()
                }
            }
        };
        let chosen: Vec<(usize, Vec<f64>)> = components
            .iter()
            .map(|&c| (c as usize, column(c as usize)))
            .collect();
        self.queries()
            .map(|q| {
                let part: f64 = chosen.iter().map(|(c, _)| f64::from(q[*c]).abs()).sum();
                let whole: f64 = q.iter().map(|&x| f64::from(x).abs()).sum();
                let ratio = if part == 0.0 { 1.0 } else { part / whole };
                let tau = (q.len() as f64 * ratio).sqrt();
                let term = |s: usize| -> f64 {
                    let products = chosen.iter().map(|(c, keys)| f64::from(q[*c]) * keys[s]);
                    products.sum()
                };
                (0..seq).map(|s| term(s) / tau).collect()
            })
            .collect()
    }

    /// Step 3: the approximate probabilities of one head, S of them, 0 in the padding.
    pub(super) fn probabilities(&self, logits: &[f64]) -> Vec<f64> {
        let valid = self.valid();
        softmax(logits, |s| valid.contains(&s))
    }

    /// What step 4 ranks the positions by, S of them: summed logits, or the logarithm of summed probabilities.
    ///
    /// The logarithm ranks like its argument, and puts leads of both group scores on one scale, on which they compare with errors of logits.
    pub(super) fn scores(&self, logits: &[Vec<f64>]) -> Vec<f64> {
        let sum = |rows: &[Vec<f64>], s: usize| rows.iter().map(|row| row[s]).sum::<f64>();
        let positions = 0..self.case.problem.seq;
        match self.case.config.group_score {
            GroupScore::Logits => positions.map(|s| sum(logits, s)).collect(),
            GroupScore::Probabilities => {
                let rows: Vec<_> = logits.iter().map(|row| self.probabilities(row)).collect();
                positions.map(|s| sum(&rows, s).ln()).collect()
            }
        }
    }

    /// Step 6 of one query head: exact attention over the selected positions, d elements.
    pub(super) fn attend(&self, q: &[f32], selected: &[u8]) -> Vec<f64> {
        let scale = (q.len() as f64).sqrt();
        let logit = |s: usize| -> f64 {
            let products = q
                .iter()
                .zip(self.key(s))
                .map(|(&a, &b)| f64::from(a) * f64::from(b));
            products.sum::<f64>() / scale
        };
        let logits: Vec<f64> = (0..selected.len()).map(logit).collect();
        let weights = softmax(&logits, |s| selected[s] == 1);
        let mix = |c: usize| {
            let kept = (0..selected.len()).filter(|&s| selected[s] == 1);
            kept.map(|s| weights[s] * f64::from(self.value(s)[c])).sum()
        };
        (0..q.len()).map(mix).collect()
    }

    /// The mean of V over the valid positions, d elements.
    pub(super) fn mean_value(&self) -> Vec<f64> {
        let valid = self.valid();
        let mean = |c: usize| -> f64 {
            let values = valid.clone().map(|s| f64::from(self.value(s)[c]));
            values.sum::<f64>() / valid.len() as f64
        };
        (0..self.case.problem.head_dim).map(mean).collect()
    }
}

/// The softmax over the positions `within`; 0 at the others.
fn softmax(logits: &[f64], within: impl Fn(usize) -> bool) -> Vec<f64> {
    let logit = |s: usize| {
        if within(s) {
            logits[s]
        } else {
            f64::NEG_INFINITY
        }
    };
    let max = (0..logits.len())
        .map(logit)
        .fold(f64::NEG_INFINITY, f64::max);
    let exps: Vec<f64> = (0..logits.len()).map(|s| (logit(s) - max).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.iter().map(|exp| exp / sum).collect()
}
