//! SparQ with options that the paper leaves open: other temperatures, keys in fewer bits, and
//! scores in two passes.

use burn::tensor::{Bool, Int, Tensor};
use serde::{Deserialize, Serialize};

use super::quest::pages::sqrt_scale;
use crate::cost::CacheShape;
use crate::methods::settings::{Settings, at_least, words};
use crate::methods::step::{Step, without};
use crate::methods::{
    Budget, Components, GroupScore, MeanValue, Method, RANK, SparqConfig, Strategy, TOP_K,
};
use crate::ops::reference::{
    append, approximate_logits, expand_heads, finite, group_score, select_and_attend,
    select_components, select_positions, softmax, temperature,
};
use crate::ops::{CacheTensors, SketchTensors};
use crate::sketch;
use crate::{KvCache, KvCacheConfig, SparqError, Transfers};

/// The divisor of the approximate logits (stage 1 of Algorithm 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Temperature {
    /// sqrt(d |q\[i1\]|_1 / |q|_1): the paper, by the share of the query that the components cover.
    Coverage,
    /// sqrt(d): exact if the selected components held the whole query.
    SqrtHeadDim,
    /// sqrt(r): exact if the selected components were as large as all others.
    SqrtRank,
}

/// The precision in which the approximate scores read a component of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyPrecision {
    /// The element in the cache's type.
    Full,
    /// A code of 8 bits.
    #[serde(rename = "8bits")]
    Bits8,
    /// A code of 4 bits.
    #[serde(rename = "4bits")]
    Bits4,
    /// A code of 3 bits.
    #[serde(rename = "3bits")]
    Bits3,
    /// A code of 2 bits.
    #[serde(rename = "2bits")]
    Bits2,
}

impl KeyPrecision {
    /// Bits of a code, or `None` for an element of the cache.
    pub fn bits(self) -> Option<usize> {
        match self {
            KeyPrecision::Full => None,
            KeyPrecision::Bits8 => Some(8),
            KeyPrecision::Bits4 => Some(4),
            KeyPrecision::Bits3 => Some(3),
            KeyPrecision::Bits2 => Some(2),
        }
    }
}

words!(Temperature { Coverage = "coverage", SqrtHeadDim = "sqrt-d", SqrtRank = "sqrt-r" });
words!(KeyPrecision {
    Full = "full", Bits8 = "8bits", Bits4 = "4bits", Bits3 = "3bits", Bits2 = "2bits",
});

/// One position in this many enters the second pass of scores.
const SECOND_PASS: usize = 4;

/// SparQ in plain tensor operations, with options that the kernels of [`SparqConfig`] do not have.
///
/// It reads keys and no sketch. Every step computes the codes, with ranges over the valid keys, and
/// counts the bytes of reading stored ones. With a [second rank](Self::second_rank), the S/4
/// positions with the largest scores of r components are scored again with more components. The k
/// positions are selected by the second scores, whose softmax covers the S/4 positions alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SparqVariant {
    /// r: the number of components that score every position.
    pub rank: usize,
    /// The number of components of the second pass, the first r included; one pass if `None`.
    ///
    /// More than `rank`.
    pub second_rank: Option<usize>,
    /// k: the number of positions selected.
    pub top_k: usize,
    /// l: how many of them are the most recent.
    pub local_window: usize,
    /// The precision of the keys in the approximate scores.
    pub keys: KeyPrecision,
    /// The divisor of the approximate logits.
    pub temperature: Temperature,
    /// When the mean of V stands for the positions that were not selected.
    pub mean_value: MeanValue,
    /// The score by which a group of query heads selects positions.
    pub group_score: GroupScore,
    /// The magnitude by which a group of query heads selects components.
    pub components: Components,
}

