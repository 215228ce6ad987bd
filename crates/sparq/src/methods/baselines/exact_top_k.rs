//! Exact top-k: FlexGen's sparse attention (Sheng et al., 2023), and the oracle that shows what a perfect choice of positions would be worth.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::methods::budget::Budget;
use crate::methods::settings::{Settings, at_least};
use crate::methods::step::Step;
use crate::methods::{Dense, Method, Strategy};
use crate::ops::reference::{best_positions, finite};
use crate::{CacheShape, KvCache, KvCacheConfig, SparqError, Transfers};

/// The k positions with the largest exact probabilities, summed over the group, in one of two forms: [`FlexGen`] and [`Oracle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExactTopK<const RENORMALISED: bool> {
    /// k: positions kept.
    pub top_k: usize,
}

/// FlexGen: exact scores over all keys, and the values of the k best positions only, weighted as dense attention weights them.
///
/// What the positions left out would have had is missing from the output: the weights are not renormalised. All keys are read, so that less than half of dense
/// attention's bytes is out of reach.
pub type FlexGen = ExactTopK<false>;

/// The oracle: attention renormalised over the k positions.
///
/// It is no method, since it would have to read all keys to choose. Its bytes are those of the k keys and values alone: what a choice that costs nothing would read.
pub type Oracle = ExactTopK<true>;

impl<const RENORMALISED: bool> Strategy for ExactTopK<RENORMALISED>
where
    Self: Into<Method>,
{
    fn name(&self) -> &'static str {
        if RENORMALISED { "oracle" } else { "flexgen" }
    }

    fn settings(&mut self) -> Settings<'_> {
        vec![("k", &mut self.top_k)]
    }

    fn validate(&self, _head_dim: usize) -> Result<(), SparqError> {
        at_least("top_k", 1, "one position", self.top_k)
    }

    fn transfers(&self, shape: &CacheShape, seq_len: usize) -> Transfers {
        match RENORMALISED {
            true => Transfers::oracle(shape, seq_len, self.top_k),
            false => Transfers::flexgen(shape, seq_len, self.top_k),
        }
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
        let weights = step.weights();
        let score = finite(weights.clone().sum_dim(2).squeeze_dim::<3>(2));
        let (positions, _) = best_positions(score, &step.rows, 0, self.top_k);
        let kept = step.mask(positions);
        if RENORMALISED {
            return Ok(step.attend(kept));
        }
        let dropped = kept.bool_not().unsqueeze_dim::<4>(2);
        let dropped = dropped.expand(weights.dims());
        Ok(step.mix(weights.mask_fill(dropped, 0.0)))
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
