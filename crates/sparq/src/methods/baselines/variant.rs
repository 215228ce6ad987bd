//! SparQ with what the paper leaves open: other temperatures, keys in fewer bits, and scoring in two stages.

use burn::tensor::{Bool, Int, Tensor};
use serde::{Deserialize, Serialize};

use super::pages::sqrt_scale;
use crate::methods::budget::Budget;
use crate::methods::settings::{Settings, at_least, words};
use crate::methods::step::{Step, without};
use crate::methods::{Dense, Method, Strategy};
use crate::ops::reference::write;
use crate::ops::reference::{
    approximate_logits, attend_to_best, choose_components, choose_positions, expand_heads, finite,
    group_score, softmax, temperature,
};
use crate::{
    CacheShape, CacheTensors, Components, GroupScore, KvCache, KvCacheConfig, MeanValue,
    SketchTensors, SparqConfig, SparqError, Transfers, sketch,
};

/// What the approximate logits are divided by (step 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Temperature {
    /// sqrt(d |q\[i1\]|_1 / |q|_1): the paper, by how much of the query the components cover.
    Coverage,
    /// sqrt(d): right if the components were everything.
    SqrtHeadDim,
    /// sqrt(r): right if the components were no better than any others.
    SqrtRank,
}

/// What the approximate scores read of a key's component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyPrecision {
    /// The element as the cache has it.
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

/// One position in so many goes on to the second stage.
const SECOND_STAGE: usize = 4;

/// SparQ in plain tensor operations on every backend, with switches that the kernels of [`SparqConfig`] do not have.
///
/// It reads keys and no sketch of the cache: codes are made at each step, with ranges over the keys that are valid then, and counted as what reading them would cost. With a
/// [second rank](Self::second_rank), the S/4 positions with the best scores from r components are scored again from more, and k are chosen by that; the
/// softmax of the second scores is over the S/4 alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SparqVariant {
    /// r: components that score every position.
    pub rank: usize,
    /// Components that score the best S/4 again, the first r included; one stage if `None`. More than `rank`.
    pub second_rank: Option<usize>,
    /// k: positions kept in all.
    pub top_k: usize,
    /// l: how many of them are the latest.
    pub local_window: usize,
    /// What is read of a key's component.
    pub keys: KeyPrecision,
    /// What the approximate logits are divided by.
    pub temperature: Temperature,
    /// When the weight left out goes to the mean of V.
    pub mean_value: MeanValue,
    /// How a group of query heads agrees on positions.
    pub group_score: GroupScore,
    /// How a group of query heads agrees on components.
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

    /// Sets how many components score the best S/4 positions again.
    pub fn with_second_rank(self, second_rank: Option<usize>) -> Self {
        Self {
            second_rank,
            ..self
        }
    }

    /// Sets what is read of a key's component.
    pub fn with_keys(self, keys: KeyPrecision) -> Self {
        Self { keys, ..self }
    }

    /// Sets what the approximate logits are divided by.
    pub fn with_temperature(self, temperature: Temperature) -> Self {
        Self {
            temperature,
            ..self
        }
    }

    /// Sets when the weight left out goes to the mean of V.
    pub fn with_mean_value(self, mean_value: MeanValue) -> Self {
        Self { mean_value, ..self }
    }

    /// The part that is plain SparQ, with scores from `rank` components.
    fn config(&self, rank: usize) -> SparqConfig {
        SparqConfig::new(rank, self.top_k)
            .with_local_window(self.local_window)
            .with_mean_value(self.mean_value)
            .with_group_score(self.group_score)
            .with_components(self.components)
    }

    /// Elements of keys that are read for scores at S positions.
    pub(crate) fn scored(&self, seq_len: usize) -> usize {
        let more = self.second_rank.map_or(0, |second| second - self.rank);
        seq_len * self.rank + seq_len.div_ceil(SECOND_STAGE) * more
    }

    /// Steps 1 and 2: the chosen components [B, H_kv, r] of the query, and the query on them over its temperature [B, H_kv, g, r].
    fn query(&self, step: &Step, rank: usize) -> (Tensor<3, Int>, Tensor<4>) {
        let i1 = choose_components(&step.q, &self.config(rank));
        let q1 = step.q.clone().gather(3, expand_heads(i1.clone(), &step.q));
        let tau = match self.temperature {
            Temperature::Coverage => temperature(&step.q, &q1),
            Temperature::SqrtHeadDim => sqrt_scale(&step.q, step.q.dims()[3]),
            Temperature::SqrtRank => sqrt_scale(&step.q, rank),
        };
        (i1, q1 / tau)
    }

    /// Of two stages, the positions [B, H_kv, 1, S] that the first leaves out.
    fn others(&self, step: &Step, keys: &SketchTensors) -> Tensor<4, Bool> {
        let config = self.config(self.rank);
        let (i1, q1) = self.query(step, self.rank);
        let score = |q1| approximate_logits(q1, &i1, keys, step.seq_len());
        let s_hat = softmax(finite(score(q1.clone())), step.valid());
        let score = group_score(q1, &s_hat, score, &config);
        let count = step.seq_len().div_ceil(SECOND_STAGE).max(self.top_k);
        let (best, _) = choose_positions(score, &step.rows, &config, count);
        step.mask(best).bool_not().unsqueeze_dim::<4>(2)
    }

    /// The keys as the scores read them.
    fn key_sketch(&self, step: &Step) -> SketchTensors {
        let keys = step.keys();
        let Some(bits) = self.keys.bits() else {
            return SketchTensors::Full(keys.transpose());
        };
        let valid = step.rows.valid(&keys.device());
        let (lo, a) = sketch::range(keys.clone(), valid, bits);
        let codes = sketch::encode(keys, lo.clone(), a.clone(), bits);
        SketchTensors::Codes {
            bits,
            codes: sketch::pack(codes, bits),
            lo,
            step: a,
        }
    }
}

