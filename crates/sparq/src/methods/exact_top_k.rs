//! Exact top-k: FlexGen's sparse attention (Sheng et al., 2023), and the oracle that shows what a perfect choice of positions would be worth.

use burn::tensor::{Bool, Tensor};
use serde::{Deserialize, Serialize};

use super::budget::Budget;
use super::settings::{Settings, at_least};
use super::step::Step;
use super::{Dense, Method, Strategy};
use crate::reference::{best_positions, finite};
use crate::{CacheShape, KvCache, KvCacheConfig, Sketch, SparqError, Transfers};

/// FlexGen: exact scores over all keys, and the values of the k best positions only, weighted as dense attention weights them.
///
/// A group of query heads agrees by the sum of its probabilities. What the positions left out would have had is missing from the output: the weights are not
/// renormalised. All keys are read, so that less than half of dense attention's bytes is out of reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlexGen {
    /// k: positions whose values are read.
    pub top_k: usize,
}

/// The oracle: the k positions with the largest exact probabilities, summed over the group, and attention renormalised over them.
///
/// It is no method, since it would have to read all keys to choose. Its bytes are those of the k keys and values alone: what a choice that costs nothing would read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Oracle {
    /// k: positions kept.
    pub top_k: usize,
}

/// The exact weights [B, H_kv, g, S] of a step, and a mask [B, H_kv, S] of the k positions that have most of them.
fn choose(step: &Step, top_k: usize) -> (Tensor<4>, Tensor<3, Bool>) {
    let weights = step.weights();
    let score = finite(weights.clone().sum_dim(2).squeeze_dim::<3>(2));
    let (positions, _) = best_positions(score, &step.rows, 0, top_k);
    (weights, step.mask(positions))
}

impl Strategy for FlexGen {
    fn name(&self) -> &'static str {
        "flexgen"
    }

    fn settings(&mut self) -> Settings<'_> {
        vec![("k", &mut self.top_k)]
    }

    fn validate(&self, _head_dim: usize) -> Result<(), SparqError> {
        at_least("top_k", 1, "one position", self.top_k)
    }

    fn sketch(&self) -> Option<Sketch> {
        None
    }

    fn transfers(&self, shape: &CacheShape, seq_len: usize) -> Transfers {
        Transfers::flexgen(shape, seq_len, self.top_k)
    }

    fn is_sparse(&self, cache: &KvCacheConfig, seq_len: usize) -> bool {
        cache.attended(seq_len) > self.top_k
    }

    fn at_budget(&self, budget: &Budget) -> Result<Method, SparqError> {
        let fits = |top_k| budget.fits(&Self { top_k });
        budget.largest(1, fits).map(|top_k| Self { top_k }.into())
    }

    fn decode(&self, q: Tensor<4>, cache: &mut KvCache) -> Result<Tensor<4>, SparqError> {
        if !self.is_sparse(cache.config(), cache.len()) {
            return Dense.decode(q, cache);
        }
        let step = Step::new(q, cache)?;
        let (weights, kept) = choose(&step, self.top_k);
        let shape = weights.dims();
        let dropped = kept.bool_not().unsqueeze_dim::<4>(2).expand(shape);
        Ok(step.mix(weights.mask_fill(dropped, 0.0)))
    }
}

impl Strategy for Oracle {
    fn name(&self) -> &'static str {
        "oracle"
    }

    fn settings(&mut self) -> Settings<'_> {
        vec![("k", &mut self.top_k)]
    }

    fn validate(&self, _head_dim: usize) -> Result<(), SparqError> {
        at_least("top_k", 1, "one position", self.top_k)
    }

    fn sketch(&self) -> Option<Sketch> {
        None
    }

    fn transfers(&self, shape: &CacheShape, seq_len: usize) -> Transfers {
        Transfers::oracle(shape, seq_len, self.top_k)
    }

    fn is_sparse(&self, cache: &KvCacheConfig, seq_len: usize) -> bool {
        cache.attended(seq_len) > self.top_k
    }

    fn at_budget(&self, budget: &Budget) -> Result<Method, SparqError> {
        let fits = |top_k| budget.fits(&Self { top_k });
        budget.largest(1, fits).map(|top_k| Self { top_k }.into())
    }

    fn decode(&self, q: Tensor<4>, cache: &mut KvCache) -> Result<Tensor<4>, SparqError> {
        if !self.is_sparse(cache.config(), cache.len()) {
            return Dense.decode(q, cache);
        }
        let step = Step::new(q, cache)?;
        let (_, kept) = choose(&step, self.top_k);
        Ok(step.attend(kept))
    }
}

impl From<FlexGen> for Method {
    fn from(method: FlexGen) -> Self {
        Method::FlexGen(method)
    }
}

impl From<Oracle> for Method {
    fn from(method: Oracle) -> Self {
        Method::Oracle(method)
    }
}
