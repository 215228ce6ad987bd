//! LM-Infinite (Han et al., 2023) as the paper compares with it: the first and the latest positions.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::methods::budget::Budget;
use crate::methods::settings::{Settings, at_least};
use crate::methods::step::Step;
use crate::methods::{Dense, Method, Strategy};
use crate::{CacheShape, KvCache, KvCacheConfig, SparqError, Transfers};

/// Attention to the first n positions and the latest k - n, renormalised. Positions are what they were in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LmInfinite {
    /// k: positions kept in all.
    pub top_k: usize,
    /// n: how many of them are the sequence's first. Less than `top_k`.
    pub first: usize,
}

impl LmInfinite {
    /// The paper's settings for k positions: the first 16, or half of k if that is less.
    pub fn new(top_k: usize) -> Self {
        Self {
            top_k,
            first: 16.min(top_k / 2),
        }
    }
}

impl Strategy for LmInfinite {
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
        at_least(
            "top_k",
            self.first + 1,
            "first + 1: the current token",
            self.top_k,
        )
    }

    fn transfers(&self, shape: &CacheShape, seq_len: usize) -> Transfers {
        Transfers::lm_infinite(shape, seq_len, self.top_k)
    }

    fn is_sparse(&self, cache: &KvCacheConfig, seq_len: usize) -> bool {
        cache.attended(seq_len) > self.top_k
    }

    fn at_budget(&self, budget: &Budget) -> Result<Method, SparqError> {
        let fits = |top_k| budget.fits(&Self::new(top_k));
        // The first position and the current one.
        budget.largest(2, fits).map(|top_k| Self::new(top_k).into())
    }

    fn decode(&self, q: Tensor<4>, cache: &mut KvCache) -> Result<Tensor<4>, SparqError> {
        if !self.is_sparse(cache.config(), cache.len()) {
            return Dense.decode(q, cache);
        }
        let step = Step::new(q, cache)?;
        let ([batch, kv_heads, _, _], device) = (step.q.dims(), step.q.device());
        let first = step.rows.earliest(self.first, &device);
        let latest = step.rows.latest(self.top_k - self.first, &device);
        let kept = first.bool_or(latest);
        Ok(step.attend(kept.expand([batch, kv_heads, step.seq_len()])))
    }
}

impl From<LmInfinite> for Method {
    fn from(method: LmInfinite) -> Self {
        Method::LmInfinite(method)
    }
}
