//! SparQ attention (Ribar et al., ICML 2024, Algorithm 1).

use burn::tensor::Tensor;

use super::{Budget, Method, Settings, Strategy};
use crate::ops::{self, SparqOutput};
use crate::{CacheShape, KvCache, KvCacheConfig, Sketch, SparqConfig, SparqError, Transfers};

impl Strategy for SparqConfig {
    fn name(&self) -> &'static str {
        "sparq"
    }

    fn settings(&mut self) -> Settings<'_> {
        vec![
            ("r", &mut self.rank),
            ("k", &mut self.top_k),
            ("l", &mut self.local_window),
            ("sketch", &mut self.sketch),
            ("mean", &mut self.mean_value),
            ("score", &mut self.group_score),
            ("components", &mut self.components),
        ]
    }

    fn follow_top_k(&mut self) {
        self.local_window = self.top_k / 4;
    }

    fn validate(&self, head_dim: usize) -> Result<(), SparqError> {
        SparqConfig::validate(self, head_dim)
    }

    fn sketch(&self) -> Option<Sketch> {
        Some(self.sketch)
    }

    fn transfers(&self, shape: &CacheShape, seq_len: usize) -> Transfers {
        Transfers::sparq(shape, seq_len, self)
    }

    /// At most k positions are all kept: the step is dense attention, to the last bit.
    fn is_sparse(&self, cache: &KvCacheConfig, seq_len: usize) -> bool {
        cache.attended(seq_len) > self.top_k
    }

    fn at_budget(&self, budget: &Budget) -> Result<Method, SparqError> {
        let &Budget {
            head_dim,
            seq_len,
            ratio,
        } = budget;
        SparqConfig::for_compression(*self, head_dim, seq_len, ratio).map(Method::from)
    }

    fn decode(&self, q: Tensor<4>, cache: &mut KvCache) -> Result<Tensor<4>, SparqError> {
        cache.check_sketch(self.name(), self.sketch)?;
        if !self.is_sparse(cache.config(), cache.len()) {
            return super::Dense.decode(q, cache);
        }
        cache.refresh_sketch();
        let (tensors, rows) = cache.view(&q, Some(self))?;
        Ok(ops::sparq_decode(q, tensors, &rows, self))
    }
}

impl SparqConfig {
    /// One decode step that also returns the kept positions and alpha; unlike [`Method::decode`](crate::Method::decode) it takes the sparse path at any length.
    ///
    /// # Errors
    /// When q does not fit the cache, the settings don't fit its head_dim, or the cache lacks the sketch.
    pub fn decode_traced(
        &self,
        q: Tensor<4>,
        cache: &mut KvCache,
    ) -> Result<SparqOutput, SparqError> {
        self.validate(cache.config().head_dim)?;
        cache.check_query(&q)?;
        cache.check_not_empty()?;
        cache.check_sketch("sparq", self.sketch)?;
        cache.refresh_sketch();
        let q = q.inner();
        let (tensors, rows) = cache.view(&q, Some(self))?;
        Ok(ops::sparq_decode_traced(q, tensors, &rows, self))
    }
}
