//! Quest (Tang et al., 2024): whole pages, chosen by the bounds of their keys.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::pages::{Pages, sqrt_scale};
use crate::methods::budget::Budget;
use crate::methods::settings::{Settings, at_least};
use crate::methods::step::Step;
use crate::methods::{Dense, Method, Strategy};
use crate::{CacheShape, GroupScore, KvCache, KvCacheConfig, SparqError, Transfers};

/// Attention renormalised over the pages whose keys can match the query best, that of the current token always among them.
///
/// A page of p positions is judged by the least and the largest of each component of its keys: sum over c of max(q_c least_c, q_c largest_c) is the most that any of
/// its positions can score. k/p pages are kept. Pages are counted from the start of the buffers; the bounds are computed from the keys at every step here, and counted as
/// what reading them would cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quest {
    /// p: positions of a page.
    pub page_size: usize,
    /// k: positions kept at most. At least `page_size`.
    pub top_k: usize,
    /// How a group of query heads agrees on pages: by the sum of their bounds, or of the softmax of these over the pages.
    pub group_score: GroupScore,
}

impl Quest {
    /// Quest's pages of 16 positions, k of them kept.
    pub fn new(top_k: usize) -> Self {
        Self {
            page_size: 16,
            top_k,
            group_score: GroupScore::Probabilities,
        }
    }
}

impl Strategy for Quest {
    fn name(&self) -> &'static str {
        "quest"
    }

    fn settings(&mut self) -> Settings<'_> {
        vec![
            ("page", &mut self.page_size),
            ("k", &mut self.top_k),
            ("score", &mut self.group_score),
        ]
    }

    fn validate(&self, _head_dim: usize) -> Result<(), SparqError> {
        at_least("page_size", 1, "a position", self.page_size)?;
        at_least("top_k", self.page_size, "one page", self.top_k)
    }

    fn transfers(&self, shape: &CacheShape, seq_len: usize) -> Transfers {
        Transfers::quest(shape, seq_len, self)
    }

    fn is_sparse(&self, cache: &KvCacheConfig, seq_len: usize) -> bool {
        cache.attended(seq_len) > self.top_k
    }

    /// Pages grow until their bounds take at most half of the budget.
    fn at_budget(&self, budget: &Budget) -> Result<Method, SparqError> {
        let mut page_size = self.page_size;
        while page_size < budget.seq_len && 2.0 / page_size as f64 > budget.ratio {
            page_size *= 2;
        }
        let with = |pages: usize| Self {
            page_size,
            top_k: pages * page_size,
            ..*self
        };
        let pages = budget.largest(1, |pages| budget.fits(&with(pages)))?;
        Ok(with(pages).into())
    }

    fn decode(&self, q: Tensor<4>, cache: &mut KvCache) -> Result<Tensor<4>, SparqError> {
        if !self.is_sparse(cache.config(), cache.len()) {
            return Dense.decode(q, cache);
        }
        let step = Step::new(q, cache)?;
        let pages = Pages::new(&step, self.page_size);
        let scale = sqrt_scale(&step.q, step.q.dims()[3]);
        let scores = pages.scores(&step.q, scale, self.group_score);
        Ok(step.attend(pages.best(&step, scores, self.top_k / self.page_size)))
    }
}

impl From<Quest> for Method {
    fn from(method: Quest) -> Self {
        Method::Quest(method)
    }
}