impl SparqVariant {
    /// The paper's settings for rank r and top_k k; see [`SparqConfig::new`].
    pub fn new(rank: usize, top_k: usize) -> Self {
        let paper = SparqConfig::new(rank, top_k);
        Self {
            rank,
            second_rank: None,
            top_k,
            local_window: paper.local_window,
            keys: KeyPrecision::Full,
            temperature: Temperature::Coverage,
            mean_value: paper.mean_value,
            group_score: paper.group_score,
            components: paper.components,
        }
    }

    /// The settings of plain SparQ with scores of `rank` components.
    fn config(&self, rank: usize) -> SparqConfig {
        SparqConfig::new(rank, self.top_k)
            .with_local_window(self.local_window)
            .with_mean_value(self.mean_value)
            .with_group_score(self.group_score)
            .with_components(self.components)
    }

    /// The number of key elements that the scores of S positions read.
    fn scored(&self, seq_len: usize) -> usize {
        let more = self.second_rank.map_or(0, |second| second - self.rank);
        seq_len * self.rank + seq_len.div_ceil(SECOND_PASS) * more
    }

    /// Returns the selected components [B, H_kv, r], and the query on them divided by its
    /// temperature, [B, H_kv, g, r].
    fn query(&self, step: &Step, rank: usize) -> (Tensor<3, Int>, Tensor<4>) {
        let i1 = select_components(&step.q, &self.config(rank));
        let q1 = step.q.clone().gather(3, expand_heads(i1.clone(), &step.q));
        let tau = match self.temperature {
            Temperature::Coverage => temperature(&step.q, &q1),
            Temperature::SqrtHeadDim => sqrt_scale(&step.q, step.q.dims()[3]),
            Temperature::SqrtRank => sqrt_scale(&step.q, rank),
        };
        (i1, q1 / tau)
    }

    /// Returns the positions [B, H_kv, 1, S] that the first of two passes drops.
    fn others(&self, step: &Step, keys: &SketchTensors) -> Tensor<4, Bool> {
        let config = self.config(self.rank);
        let (i1, q1) = self.query(step, self.rank);
        let score = |q1| approximate_logits(q1, &i1, keys, step.seq_len());
        let s_hat = softmax(finite(score(q1.clone())), step.valid());
        let score = group_score(q1, &s_hat, score, &config);
        let count = step.seq_len().div_ceil(SECOND_PASS).max(self.top_k);
        let (selected, _) = select_positions(score, &step.spans, &config, count);
        step.mask(selected).bool_not().unsqueeze_dim::<4>(2)
    }

    /// Returns the keys in the precision of the scores.
    fn key_sketch(&self, step: &Step) -> SketchTensors {
        let keys = step.keys();
        let Some(bits) = self.keys.bits() else {
            return SketchTensors::Full(keys.transpose());
        };
        let valid = step.spans.valid(&keys.device());
        let (zero_point, scale) = sketch::range(keys.clone(), valid, bits);
        let codes = sketch::encode(keys, zero_point.clone(), scale.clone(), bits);
        SketchTensors::Codes {
            bits,
            codes: sketch::pack(codes, bits),
            zero_point,
            scale,
        }
    }
}

impl Strategy for SparqVariant {
    fn presets() -> Vec<(&'static str, Self)> {
        let paper = Self::new(RANK, TOP_K);
        let keys = |keys| Self { keys, ..paper };
        let two_pass = Self {
            second_rank: Some(2 * RANK),
            keys: KeyPrecision::Bits4,
            ..Self::new(RANK / 2, TOP_K)
        };
        let divided_by = |temperature| Self {
            temperature,
            ..paper
        };
        vec![
            ("sparq-variant", paper),
            ("sparq-3bit", keys(KeyPrecision::Bits3)),
            ("sparq-2bit", keys(KeyPrecision::Bits2)),
            ("sparq-two-stage", two_pass),
            ("sparq-sqrt-d", divided_by(Temperature::SqrtHeadDim)),
            ("sparq-sqrt-r", divided_by(Temperature::SqrtRank)),
        ]
    }

