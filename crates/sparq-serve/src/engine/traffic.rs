//! The bytes of cache that decode steps move: [`Traffic`].

use burn::tensor::DType;
use sparq::cost::CacheShape;
use sparq::{KvCache, Method};
use sparq_models::ModelCache;
use sparq_models::text::SpeculativeStats;

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
        let [bytes, dense] = [method, &Method::DENSE].map(|method| step_bytes(cache, method));
        self.bytes += bytes;
        self.dense_bytes += dense;
    }

    /// Adds drafts with the method `draft` and their verifications, at the length of `cache`.
    pub(super) fn add_drafts(
        &mut self,
        cache: &ModelCache,
        draft: &Method,
        stats: &SpeculativeStats,
    ) {
        let [sparse, dense] = [draft, &Method::DENSE].map(|method| step_bytes(cache, method));
        self.steps += stats.tokens;
        let passes = stats.verifications + stats.dense_steps;
        self.bytes += stats.drafted as f64 * sparse + passes as f64 * dense;
        self.dense_bytes += stats.tokens as f64 * dense;
    }
}

/// Returns the bytes that a step moves which has just appended to `cache`.
fn step_bytes(cache: &ModelCache, method: &Method) -> f64 {
    let layers = cache.layers.len();
    let bytes = |layer: &KvCache| {
        let config = layer.config();
        let shape = CacheShape {
            head_dim: config.head_dim,
            kv_heads: layers * config.kv_heads,
            layers,
            element_bytes: DType::from(config.dtype).size(),
        };
        let len = layer.len();
        let taken = method.at(config, len);
        taken.transfers(&shape, config.attended(len)).bytes()
    };
    // Each as if all layers were like it, of which some may select positions for the others.
    cache.layers.iter().map(bytes).sum::<f64>() / layers.max(1) as f64
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.steps += other.steps;
        self.sparse_steps += other.sparse_steps;
        self.bytes += other.bytes;
        self.dense_bytes += other.dense_bytes;
    }
}
