//! The directions that a projection keeps with a cache.

use burn::tensor::Tensor;

use super::{Directions, Projection};
use crate::methods::MethodState;

/// The basis of one projection, and the number of positions that it was made from.
#[derive(Clone, Debug)]
pub(super) struct Basis {
    directions: Directions,
    /// W, [B, H_kv, d, r]; `None` after a rollback to nothing.
    basis: Option<Tensor<4>>,
    made_at: usize,
}

impl Basis {
    /// Keeps a basis made for a cache of `made_at` positions.
    pub fn new(projection: &Projection, basis: Tensor<4>, made_at: usize) -> Self {
        Self {
            directions: projection.directions,
            basis: Some(basis),
            made_at,
        }
    }

    /// Returns the basis if it was made for this projection and still holds at `len` positions.
    ///
    /// It holds as long as the ranges of a sketch do: until the length has doubled or halved.
    pub fn for_len(&self, projection: &Projection, len: usize) -> Option<Tensor<4>> {
        let basis = self.basis.as_ref()?;
        let same = self.directions == projection.directions && basis.dims()[3] == projection.rank;
        let holds = len < 2 * self.made_at && 2 * len >= self.made_at;
        let holds = holds || projection.directions == Directions::Random;
        (same && holds).then(|| basis.clone())
    }
}

impl MethodState for Basis {
    fn duplicate(&self) -> Box<dyn MethodState> {
        Box::new(self.clone())
    }

    fn truncate(&mut self, len: usize) {
        if len == 0 {
            self.basis = None;
        }
    }
}