    fn name(&self) -> &'static str {
        "sparq-variant"
    }

    fn settings(&mut self) -> Settings<'_> {
        vec![
            ("r", &mut self.rank),
            ("then", &mut self.second_rank),
            ("k", &mut self.top_k),
            ("l", &mut self.local_window),
            ("keys", &mut self.keys),
            ("temperature", &mut self.temperature),
            ("mean", &mut self.mean_value),
            ("score", &mut self.group_score),
            ("components", &mut self.components),
        ]
    }

    fn follow_top_k(&mut self) {
        self.local_window = self.top_k / 4;
    }

    fn validate(&self, head_dim: usize) -> Result<(), SparqError> {
        self.config(self.rank).validate(head_dim)?;
        let Some(second) = self.second_rank else {
            return Ok(());
        };
        self.config(second).validate(head_dim)?;
        at_least("second_rank", self.rank + 1, "more than rank", second)
    }

    /// As [`Transfers::sparq`], with S r + (S/4) (r_2 - r) elements or codes for scores in two
    /// passes.
    fn transfers(&self, shape: &CacheShape, seq_len: usize) -> Transfers {
        if seq_len <= self.top_k {
            return Transfers::dense(shape, seq_len);
        }
        let rest = Transfers::of_head(shape, (2 * self.top_k + 4) * shape.head_dim);
        rest.and_codes(shape, self.scored(seq_len), self.keys.bits())
    }

    fn is_sparse(&self, cache: &KvCacheConfig, seq_len: usize) -> bool {
        cache.attended(seq_len) > self.top_k
    }

    /// Splits the budget as [`SparqConfig::for_compression`] does.
    ///
    /// The scores take half, or a quarter with codes of at most 4 bits. With two passes they take
    /// half, r is at most d/8, and the second rank is 4 r.
    fn at_budget(&self, budget: &Budget) -> Result<Method, SparqError> {
        let d = budget.head_dim;
        let with = |rank: usize, top_k: usize| Self {
            rank,
            second_rank: self.second_rank.map(|_| (4 * rank).min(d)),
            top_k,
            local_window: top_k / 4,
            ..*self
        };
        let (most, share) = match (self.second_rank, self.keys.bits()) {
            // The second rank must be larger than the first.
            (Some(_), _) => ((d / 8).max(1), 0.5),
            (None, None | Some(8)) => (d, 0.5),
            (None, Some(_)) => (d, 0.25),
        };
        let bits = self.keys.bits().unwrap_or(16) as f64;
        let affordable = |rank: &usize| {
            let scores = with(*rank, 1).scored(budget.seq_len) as f64 * bits / 8.0;
            scores <= share * budget.ratio * budget.dense_bytes()
        };
        let rank = (1..=most).rev().find(affordable).unwrap_or(1);
        let top_k = budget.largest(1, |top_k| budget.fits(&with(rank, top_k)))?;
        Ok(with(rank, top_k).into())
    }

    fn decode(&self, q: Tensor<4>, cache: &mut KvCache) -> Result<Tensor<4>, SparqError> {
        let step = Step::new(q, cache)?;
        let keys = self.key_sketch(&step);
        let others = self.second_rank.map(|_| self.others(&step, &keys));
        let (i1, q1) = self.query(&step, self.second_rank.unwrap_or(self.rank));
        let score = |q1| {
            let logits = approximate_logits(q1, &i1, &keys, step.seq_len());
            match &others {
                Some(others) => without(logits, others),
                None => logits,
            }
        };
        // The cache's sum of V follows a window only for methods with a sketch.
        let v_sum = append::sum_values(&step.tensors.v, &step.spans);
        let tensors = CacheTensors {
            v_sum,
            ..step.tensors.clone()
        };
        let config = self.config(self.rank);
        let attended = select_and_attend(&step.q, q1, score, &tensors, &step.spans, &config);
        Ok(step.output(attended.output))
    }
}
