//! A share of the bytes that dense attention moves: what settings are searched for.

use super::Strategy;
use crate::{CacheShape, SparqError, Transfers};

/// The bytes that a step may move: a share of dense attention's over a 16-bit cache of so many positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// d of the model.
    pub head_dim: usize,
    /// S: positions in the cache.
    pub seq_len: usize,
    /// The share, above 0 and at most 1.
    pub ratio: f64,
}

impl Budget {
    /// Checks the figures.
    ///
    /// # Errors
    /// [`SparqError::Budget`] where a size is 0 or the share is not above 0 and at most 1.
    pub fn new(head_dim: usize, seq_len: usize, ratio: f64) -> Result<Self, SparqError> {
        let budget = Self {
            head_dim,
            seq_len,
            ratio,
        };
        match head_dim > 0 && seq_len > 0 && ratio > 0.0 && ratio <= 1.0 {
            true => Ok(budget),
            false => Err(budget.missed()),
        }
    }

    /// One key/value head of a 16-bit cache.
    fn shape(&self) -> CacheShape {
        CacheShape {
            head_dim: self.head_dim,
            kv_heads: 1,
            element_bytes: 2,
        }
    }

    /// The bytes of dense attention for one key/value head.
    pub(super) fn dense_bytes(&self) -> f64 {
        Transfers::dense(&self.shape(), self.seq_len).bytes()
    }

    /// Whether a method moves no more.
    pub(super) fn fits(&self, method: &dyn Strategy) -> bool {
        let bytes = method.transfers(&self.shape(), self.seq_len).bytes();
        bytes <= self.ratio * self.dense_bytes()
    }

    /// The largest number from `least` to S that fits, if every smaller one does.
    ///
    /// # Errors
    /// [`SparqError::Budget`] where not even the least one does.
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

    /// No setting of a method fits.
    pub(super) fn missed(&self) -> SparqError {
        SparqError::Budget {
            head_dim: self.head_dim,
            seq_len: self.seq_len,
            ratio: self.ratio,
        }
    }
}
