//! Dense attention: every position of the cache.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Budget, Method, Settings, Strategy};
use crate::cost::CacheShape;
use crate::{KvCache, KvCacheConfig, RowFormat, SparqError, Transfers, ops};

/// Dense attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dense {
    /// How a cache made for this method stores K and V.
    #[serde(default, skip_serializing_if = "RowFormat::is_float")]
    pub rows: RowFormat,
}

impl Strategy for Dense {
    fn presets() -> Vec<(&'static str, Self)> {
        vec![("dense", Dense::default())]
    }

    fn name(&self) -> &'static str {
        "dense"
    }

    fn settings(&mut self) -> Settings<'_> {
        vec![("rows", &mut self.rows)]
    }

    fn validate(&self, head_dim: usize) -> Result<(), SparqError> {
        self.rows.check(head_dim)
    }

    fn rows(&self) -> RowFormat {
        self.rows
    }

    fn transfers(&self, shape: &CacheShape, seq_len: usize) -> Transfers {
        Transfers::dense_rows(shape, seq_len, self.rows)
    }

    fn is_sparse(&self, _cache: &KvCacheConfig, _seq_len: usize) -> bool {
        false
    }

    fn at_budget(&self, budget: &Budget) -> Result<Method, SparqError> {
        match budget.fits(self) {
            true => Ok(Method::Dense(*self)),
            false => Err(budget.missed()),
        }
    }

    fn decode(&self, q: Tensor<4>, cache: &mut KvCache) -> Result<Tensor<4>, SparqError> {
        let (tensors, spans) = cache.view(&q, None)?;
        Ok(ops::dense_decode(q, tensors, &spans))
    }
}