impl Strategy for SparqVariant {
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

    fn transfers(&self, shape: &CacheShape, seq_len: usize) -> Transfers {
        Transfers::sparq_variant(shape, seq_len, self)
    }

    fn is_sparse(&self, cache: &KvCacheConfig, seq_len: usize) -> bool {
        cache.attended(seq_len) > self.top_k
    }

    /// The scores take the part of the budget that [`SparqConfig::for_compression`] gives them: half, or a quarter for codes of at most 4 bits. In two stages, r is d/8, or
    /// what half of the budget pays for if that is less, and the second rank 4 r.
    fn at_budget(&self, budget: &Budget) -> Result<Method, SparqError> {
        let (d, share) = (budget.head_dim, self.keys.score_share());
        let with = |rank: usize, top_k: usize| Self {
            rank,
            second_rank: self.second_rank.map(|_| (4 * rank).min(d)),
            top_k,
            local_window: top_k / 4,
            ..*self
        };
        let most = match self.second_rank {
            None => d,
            // A second rank has to be more than the first.
            Some(_) => (d / 8).max(1),
        };
        let share = if self.second_rank.is_some() {
            0.5
        } else {
            share
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
        if !self.is_sparse(cache.config(), cache.len()) {
            return Dense.decode(q, cache);
        }
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
        // The cache's sum follows a window only for the methods that have a sketch.
        let v_sum = write::sum_values(&step.tensors.v, &step.rows);
        let tensors = CacheTensors {
            v_sum,
            ..step.tensors.clone()
        };
        let config = self.config(self.rank);
        let attended = attend_to_best(&step.q, q1, score, &tensors, &step.rows, &config);
        Ok(step.output(attended.output))
    }
}

impl KeyPrecision {
    fn score_share(self) -> f64 {
        match self {
            KeyPrecision::Full | KeyPrecision::Bits8 => 0.5,
            KeyPrecision::Bits4 | KeyPrecision::Bits3 | KeyPrecision::Bits2 => 0.25,
        }
    }
}

impl From<SparqVariant> for Method {
    fn from(method: SparqVariant) -> Self {
        Method::SparqVariant(method)
    }
}
