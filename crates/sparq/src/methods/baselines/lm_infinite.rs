//! LM-Infinite (Han et al., 2023) in the paper's form: the first and the most recent positions.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::cost::CacheShape;
use crate::methods::settings::{Settings, at_least};
use crate::methods::step::Step;
use crate::methods::{Budget, Method, Strategy, TOP_K};
use crate::{KvCache, KvCacheConfig, SparqError, Transfers};

/// Attention renormalised over the first n and the most recent k - n positions.
///
/// Keys keep the rotation of their original positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LmInfinite {
    /// k: the number of positions selected.
    pub top_k: usize,
    /// n: how many of them are the first of the sequence. Less than `top_k`.
    pub first: usize,
}

impl LmInfinite {
    /// The paper's settings for k positions: the first 16 of the sequence, but at most k/2.
    pub fn new(top_k: usize) -> Self {
        Self {
            top_k,
            first: 16.min(top_k / 2),
        }
    }
}

impl Strategy for LmInfinite {
    fn presets() -> Vec<(&'static str, Self)> {
        vec![("lm-infinite", Self::new(TOP_K))]
    }

    fn name(&self) -> &'static str {
        "lm-infinite"
    }

    fn settings(&mut self) -> Settings<'_> {
        vec![("k", &mut self.top_k), ("first", &mut self.first)]
    }

    fn follow_top_k(&mut self) {
        *self = Self::new(self.top_k);
    }

    fn validate(&self, _head_dim: usize) -> Result<(), SparqError> {
        let why = "first + 1: the current token";
        at_least("top_k", self.first + 1, why, self.top_k)
    }

    /// 2 k d + 2 d elements per head.
    fn transfers(&self, shape: &CacheShape, seq_len: usize) -> Transfers {
        let kept = self.top_k.min(seq_len);
        Transfers::of_head(shape, (2 * kept + 2) * shape.head_dim)
    }

    fn is_sparse(&self, cache: &KvCacheConfig, seq_len: usize) -> bool {
        cache.attended(seq_len) > self.top_k
    }

    fn at_budget(&self, budget: &Budget) -> Result<Method, SparqError> {
        let fits = |top_k| budget.fits(&Self::new(top_k));
        // At least the first position and the current one.
        budget.largest(2, fits).map(|top_k| Self::new(top_k).into())
    }

    fn decode(&self, q: Tensor<4>, cache: &mut KvCache) -> Result<Tensor<4>, SparqError> {
        let step = Step::new(q, cache)?;
        let ([batch, kv_heads, _, _], device) = (step.q.dims(), step.q.device());
        let first = step.spans.earliest(self.first, &device);
        let latest = step.spans.latest(self.top_k - self.first, &device);
        let kept = first.bool_or(latest);
        Ok(step.attend(kept.expand([batch, kv_heads, step.seq_len()])))
    }
}
