//! The oracle: the positions with the largest exact scores, which shows what a perfect selection
//! gains.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::cost::CacheShape;
use crate::methods::settings::{Settings, at_least};
use crate::methods::step::Step;
use crate::methods::{Budget, Method, Strategy, TOP_K};
use crate::{KvCache, KvCacheConfig, SparqError, Transfers};

/// Attention renormalised over the k positions with the largest exact scores, summed over the
/// group.
///
/// It is a bound and no usable method: the selection reads all keys. The counted bytes are those of
/// the k K rows and V rows alone, as if the selection were free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Oracle {
    /// k: the number of positions selected.
    pub top_k: usize,
}

impl Strategy for Oracle {
    fn presets() -> Vec<(&'static str, Self)> {
        vec![("oracle", Self { top_k: TOP_K })]
    }

    fn name(&self) -> &'static str {
        "oracle"
    }

    fn settings(&mut self) -> Settings<'_> {
        vec![("k", &mut self.top_k)]
    }

    fn validate(&self, _head_dim: usize) -> Result<(), SparqError> {
        at_least("top_k", 1, "one position", self.top_k)
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
        let top_k = budget.largest(1, |top_k| budget.fits(&Self { top_k }))?;
        Ok(Self { top_k }.into())
    }

    fn decode(&self, q: Tensor<4>, cache: &mut KvCache) -> Result<Tensor<4>, SparqError> {
        let step = Step::new(q, cache)?;
        let (_, kept) = step.exact_top_k(self.top_k);
        Ok(step.attend(kept))
    }
}
