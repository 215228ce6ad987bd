//! Pages of positions, with two statistics of each component of their keys.

use burn::tensor::{Bool, DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::cache::{indices, per_sequence};
use crate::methods::GroupScore;
use crate::methods::step::Step;
use crate::ops::reference::{LARGEST, fill_invalid, finite, softmax};

/// The score that a page gets from two statistics of each component of its keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PageBound {
    /// By minimum and maximum: the sum over c of max(q_c min_c, q_c max_c), above which no position
    /// scores.
    #[default]
    Extremes,
    /// By mean and standard deviation: q . mean + sqrt(2 ln p) sqrt(sum over c of q_c^2 std_c^2),
    /// about the largest of p scores if components are independent and normally distributed.
    Deviations,
}

impl PageBound {
    pub(super) fn is_extremes(&self) -> bool {
        *self == PageBound::Extremes
    }
}

/// The statistics of N pages, [B, H_kv, N, d] each in fp32; 0 in an empty page.
enum Statistics {
    Extremes { min: Tensor<4>, max: Tensor<4> },
    Deviations { mean: Tensor<4>, variance: Tensor<4> },
}

/// The N pages of a step.
pub(in crate::methods::baselines) struct Pages {
    statistics: Statistics,
    /// True for pages with a valid position, [B, H_kv, N].
    filled: Tensor<3, Bool>,
    page_size: usize,
}

impl Pages {
    /// Makes the pages of `page_size` positions, counted from position 0 of the buffers.
    ///
    /// Padding does not enter the statistics.
    pub fn new(step: &Step, page_size: usize, bound: PageBound) -> Self {
        let keys = step.keys();
        let [batch, kv_heads, seq_len, d] = keys.dims();
        let count = seq_len.div_ceil(page_size);
        let shape = [batch, kv_heads, count, page_size, d];
        let filled_up = |fill: f32| {
            let keys = fill_invalid(keys.clone(), step.valid(), fill);
            let keys = match count * page_size - seq_len {
                0 => keys,
                missing => {
                    let options = (&keys.device(), keys.dtype());
                    let rest = Tensor::full([batch, kv_heads, missing, d], fill, options);
                    Tensor::cat(vec![keys, rest], 2)
                }
            };
            keys.reshape(shape)
        };
        let largest = |fill| filled_up(fill).max_dim(3).squeeze_dim::<4>(3);
        let max = largest(-LARGEST);
        let empty = max.clone().lower_equal_elem(-LARGEST);
        let filled = empty
            .clone()
            .slice_dim(3, 0..1)
            .squeeze_dim::<3>(3)
            .bool_not();
        let statistics = match bound {
            PageBound::Extremes => Statistics::Extremes {
                min: filled_up(LARGEST)
                    .min_dim(3)
                    .squeeze_dim::<4>(3)
                    .mask_fill(empty.clone(), 0.0),
                max: max.mask_fill(empty, 0.0),
            },
            PageBound::Deviations => {
                let sum = |keys: Tensor<5>| keys.sum_dim(3);
                let ones = filled_up(LARGEST).lower_elem(LARGEST).float();
                let count = sum(ones.clone()).clamp_min(1.0);
                let mean = sum(filled_up(0.0)) / count.clone();
                let centred = (filled_up(0.0) - mean.clone().expand(shape)) * ones;
                let variance = sum(centred.powi_scalar(2)) / count;
                Statistics::Deviations {
                    mean: mean.squeeze_dim::<4>(3),
                    variance: variance.squeeze_dim::<4>(3),
                }
            }
        };
        Self {
            statistics,
            filled,
            page_size,
        }
    }

    /// Returns the score of a group in each page, [B, H_kv, N].
    ///
    /// That of a head of q [B, H_kv, g, d] is its [`PageBound`], divided by `scale` [B, H_kv, g,
    /// 1]. The group sums these scores, or their softmax over the pages.
    pub fn scores(&self, q: &Tensor<4>, scale: Tensor<4>, group: GroupScore) -> Tensor<3> {
        let bounds = match &self.statistics {
            Statistics::Extremes { min, max } => {
                let above = q.clone().clamp_min(0.0);
                let below = q.clone().clamp_max(0.0);
                above.matmul(max.clone().transpose()) + below.matmul(min.clone().transpose())
            }
            Statistics::Deviations { mean, variance } => {
                let spread = q.clone().powi_scalar(2);
                let deviation = spread.matmul(variance.clone().transpose()).sqrt();
                let above = (2.0 * (self.page_size as f32).ln()).sqrt();
                q.clone().matmul(mean.clone().transpose()) + deviation * above
            }
        };
        let bounds = finite(bounds / scale);
        let scores = match group {
            GroupScore::Probabilities => softmax(bounds, Some(self.filled.clone())),
            GroupScore::Logits => bounds,
        };
        finite(scores.sum_dim(2).squeeze_dim::<3>(2))
    }

    /// Returns the positions [B, H_kv, S] of the `count` pages with the largest scores [B, H_kv,
    /// N].
    ///
    /// The page of the current token is always among them.
    pub fn select(&self, step: &Step, scores: Tensor<3>, count: usize) -> Tensor<3, Bool> {
        let [batch, kv_heads, pages] = scores.dims();
        let device = scores.device();
        let ends = step.spans.end.iter();
        let current = ends.map(|end| end.saturating_sub(1) / self.page_size);
        let current = per_sequence(&current.collect::<Vec<_>>(), &device).expand(scores.dims());
        let page = indices(0..pages, &device).expand(scores.dims());
        let scores = scores
            .mask_fill(page.equal(current), f32::INFINITY)
            .mask_fill(self.filled.clone().bool_not(), f32::NEG_INFINITY);
        let (_, selected) = scores.topk_with_indices(count.min(pages), 2);
        let offset = indices(0..self.page_size, &device).cast(selected.dtype());
        let offset = offset.unsqueeze_dim::<4>(0);
        let shape = [batch, kv_heads, count.min(pages), self.page_size];
        let first = (selected * self.page_size as i64).unsqueeze_dim::<4>(3);
        let positions = first.expand(shape) + offset.expand(shape);
        let positions = positions.reshape([batch, kv_heads, shape[2] * shape[3]]);
        // The last page may extend past S. Its surplus maps to the last position, which it
        // contains.
        step.mask(positions.clamp_max(step.seq_len() as i64 - 1))
    }
}

/// Returns sqrt(n) for every query head of q [B, H_kv, g, d], as [B, H_kv, g, 1].
pub(in crate::methods::baselines) fn sqrt_scale(q: &Tensor<4>, n: usize) -> Tensor<4> {
    let [batch, kv_heads, g, _] = q.dims();
    let options = (&q.device(), DType::F32);
    Tensor::full([batch, kv_heads, g, 1], (n as f32).sqrt(), options)
}
