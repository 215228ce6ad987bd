//! Dense attention: every position of the cache.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Budget, Method, Settings, Strategy};
use crate::cost::CacheShape;
use crate::{KvCache, KvCacheConfig, SparqError, Transfers, ops};

/// Dense attention. It has no settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dense;

impl Strategy for Dense {
    fn presets() -> Vec<(&'static str, Self)> {
        vec![("dense", Dense)]
    }

    fn name(&self) -> &'static str {
        "dense"
    }

    fn settings(&mut self) -> Settings<'_> {
        Vec::new()
    }

    fn validate(&self, _head_dim: usize) -> Result<(), SparqError> {
        Ok(())
    }

    fn transfers(&self, shape: &CacheShape, seq_len: usize) -> Transfers {
        Transfers::dense(shape, seq_len)
    }

    fn is_sparse(&self, _cache: &KvCacheConfig, _seq_len: usize) -> bool {
        false
    }

    fn at_budget(&self, budget: &Budget) -> Result<Method, SparqError> {
        match budget.fits(self) {
            true => Ok(Method::DENSE),
            false => Err(budget.missed()),
        }
    }

    fn decode(&self, q: Tensor<4>, cache: &mut KvCache) -> Result<Tensor<4>, SparqError> {
        let (tensors, spans) = cache.view(&q, None)?;
        Ok(ops::dense_decode(q, tensors, &spans))
    }
}
