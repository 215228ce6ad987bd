//! A decode step in plain tensor operations, for the methods without kernels.

use burn::tensor::{Bool, DType, FloatDType, IndexingUpdateOp, Int, Tensor};

use crate::ops::reference::{
    LARGEST, bounded, fill_invalid, finite, group, softmax, top_positions,
};
use crate::ops::{CacheTensors, Spans};
use crate::{KvCache, SparqError};

/// The operands of a step: the query heads in groups, and a cache with S positions.
pub(super) struct Step {
    /// The query, [B, H_kv, g, d] in fp32.
    pub q: Tensor<4>,
    /// The buffers of the cache.
    pub tensors: CacheTensors,
    /// The span that each sequence attends to.
    pub spans: Spans,
    /// The query's type.
    dtype: DType,
}

impl Step {
    /// Makes the step of q [B, H, 1, d] on a cache.
    ///
    /// # Errors
    /// [`SparqError::NotCapturable`] during a capture: the sizes of its tensors are the host's.
    pub fn new(q: Tensor<4>, cache: &KvCache) -> Result<Self, SparqError> {
        cache.check_not_capturing("a method in plain tensor operations")?;
        let (tensors, spans) = cache.view(&q, None)?;
        let dtype = q.dtype();
        Ok(Self {
            q: group(q, cache.config().kv_heads),
            tensors,
            spans,
            dtype,
        })
    }

    /// S.
    pub fn seq_len(&self) -> usize {
        self.spans.longest()
    }

    /// The keys, [B, H_kv, S, d] in fp32.
    pub fn keys(&self) -> Tensor<4> {
        self.tensors.k.at(0..self.seq_len()).cast(FloatDType::F32)
    }

    /// The valid positions, [B, H_kv, S]; `None` if all are valid.
    pub fn valid(&self) -> Option<Tensor<3, Bool>> {
        let [batch, kv_heads, _, _] = self.q.dims();
        let valid = self.spans.valid(&self.q.device())?;
        Some(valid.expand([batch, kv_heads, self.seq_len()]))
    }

    /// The exact logits q . K^T / sqrt(d), bounded by the cache's softcap, [B, H_kv, g, S].
    pub fn logits(&self) -> Tensor<4> {
        let d = self.q.dims()[3] as f32;
        let logits = self.q.clone().matmul(self.keys().transpose()) / d.sqrt();
        bounded(logits, self.tensors.softcap)
    }

    /// The exact attention weights over all valid positions, [B, H_kv, g, S].
    pub fn weights(&self) -> Tensor<4> {
        softmax(self.logits(), self.valid())
    }

    /// Returns the exact weights and a mask of the k positions with the largest sum over the group.
    pub fn exact_top_k(&self, top_k: usize) -> (Tensor<4>, Tensor<3, Bool>) {
        let weights = self.weights();
        let score = finite(weights.clone().sum_dim(2).squeeze_dim::<3>(2));
        let (positions, _) = top_positions(score, &self.spans, 0, top_k);
        (weights, self.mask(positions))
    }

    /// Returns the valid ones of `positions` [B, H_kv, k] as a mask [B, H_kv, S].
    pub fn mask(&self, positions: Tensor<3, Int>) -> Tensor<3, Bool> {
        let [batch, kv_heads, k] = positions.dims();
        let options = (&positions.device(), DType::F32);
        let none = Tensor::<3>::zeros([batch, kv_heads, self.seq_len()], options);
        let ones = Tensor::<3>::ones([batch, kv_heads, k], options);
        let chosen = none.scatter(2, positions, ones, IndexingUpdateOp::Add);
        self.within(chosen.greater_elem(0.0))
    }

    /// Returns the valid positions of a mask [B, H_kv, S].
    pub fn within(&self, mask: Tensor<3, Bool>) -> Tensor<3, Bool> {
        match self.valid() {
            Some(valid) => mask.bool_and(valid),
            None => mask,
        }
    }

    /// Returns the output weights . V, [B, H, 1, d], for weights [B, H_kv, g, S].
    ///
    /// Weights at positions that are not valid must be 0.
    pub fn mix(&self, weights: Tensor<4>) -> Tensor<4> {
        let values = self.tensors.v.at(0..self.seq_len());
        let values = fill_invalid(values.cast(FloatDType::F32), self.valid(), 0.0);
        self.output(weights.matmul(values))
    }

    /// Attends to the positions of a mask [B, H_kv, S], all valid, with renormalised weights.
    pub fn attend(&self, kept: Tensor<3, Bool>) -> Tensor<4> {
        self.mix(softmax(self.logits(), Some(kept)))
    }

    /// Returns y [B, H_kv, g, d] as an output [B, H, 1, d] in the query's type.
    pub fn output(&self, y: Tensor<4>) -> Tensor<4> {
        let [batch, kv_heads, g, d] = y.dims();
        y.reshape([batch, kv_heads * g, 1, d])
            .cast(FloatDType::from(self.dtype))
    }
}

/// Sets logits [B, H_kv, n, S] to the lowest number at the positions of a mask [B, H_kv, 1, S].
pub(super) fn without(logits: Tensor<4>, others: &Tensor<4, Bool>) -> Tensor<4> {
    let others = others.clone().expand(logits.dims());
    logits.mask_fill(others, -LARGEST)
}
