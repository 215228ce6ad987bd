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
    /// Adds a step with `method` that has just appended to a sequence of `cache`, which has `len`
    /// positions now. The longest sequence decides between dense attention and SparQ.
    pub(super) fn add(&mut self, cache: &ModelCache, len: usize, method: &Method) {
        self.steps += 1;
        let is_sparse = |layer: &KvCache| {
            let taken = method.at(layer.config(), layer.len());
            taken.is_sparse(layer.config(), len)
        };
        self.sparse_steps += usize::from(cache.layers.iter().any(is_sparse));
        let [bytes, dense] = [method, &Method::DENSE].map(|method| step_bytes(cache, len, method));
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
        let bytes = |method| step_bytes(cache, cache.len(), method);
        let [sparse, dense] = [draft, &Method::DENSE].map(bytes);
        self.steps += stats.tokens;
        let passes = stats.verifications + stats.dense_steps;
        self.bytes += stats.drafted as f64 * sparse + passes as f64 * dense;
        self.dense_bytes += stats.tokens as f64 * dense;
    }
}

/// Returns the bytes that a step moves for a sequence of `cache` with `len` positions.
fn step_bytes(cache: &ModelCache, len: usize, method: &Method) -> f64 {
    let layers = cache.layers.len();
    let bytes = |layer: &KvCache| {
        let config = layer.config();
        let shape = CacheShape {
            head_dim: config.head_dim,
            kv_heads: layers * config.kv_heads,
            layers,
            element_bytes: DType::from(config.dtype).size(),
        };
        let taken = method.at(config, layer.len());
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
