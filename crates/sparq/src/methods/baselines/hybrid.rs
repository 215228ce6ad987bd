//! Pages and components together: bounds of a few components select pages, then the same components
//! select positions.

use burn::tensor::{IndexingUpdateOp, Tensor};
use serde::{Deserialize, Serialize};

use super::quest::pages::{PageBound, Pages};
use crate::cost::CacheShape;
use crate::methods::settings::{Settings, at_least};
use crate::methods::step::{Step, without};
use crate::methods::{Budget, GroupScore, MeanValue, Method, RANK, SparqConfig, Strategy, TOP_K};
use crate::ops::reference::{expand_heads, select_and_attend, select_components, temperature};
use crate::{KvCache, KvCacheConfig, SparqError, Transfers};

/// SparQ's components on Quest's pages.
///
/// 1. Selects the r components of the query, with SparQ's temperature tau.
/// 2. Selects pages of p positions with m positions in all. A page's score is the sum over these
///    components of max(q_c min_c, q_c max_c) / tau. A group sums the softmax over the pages. The
///    page of the current token is always selected.
/// 3. Of these positions and the most recent l, selects the k with the largest q\[i1\] . K\[i1\] /
///    tau. A group sums the softmax over the m positions.
/// 4. Attends to the k positions with renormalised weights.
///
/// Minima and maxima are computed from the keys in every step, and counted as the bytes of reading
/// stored ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hybrid {
    /// r: the number of components.
    pub rank: usize,
    /// p: positions per page.
    pub page_size: usize,
    /// m: the number of positions in the selected pages. At least `top_k` and `page_size`.
    pub candidates: usize,
    /// k: the number of positions selected, local window included.
    pub top_k: usize,
    /// l: how many of them are the most recent. At most `top_k`.
    pub local_window: usize,
}

impl Hybrid {
    /// r components, pages of 8 positions, 4 k candidates, k positions, and a local window of k/4.
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

    /// Parts 3 and 4 as settings of SparQ.
    fn sparq(&self) -> SparqConfig {
        SparqConfig::new(self.rank, self.top_k)
            .with_local_window(self.local_window)
            .with_mean_value(MeanValue::Never)
    }
}

impl Strategy for Hybrid {
    fn presets() -> Vec<(&'static str, Self)> {
        vec![("hybrid", Self::new(RANK, TOP_K))]
    }

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

    /// 2 N r + m r + 2 k d + 5 d elements per head, for N = S / p pages, rounded up.
    ///
    /// A step writes the key twice, once with its components apart, the value, and the minima and
    /// maxima of the current page. Up to k positions are read densely.
    fn transfers(&self, shape: &CacheShape, seq_len: usize) -> Transfers {
        if seq_len <= self.top_k {
            return Transfers::dense(shape, seq_len);
        }
        let pages = seq_len.div_ceil(self.page_size);
        let scored = 2 * pages + self.candidates.min(seq_len);
        let rest = (2 * self.top_k + 5) * shape.head_dim;
        Transfers::of_head(shape, scored * self.rank + rest)
    }

    fn is_sparse(&self, cache: &KvCacheConfig, seq_len: usize) -> bool {
        cache.attended(seq_len) > self.top_k
    }

    /// r is d/4 at a budget of 1/8 and scales with it: minima and maxima then take a quarter.
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
        let step = Step::new(q, cache)?;
        let config = self.sparq();
        let i1 = expand_heads(select_components(&step.q, &config), &step.q);
        let q1 = step.q.clone().gather(3, i1.clone());
        let tau = temperature(&step.q, &q1);
        // q with zeros for the components that are not selected.
        let zeros = step.q.zeros_like();
        let q1 = zeros.scatter(3, i1, q1, IndexingUpdateOp::Add);

        let pages = Pages::new(&step, self.page_size, PageBound::Extremes);
        let scores = pages.scores(&q1, tau.clone(), GroupScore::Probabilities);
        let candidates = pages.select(&step, scores, self.candidates / self.page_size);

        let keys = step.keys().transpose();
        let others = candidates.bool_not().unsqueeze_dim::<4>(2);
        let (q1, tensors) = (q1 / tau, &step.tensors);
        let score = |q1: Tensor<4>| without(q1.matmul(keys.clone()), &others);
        let attended = select_and_attend(&step.q, q1, score, tensors, &step.spans, &config);
        Ok(step.output(attended.output))
    }
}
