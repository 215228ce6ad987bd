//! A budget of bytes for a decode step: a share of the bytes of dense attention.

use super::Strategy;
use crate::cost::CacheShape;
use crate::{SparqError, Transfers};

/// The share of dense attention's bytes that a step may move, for a 16-bit cache of some length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// d of the model.
    pub head_dim: usize,
    /// S: positions in the cache.
    pub seq_len: usize,
    /// The number of layers that the bytes are counted over. It matters if some of them reuse the
    /// positions of others; see [`Anchors`](super::Anchors).
    pub layers: usize,
    /// The share, in (0, 1].
    pub ratio: f64,
}

impl Budget {
    /// Makes the budget of a single layer.
    ///
    /// # Errors
    /// [`SparqError::Budget`] if a size is 0 or the share is not in (0, 1].
    pub fn new(head_dim: usize, seq_len: usize, ratio: f64) -> Result<Self, SparqError> {
        let budget = Self {
            head_dim,
            seq_len,
            layers: 1,
            ratio,
        };
        match head_dim > 0 && seq_len > 0 && ratio > 0.0 && ratio <= 1.0 {
            true => Ok(budget),
            false => Err(budget.missed()),
        }
    }

    /// Makes it the budget of all layers of a model together.
    pub fn with_layers(self, layers: usize) -> Self {
        Self { layers, ..self }
    }

    /// One KV head of each layer, in a 16-bit cache.
    fn shape(&self) -> CacheShape {
        CacheShape {
            head_dim: self.head_dim,
            kv_heads: self.layers,
            layers: self.layers,
            element_bytes: 2,
        }
    }

    /// The bytes that dense attention moves for one KV head of each layer.
    pub(super) fn dense_bytes(&self) -> f64 {
        Transfers::dense(&self.shape(), self.seq_len).bytes()
    }

    /// The bytes that a method moves for one KV head of each layer.
    pub(super) fn bytes(&self, method: &dyn Strategy) -> f64 {
        method.transfers(&self.shape(), self.seq_len).bytes()
    }

    /// Returns whether a method stays within the budget.
    pub(super) fn fits(&self, method: &dyn Strategy) -> bool {
        self.bytes(method) <= self.ratio * self.dense_bytes()
    }

    /// Returns the largest number from `least` to S that fits, if all smaller ones fit too.
    ///
    /// # Errors
    /// [`SparqError::Budget`] if `least` does not fit.
    pub(super) fn largest(
        &self,
        least: usize,
        fits: impl Fn(usize) -> bool,
    ) -> Result<usize, SparqError> {
        if !fits(least) {
            return Err(self.missed());
        }
        let (mut fitting, mut beyond) = (least, self.seq_len.max(least) + 1);
        while beyond - fitting > 1 {
            let middle = fitting + (beyond - fitting) / 2;
            match fits(middle) {
                true => fitting = middle,
                false => beyond = middle,
            }
        }
        Ok(fitting)
    }

    /// The error that no setting of a method fits.
    pub(super) fn missed(&self) -> SparqError {
        SparqError::Budget {
            head_dim: self.head_dim,
            seq_len: self.seq_len,
            ratio: self.ratio,
        }
    }
}
