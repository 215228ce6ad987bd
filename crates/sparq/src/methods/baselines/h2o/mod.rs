//! H2O, the heavy-hitter oracle (Zhang et al., 2023): evicts positions that received little
//! attention.

mod received;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use self::received::Received;
use crate::cost::CacheShape;
use crate::methods::settings::{Settings, at_least};
use crate::methods::step::Step;
use crate::methods::{Budget, Method, MethodState, Strategy, TOP_K};
use crate::ops::reference::{finite, softmax, top_positions};
use crate::{KvCache, KvCacheConfig, SparqError, Transfers};

/// Attention to k positions: the most recent l, and those that have received the most attention so
/// far.
///
/// All other positions are evicted and never come back. The score of a position is the attention
/// weight that it has received from all queries, including those of the dense prefill, averaged
/// over the query heads of a group. The cache has to record it ([`KvCache::record_attention`]). A
/// step selects before its query attends: the weights of that query count from the next step on.
///
/// Evicted positions stay in the buffers. This shows the effect of H2O on a model's output, but
/// saves no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct H2o {
    /// k: the number of positions kept, including the current token.
    pub top_k: usize,
    /// l: how many of them are the most recent, including the current token. From 1 to `top_k`.
    pub local_window: usize,
}

impl H2o {
    /// The paper's settings for k positions: a local window of k/4.
    pub fn new(top_k: usize) -> Self {
        Self {
            top_k,
            local_window: (top_k / 4).max(1),
        }
    }
}

impl Strategy for H2o {
    fn presets() -> Vec<(&'static str, Self)> {
        vec![("h2o", Self::new(TOP_K))]
    }

    fn name(&self) -> &'static str {
        "h2o"
    }

    fn settings(&mut self) -> Settings<'_> {
        vec![("k", &mut self.top_k), ("l", &mut self.local_window)]
    }

    fn follow_top_k(&mut self) {
        *self = Self::new(self.top_k);
    }

    /// The current token has received no attention yet. Without a local window it would be evicted
    /// first.
    fn validate(&self, _head_dim: usize) -> Result<(), SparqError> {
        at_least("local_window", 1, "the current token", self.local_window)?;
        at_least("top_k", self.local_window, "the local window", self.top_k)
    }

    fn reads_attention(&self) -> bool {
        true
    }

    /// 2 k d + 2 d + 2 S elements per head: the sums of all positions are read and written.
    fn transfers(&self, shape: &CacheShape, seq_len: usize) -> Transfers {
        let kept = self.top_k.min(seq_len);
        Transfers::of_head(shape, (2 * kept + 2) * shape.head_dim + 2 * seq_len)
    }

    fn is_sparse(&self, cache: &KvCacheConfig, seq_len: usize) -> bool {
        cache.attended(seq_len) > self.top_k
    }

    fn at_budget(&self, budget: &Budget) -> Result<Method, SparqError> {
        let fits = |top_k| budget.fits(&Self::new(top_k));
        budget.largest(1, fits).map(|top_k| Self::new(top_k).into())
    }

    fn decode(&self, q: Tensor<4>, cache: &mut KvCache) -> Result<Tensor<4>, SparqError> {
        let step = Step::new(q, cache)?;
        let missing = SparqError::MissingAttention {
            method: self.name(),
        };
        let received = cache.received_attention().ok_or(missing)?;
        let alive = step.within(received.clone().greater_elem(f32::NEG_INFINITY));
        let evicts = self.is_sparse(cache.config(), cache.len());
        let kept = if evicts {
            let evicted = alive.clone().bool_not();
            let score = finite(received.mask_fill(evicted, f32::NEG_INFINITY));
            let k = self.top_k.min(step.seq_len());
            let (positions, _) = top_positions(score, &step.spans, self.local_window, k);
            step.mask(positions).bool_and(alive.clone())
        } else {
            alive.clone()
        };
        let weights = softmax(step.logits(), Some(kept.clone()));
        if let Some(state) = cache.states_mut().get_mut::<Received>() {
            if evicts {
                state.evict(alive.bool_and(kept.bool_not()));
            }
            state.observe_attention(weights.clone().mean_dim(2).squeeze_dim::<3>(2));
        }
        Ok(step.mix(weights))
    }
}
