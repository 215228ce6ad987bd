//! FlexGen's sparse attention (Sheng et al., 2023): exact scores, and V rows of the top-k alone.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::cost::CacheShape;
use crate::methods::settings::{Settings, at_least};
use crate::methods::step::Step;
use crate::methods::{Budget, Method, Strategy, TOP_K};
use crate::{KvCache, KvCacheConfig, SparqError, Transfers};

/// The V rows of the k positions with the largest exact scores, weighted as in dense attention.
///
/// The weights are not renormalised: the share of the other positions is missing from the output.
/// All keys are read, so the method cannot move less than half of dense attention's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlexGen {
    /// k: the number of positions selected.
    pub top_k: usize,
}

impl Strategy for FlexGen {
    fn presets() -> Vec<(&'static str, Self)> {
        vec![("flexgen", Self { top_k: TOP_K })]
    }

    fn name(&self) -> &'static str {
        "flexgen"
    }

    fn settings(&mut self) -> Settings<'_> {
        vec![("k", &mut self.top_k)]
    }

    fn validate(&self, _head_dim: usize) -> Result<(), SparqError> {
        at_least("top_k", 1, "one position", self.top_k)
    }

    /// S d + k d + 2 d elements per head.
    fn transfers(&self, shape: &CacheShape, seq_len: usize) -> Transfers {
        let kept = self.top_k.min(seq_len);
        Transfers::of_head(shape, (seq_len + kept + 2) * shape.head_dim)
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
        let (weights, kept) = step.exact_top_k(self.top_k);
        let dropped = kept.bool_not().unsqueeze_dim::<4>(2).expand(weights.dims());
        Ok(step.mix(weights.mask_fill(dropped, 0.0)))
    }
}
