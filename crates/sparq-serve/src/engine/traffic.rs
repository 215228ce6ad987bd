//! The bytes of cache that decode steps move: [`Traffic`].

use sparq::cost::CacheShape;
use sparq::{Method, Transfers};
use sparq_models::ModelCache;

/// The bytes of cache that decode steps moved, and those that dense attention would have.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// The decode steps.
    pub steps: usize,
    /// Those that did not read every position.
    pub sparse_steps: usize,
    /// The bytes of the method, as the cost model counts them.
    pub bytes: f64,
    /// The bytes of dense attention.
    pub dense_bytes: f64,
}

impl Traffic {
    /// Adds a step with `method` that has just appended to `cache`.
    pub(super) fn add(&mut self, cache: &ModelCache, method: &Method) {
        self.steps += 1;
        let mut layers = cache.layers.iter();
        let is_sparse = layers.any(|layer| method.is_sparse(layer.config(), layer.len()));
        self.sparse_steps += usize::from(is_sparse);
        for layer in &cache.layers {
            let config = layer.config();
            let shape = CacheShape {
                head_dim: config.head_dim,
                kv_heads: config.kv_heads,
                element_bytes: burn::tensor::DType::from(config.dtype).size(),
            };
            let len = layer.len();
            let attended = config.attended(len);
            let taken = method.at(config, len);
            self.bytes += taken.transfers(&shape, attended).bytes();
            self.dense_bytes += Transfers::dense(&shape, attended).bytes();
        }
    }
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.steps += other.steps;
        self.sparse_steps += other.sparse_steps;
        self.bytes += other.bytes;
        self.dense_bytes += other.dense_bytes;
    }
}
