//! Pages and components together: the bounds of a few components choose pages, and the same components choose among their positions.

use burn::tensor::{IndexingUpdateOp, Tensor};
use serde::{Deserialize, Serialize};

use super::pages::Pages;
use crate::methods::budget::Budget;
use crate::methods::settings::{Settings, at_least};
use crate::methods::step::{Step, without};
use crate::methods::{Dense, Method, Strategy};
use crate::ops::reference::{attend_to_best, choose_components, expand_heads, temperature};
use crate::{
    CacheShape, GroupScore, KvCache, KvCacheConfig, MeanValue, SparqConfig, SparqError, Transfers,
};

/// SparQ's components on Quest's pages.
///
/// 1. The r components of the query that the group finds largest, as in SparQ, with SparQ's temperature tau.
/// 2. The pages of p positions with the largest sum over these components of max(q_c least_c, q_c largest_c) / tau, until they have m positions; a group sums the
///    softmax over the pages. The current token's page is always among them.
/// 3. Of their positions, and the latest l of all, the k with the largest q\[i1\] . K\[i1\] / tau; a group sums the softmax over the m positions.
/// 4. Attention over these, renormalised.
///
/// Bounds are computed from the keys at every step here, and counted as what reading them would cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hybrid {
    /// r: components read.
    pub rank: usize,
    /// p: positions of a page.
    pub page_size: usize,
    /// m: positions of the pages that are looked into. At least `top_k` and `page_size`.
    pub candidates: usize,
    /// k: positions kept, the local window included.
    pub top_k: usize,
    /// l: how many of them are the latest. At most `top_k`.
    pub local_window: usize,
}

impl Hybrid {
    /// r components, pages of 8 positions, four candidates for each of k kept, the latest k/4 of them local.
    pub fn new(rank: usize, top_k: usize) -> Self {
        let page_size = 8;
        Self {
            rank,
            page_size,
            candidates: (4 * top_k).max(page_size),
            top_k,
            local_window: top_k / 4,
        }
    }

    /// Steps 3 and 4 as SparQ has them.
    fn sparq(&self) -> SparqConfig {
        SparqConfig::new(self.rank, self.top_k)
            .with_local_window(self.local_window)
            .with_mean_value(MeanValue::Never)
    }
}

impl Strategy for Hybrid {
    fn name(&self) -> &'static str {
        "hybrid"
    }

    fn settings(&mut self) -> Settings<'_> {
        vec![
            ("r", &mut self.rank),
            ("page", &mut self.page_size),
            ("m", &mut self.candidates),
            ("k", &mut self.top_k),
            ("l", &mut self.local_window),
        ]
    }

    fn follow_top_k(&mut self) {
        self.local_window = self.top_k / 4;
        self.candidates = (4 * self.top_k).max(self.page_size);
    }

    fn validate(&self, head_dim: usize) -> Result<(), SparqError> {
        self.sparq().validate(head_dim)?;
        at_least("page_size", 1, "a position", self.page_size)?;
        let least = self.top_k.max(self.page_size);
        at_least("candidates", least, "top_k, and a page", self.candidates)
    }

    fn transfers(&self, shape: &CacheShape, seq_len: usize) -> Transfers {
        Transfers::hybrid(shape, seq_len, self)
    }

    fn is_sparse(&self, cache: &KvCacheConfig, seq_len: usize) -> bool {
        cache.attended(seq_len) > self.top_k
    }

    /// r follows the budget, d/4 at an eighth, so that the bounds of pages of 8 take a quarter of it.
    fn at_budget(&self, budget: &Budget) -> Result<Method, SparqError> {
        let d = budget.head_dim;
        let rank = (2.0 * budget.ratio * d as f64).round().clamp(1.0, d as f64) as usize;
        let with = |top_k: usize| Self {
            rank,
            candidates: (4 * top_k).max(self.page_size),
            top_k,
            local_window: top_k / 4,
            ..*self
        };
        let top_k = budget.largest(1, |top_k| budget.fits(&with(top_k)))?;
        Ok(with(top_k).into())
    }

    fn decode(&self, q: Tensor<4>, cache: &mut KvCache) -> Result<Tensor<4>, SparqError> {
        if !self.is_sparse(cache.config(), cache.len()) {
            return Dense.decode(q, cache);
        }
        let step = Step::new(q, cache)?;
        let config = self.sparq();
        let i1 = expand_heads(choose_components(&step.q, &config), &step.q);
        let q1 = step.q.clone().gather(3, i1.clone());
        let tau = temperature(&step.q, &q1);
        // q with zeros for the components that are not read.
        let zeros = step.q.zeros_like();
        let q1 = zeros.scatter(3, i1, q1, IndexingUpdateOp::Add);

        let pages = Pages::new(&step, self.page_size);
        let scores = pages.scores(&q1, tau.clone(), GroupScore::Probabilities);
        let candidates = pages.best(&step, scores, self.candidates / self.page_size);

        let keys = step.keys().transpose();
        let others = candidates.bool_not().unsqueeze_dim::<4>(2);
        let score = |q1: Tensor<4>| without(q1.matmul(keys.clone()), &others);
        let attended = attend_to_best(&step.q, q1 / tau, score, &step.tensors, &step.rows, &config);
        Ok(step.output(attended.output))
    }
}

impl From<Hybrid> for Method {
    fn from(method: Hybrid) -> Self {
        Method::Hybrid(method)
    }
}
