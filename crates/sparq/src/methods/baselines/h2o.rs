//! H2O, the heavy-hitter oracle (Zhang et al., 2023): positions that have received little attention are evicted for good.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::methods::budget::Budget;
use crate::methods::settings::{Settings, at_least};
use crate::methods::step::Step;
use crate::methods::{Method, Strategy};
use crate::ops::reference::{best_positions, finite, softmax};
use crate::{CacheShape, KvCache, KvCacheConfig, SparqError, Transfers};

/// Attention to k positions: the latest l, and of the others those that have received the most attention so far; the rest is evicted and never returns.
///
/// A position's score is the attention weight that it has received from all queries so far, those of the dense prefill included, averaged over the query heads of a group.
/// The cache has to record it ([`KvCache::record_attention`]). The choice is made before a query attends: its own weights count from the next step on.
///
/// Evicted positions stay in the buffers: this shows what H2O does to a model's output, and saves no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct H2o {
    /// k: positions kept in all, the current token included.
    pub top_k: usize,
    /// l: how many of them are the latest, the current token included. At least 1 and at most `top_k`.
    pub local_window: usize,
}

impl H2o {
    /// The paper's settings for k positions: the latest k/4 of them local.
    pub fn new(top_k: usize) -> Self {
        Self {
            top_k,
            local_window: (top_k / 4).max(1),
        }
    }
}

impl Strategy for H2o {
    fn name(&self) -> &'static str {
        "h2o"
    }

    fn settings(&mut self) -> Settings<'_> {
        vec![("k", &mut self.top_k), ("l", &mut self.local_window)]
    }

    fn follow_top_k(&mut self) {
        *self = Self::new(self.top_k);
    }

    /// The current token has received nothing yet, and would be the first to go without a local window.
    fn validate(&self, _head_dim: usize) -> Result<(), SparqError> {
        at_least("local_window", 1, "the current token", self.local_window)?;
        at_least("top_k", self.local_window, "the local window", self.top_k)
    }

    fn reads_attention(&self) -> bool {
        true
    }

    fn transfers(&self, shape: &CacheShape, seq_len: usize) -> Transfers {
        Transfers::h2o(shape, seq_len, self.top_k)
    }

    fn is_sparse(&self, cache: &KvCacheConfig, seq_len: usize) -> bool {
        cache.attended(seq_len) > self.top_k
    }

    fn at_budget(&self, budget: &Budget) -> Result<Method, SparqError> {
        let fits = |top_k| budget.fits(&Self::new(top_k));
        budget.largest(1, fits).map(|top_k| Self::new(top_k).into())
    }

    fn decode(&self, q: Tensor<4>, cache: &mut KvCache) -> Result<Tensor<4>, SparqError> {
        cache.check_records_attention(self.name())?;
        let step = Step::new(q, cache)?;
        let received = cache.received_attention().expect("checked just now");
        let alive = step.within(received.clone().greater_elem(f32::NEG_INFINITY));
        let kept = if self.is_sparse(cache.config(), cache.len()) {
            let score = finite(received.mask_fill(alive.clone().bool_not(), f32::NEG_INFINITY));
            let k = self.top_k.min(step.seq_len());
            let (positions, _) = best_positions(score, &step.rows, self.local_window, k);
            let kept = step.mask(positions).bool_and(alive.clone());
            cache.evict(alive.bool_and(kept.clone().bool_not()));
            kept
        } else {
            alive
        };
        let weights = softmax(step.logits(), Some(kept));
        cache.add_received(weights.clone().mean_dim(2).squeeze_dim::<3>(2));
        Ok(step.mix(weights))
    }
}

impl From<H2o> for Method {
    fn from(method: H2o) -> Self {
        Method::H2o(method)
    }
}
