//! Pages of positions with the least and the largest of each component of their keys (Tang et al., "Quest", 2024).

use burn::tensor::{Bool, DType, Int, Tensor};

use crate::GroupScore;
use crate::methods::step::Step;
use crate::ops::reference::{LARGEST, finite, softmax};

/// The bounds of the pages of a step.
pub(super) struct Pages {
    /// Least component of a page's keys, [B, H_kv, N, d] in fp32; 0 in a page without a valid position.
    least: Tensor<4>,
    /// Largest component, likewise.
    largest: Tensor<4>,
    /// Pages with a valid position, [B, H_kv, N].
    filled: Tensor<3, Bool>,
    page_size: usize,
}

impl Pages {
    /// The pages of `page_size` positions, counted from position 0 of the buffers. Padding does not enter the bounds.
    pub fn new(step: &Step, page_size: usize) -> Self {
        let keys = step.keys();
        let [batch, kv_heads, seq_len, d] = keys.dims();
        let count = seq_len.div_ceil(page_size);
        let shape = [batch, kv_heads, count, page_size, d];
        let bound = |fill: f32| {
            let keys = match step.valid() {
                Some(valid) => {
                    let hidden = valid.bool_not().unsqueeze_dim::<4>(3).expand(keys.dims());
                    keys.clone().mask_fill(hidden, fill)
                }
                None => keys.clone(),
            };
            let missing = count * page_size - seq_len;
            let keys = match missing {
                0 => keys,
                _ => {
                    let rest = Tensor::full(
                        [batch, kv_heads, missing, d],
                        fill,
                        (&keys.device(), keys.dtype()),
                    );
                    Tensor::cat(vec![keys, rest], 2)
                }
            };
            keys.reshape(shape)
        };
        let least = bound(LARGEST).min_dim(3).squeeze_dim::<4>(3);
        let largest = bound(-LARGEST).max_dim(3).squeeze_dim::<4>(3);
        let empty = least.clone().greater(largest.clone());
        let filled = empty
            .clone()
            .slice_dim(3, 0..1)
            .squeeze_dim::<3>(3)
            .bool_not();
        Self {
            least: least.mask_fill(empty.clone(), 0.0),
            largest: largest.mask_fill(empty, 0.0),
            filled,
            page_size,
        }
    }

    /// What a group of query heads q [B, H_kv, g, d] can at most find in each page, [B, H_kv, N]: sum over c of max(q_c least_c, q_c largest_c), over `scale` [B, H_kv, g, 1],
    /// summed over the heads as it is or as probabilities of the pages.
    pub fn scores(&self, q: &Tensor<4>, scale: Tensor<4>, group: GroupScore) -> Tensor<3> {
        let above = q.clone().clamp_min(0.0);
        let below = q.clone().clamp_max(0.0);
        let bounds = above.matmul(self.largest.clone().transpose())
            + below.matmul(self.least.clone().transpose());
        let bounds = finite(bounds / scale);
        let scores = match group {
            GroupScore::Probabilities => softmax(bounds, Some(self.filled.clone())),
            GroupScore::Logits => bounds,
        };
        finite(scores.sum_dim(2).squeeze_dim::<3>(2))
    }

    /// The positions [B, H_kv, S] of the `count` pages with the largest scores [B, H_kv, N]. The page of the current token is always among them.
    pub fn best(&self, step: &Step, scores: Tensor<3>, count: usize) -> Tensor<3, Bool> {
        let [batch, kv_heads, pages] = scores.dims();
        let device = scores.device();
        let current = step
            .rows
            .end
            .iter()
            .map(|end| (end.saturating_sub(1) / self.page_size) as i64);
        let current: Vec<i64> = current.collect();
        let current = Tensor::<1, Int>::from_ints(current.as_slice(), &device)
            .reshape([batch, 1, 1])
            .expand([batch, kv_heads, pages]);
        let page = Tensor::<1, Int>::arange(0..pages as i64, &device)
            .reshape([1, 1, pages])
            .expand([batch, kv_heads, pages]);
        let scores = scores
            .mask_fill(page.equal(current), f32::INFINITY)
            .mask_fill(self.filled.clone().bool_not(), f32::NEG_INFINITY);
        let (_, best) = scores.topk_with_indices(count.min(pages), 2);
        let offset = Tensor::<1, Int>::arange(0..self.page_size as i64, &device)
            .cast(best.dtype())
            .reshape([1, 1, 1, self.page_size]);
        let shape = [batch, kv_heads, count.min(pages), self.page_size];
        let positions = (best * self.page_size as i64)
            .unsqueeze_dim::<4>(3)
            .expand(shape)
            + offset.expand(shape);
        let positions = positions.reshape([batch, kv_heads, shape[2] * shape[3]]);
        // The last page may go beyond S: its surplus falls on the last position, which belongs to it.
        step.mask(positions.clamp_max(step.seq_len() as i64 - 1))
    }
}

/// sqrt(n) for every query head of q [B, H_kv, g, d]: [B, H_kv, g, 1].
pub(super) fn sqrt_scale(q: &Tensor<4>, n: usize) -> Tensor<4> {
    let [batch, kv_heads, g, _] = q.dims();
    let options = (&q.device(), DType::F32);
    Tensor::full([batch, kv_heads, g, 1], (n as f32).sqrt(), options)
}
