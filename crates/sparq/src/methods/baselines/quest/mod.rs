//! Quest (Tang et al., 2024): whole pages, selected by upper bounds of their scores.

pub(super) mod pages;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

pub use self::pages::PageBound;
use self::pages::{Pages, sqrt_scale};
use crate::cost::CacheShape;
use crate::methods::settings::{Settings, at_least, words};
use crate::methods::step::Step;
use crate::methods::{Budget, GroupScore, Method, Strategy, TOP_K};
use crate::{KvCache, KvCacheConfig, SparqError, Transfers};

/// Attention renormalised over the k/p pages with the largest upper bounds of their scores.
///
/// A page has p positions, counted from the start of the buffers. Quest's bound takes the minimum
/// and the maximum of each component of its keys; see [`PageBound`]. The page of the current token
/// is always selected. The statistics are computed from the keys in every step, and counted as the
/// bytes of reading stored ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quest {
    /// p: positions per page.
    pub page_size: usize,
    /// k: the number of positions selected, at most. At least `page_size`.
    pub top_k: usize,
    /// The score by which a group of query heads selects pages.
    ///
    /// It is the sum of the heads' bounds, or of the softmax of the bounds over the pages.
    pub group_score: GroupScore,
    /// The score of a page.
    #[serde(default, skip_serializing_if = "PageBound::is_extremes")]
    pub bound: PageBound,
}

words!(PageBound { Extremes = "extremes", Deviations = "deviations" } implies Extremes);

impl Quest {
    /// Quest's pages of 16 positions, and k positions in all.
    pub fn new(top_k: usize) -> Self {
        Self {
            page_size: 16,
            top_k,
            group_score: GroupScore::Probabilities,
            bound: PageBound::Extremes,
        }
    }
}

impl Strategy for Quest {
    fn presets() -> Vec<(&'static str, Self)> {
        vec![("quest", Self::new(TOP_K))]
    }

    fn name(&self) -> &'static str {
        "quest"
    }

    fn settings(&mut self) -> Settings<'_> {
        vec![
            ("page", &mut self.page_size),
            ("k", &mut self.top_k),
            ("score", &mut self.group_score),
            ("bound", &mut self.bound),
        ]
    }

    fn validate(&self, _head_dim: usize) -> Result<(), SparqError> {
        at_least("page_size", 1, "a position", self.page_size)?;
        at_least("top_k", self.page_size, "one page", self.top_k)
    }

    /// 2 N d + 2 k d + 4 d elements per head, for N = S / p pages, rounded up.
    ///
    /// The two statistics of every page are read, those of the current page written. Up to k
    /// positions are read densely.
    fn transfers(&self, shape: &CacheShape, seq_len: usize) -> Transfers {
        if seq_len <= self.top_k {
            return Transfers::dense(shape, seq_len);
        }
        let pages = seq_len.div_ceil(self.page_size);
        let kept = self.top_k / self.page_size * self.page_size;
        Transfers::of_head(shape, (2 * pages + 2 * kept + 4) * shape.head_dim)
    }

    fn is_sparse(&self, cache: &KvCacheConfig, seq_len: usize) -> bool {
        cache.attended(seq_len) > self.top_k
    }

    /// Doubles the page size until the statistics take at most half of the budget.
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
        let step = Step::new(q, cache)?;
        let pages = Pages::new(&step, self.page_size, self.bound);
        let scale = sqrt_scale(&step.q, step.q.dims()[3]);
        let scores = pages.scores(&step.q, scale, self.group_score);
        Ok(step.attend(pages.select(&step, scores, self.top_k / self.page_size)))
    }
}
