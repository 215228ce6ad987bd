//! A decode step in plain tensor operations: what the methods without kernels of their own are written in.

use burn::tensor::{Bool, DType, FloatDType, IndexingUpdateOp, Int, Tensor};

use crate::ops::reference::{LARGEST, group, softmax};
use crate::{CacheTensors, KvCache, RowSpans, SparqError};

/// The operands of a step: S positions, of which `rows` has the valid ones, and the query heads in their groups.
pub(super) struct Step {
    /// Query, [B, H_kv, g, d] in fp32.
    pub q: Tensor<4>,
    /// The buffers of the cache.
    pub tensors: CacheTensors,
    /// The span that each sequence attends to.
    pub rows: RowSpans,
    /// The query's type.
    dtype: DType,
}

impl Step {
    /// The step of q [B, H, 1, d] on a cache.
    ///
    /// # Errors
    /// [`SparqError::NotCapturable`] where it is being recorded: its sizes are the host's.
    pub fn new(q: Tensor<4>, cache: &KvCache) -> Result<Self, SparqError> {
        cache.check_not_recorded("a method in plain tensor operations")?;
        let (tensors, rows) = cache.view(&q, None)?;
        let dtype = q.dtype();
        Ok(Self {
            q: group(q, cache.config().kv_heads),
            tensors,
            rows,
            dtype,
        })
    }

    /// S.
    pub fn seq_len(&self) -> usize {
        self.rows.longest()
    }

    /// Keys, [B, H_kv, S, d] in fp32.
    pub fn keys(&self) -> Tensor<4> {
        let keys = self.tensors.k.clone().slice_dim(2, 0..self.seq_len());
        keys.cast(FloatDType::F32)
    }

    /// The valid positions, [B, H_kv, S]; `None` if they all are.
    pub fn valid(&self) -> Option<Tensor<3, Bool>> {
        let [batch, kv_heads, _, _] = self.q.dims();
        let valid = self.rows.valid(&self.q.device())?;
        Some(valid.expand([batch, kv_heads, self.seq_len()]))
    }

    /// The exact logits q . K^T / sqrt(d), [B, H_kv, g, S].
    pub fn logits(&self) -> Tensor<4> {
        let d = self.q.dims()[3] as f32;
        self.q.clone().matmul(self.keys().transpose()) / d.sqrt()
    }

    /// The exact attention weights over all valid positions, [B, H_kv, g, S].
    pub fn weights(&self) -> Tensor<4> {
        softmax(self.logits(), self.valid())
    }

    /// A mask of `positions` [B, H_kv, k], which may be invalid: [B, H_kv, S], without the invalid ones.
    pub fn mask(&self, positions: Tensor<3, Int>) -> Tensor<3, Bool> {
        let [batch, kv_heads, k] = positions.dims();
        let options = (&positions.device(), DType::F32);
        let none = Tensor::<3>::zeros([batch, kv_heads, self.seq_len()], options);
        let ones = Tensor::<3>::ones([batch, kv_heads, k], options);
        let chosen = none.scatter(2, positions, ones, IndexingUpdateOp::Add);
        self.within(chosen.greater_elem(0.0))
    }

    /// What of a mask [B, H_kv, S] is valid.
    pub fn within(&self, mask: Tensor<3, Bool>) -> Tensor<3, Bool> {
        match self.valid() {
            Some(valid) => mask.bool_and(valid),
            None => mask,
        }
    }

    /// weights . V for weights [B, H_kv, g, S] that are 0 where nothing is valid: the output [B, H, 1, d].
    pub fn mix(&self, weights: Tensor<4>) -> Tensor<4> {
        let values = self.tensors.v.clone().slice_dim(2, 0..self.seq_len());
        let values = values.cast(FloatDType::F32);
        // What lies outside may be NaN from earlier use, which a weight of 0 would not silence.
        let values = match self.valid() {
            Some(valid) => {
                let shape = values.dims();
                values.mask_fill(valid.bool_not().unsqueeze_dim::<4>(3).expand(shape), 0.0)
            }
            None => values,
        };
        self.output(weights.matmul(values))
    }

    /// Attention renormalised over the positions of a mask [B, H_kv, S], all of them valid: [B, H, 1, d].
    pub fn attend(&self, kept: Tensor<3, Bool>) -> Tensor<4> {
        self.mix(softmax(self.logits(), Some(kept)))
    }

    /// y [B, H_kv, g, d] as an output [B, H, 1, d] in the query's type.
    pub fn output(&self, y: Tensor<4>) -> Tensor<4> {
        let [batch, kv_heads, g, d] = y.dims();
        y.reshape([batch, kv_heads * g, 1, d])
            .cast(FloatDType::from(self.dtype))
    }
}

/// Logits [B, H_kv, n, S] with the lowest number at the positions of a mask [B, H_kv, 1, S].
pub(super) fn without(logits: Tensor<4>, others: &Tensor<4, Bool>) -> Tensor<4> {
    let others = others.clone().expand(logits.dims());
    logits.mask_fill(others, -LARGEST)
}
