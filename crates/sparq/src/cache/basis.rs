//! The directions that a projection has chosen from the keys of a cache.

use burn::tensor::Tensor;

use super::KvCache;
use crate::methods::baselines::{Directions, Projection};

/// W for one setting, and how many positions there were when it was made.
#[derive(Clone, Debug)]
pub(super) struct Basis {
    directions: Directions,
    basis: Tensor<4>,
    made_at: usize,
}

impl KvCache {
    /// The directions of a projection, [B, H_kv, d, r], if there are any that still hold.
    pub(crate) fn basis(&self, projection: &Projection) -> Option<Tensor<4>> {
        let kept = self.basis.as_ref()?;
        let same =
            kept.directions == projection.directions && kept.basis.dims()[3] == projection.rank;
        let (len, made_at) = (self.len(), kept.made_at);
        // As long as the ranges of a sketch hold.
        let holds = len < 2 * made_at && 2 * len >= made_at;
        let holds = holds || projection.directions == Directions::Random;
        (same && holds).then(|| kept.basis.clone())
    }

    /// Keeps directions for later steps.
    pub(crate) fn keep_basis(&mut self, projection: &Projection, basis: Tensor<4>) {
        self.basis = Some(Basis {
            directions: projection.directions,
            basis,
            made_at: self.len(),
        });
    }
}
