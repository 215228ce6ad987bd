//! The memory that a model needs: [`Demand`].

use sparq::Method;
use sparq_models::DecoderConfig;

use crate::ModelShape;
use crate::model::FP32;

/// A model that reads prompts and decodes on one device, as far as its memory matters.
///
/// ```
/// use sparq::Method;
/// use sparq_models::{DecoderConfig, embedded};
/// use sparq_plan::Demand;
///
/// let config = DecoderConfig::from_checkpoint(&embedded::checkpoint()?)?;
/// let demand = Demand::new(&config, Method::DENSE, 2).with_positions(8192);
/// let total = demand.memory().total();
/// assert!(demand.positions_in(total) == Some(8192));
/// assert!(demand.positions_in(total - 1.0) < Some(8192));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Demand {
    model: ModelShape,
    intermediate_size: usize,
    vocab_size: usize,
    method: Method,
    element_bytes: usize,
    /// The bytes of the weights; `None` if they are elements of this size.
    weight_bytes: Option<f64>,
    batch: usize,
    positions: usize,
    chunk: usize,
}

/// Bytes of memory, by use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Memory {
    /// The weights.
    pub weights: f64,
    /// The caches of all sequences.
    pub cache: f64,
    /// The tensors of one prefill pass. An estimate: the largest that exist at once.
    pub activations: f64,
}

impl Memory {
    /// Returns the sum of the parts.
    pub fn total(&self) -> f64 {
        self.weights + self.cache + self.activations
    }
}

impl Demand {
    /// A model with weights and cache in elements of `element_bytes` bytes, for one sequence of one
    /// position.
    pub fn new(config: &DecoderConfig, method: Method, element_bytes: usize) -> Self {
        Self {
            model: ModelShape::of(config),
            intermediate_size: config.intermediate_size,
            vocab_size: config.vocab_size,
            method,
            element_bytes,
            weight_bytes: None,
            batch: 1,
            positions: 1,
            chunk: usize::MAX,
        }
    }

    /// Sets the memory that the weights take. Those that are used in a mapped file take none.
    pub fn with_weight_bytes(self, bytes: f64) -> Self {
        Self {
            weight_bytes: Some(bytes),
            ..self
        }
    }

    /// Sets the number of sequences.
    pub fn with_batch(self, batch: usize) -> Self {
        Self { batch, ..self }
    }

    /// Sets the number of positions of each sequence: those of the prompt and those to generate.
    pub fn with_positions(self, positions: usize) -> Self {
        Self { positions, ..self }
    }

    /// Sets the number of prompt tokens per prefill pass.
    pub fn with_chunk(self, chunk: usize) -> Self {
        Self { chunk, ..self }
    }

    /// Returns the number of positions of each sequence.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Returns the most tokens of a prefill pass per sequence.
    pub fn tokens_per_pass(&self) -> usize {
        self.chunk.min(self.positions)
    }

    /// Returns the memory that this model needs.
    pub fn memory(&self) -> Memory {
        let cache = self
            .model
            .cache_bytes(&self.method, self.positions, self.element_bytes);
        let floats = (self.model.parameters * self.element_bytes) as f64;
        Memory {
            weights: self.weight_bytes.unwrap_or(floats),
            cache: self.batch as f64 * cache,
            activations: self.batch as f64 * self.activations(),
        }
    }

    /// The bytes of the tensors of one pass over one sequence.
    ///
    /// In a layer's attention these are the residual stream, its norm and the output, queries, keys
    /// and values before and after RoPE, and the attended values; in its MLP the first three, and
    /// gate, up, the activation of the gate and the product. Layers come one after the other. The
    /// scores of attention are never in memory, and the head reads one position.
    fn activations(&self) -> f64 {
        let ModelShape {
            hidden_size,
            heads,
            kv_heads,
            head_dim,
            ..
        } = self.model;
        let qkv = (heads + 2 * kv_heads) * head_dim;
        let attention = 2 * qkv + heads * head_dim;
        let mlp = 4 * self.intermediate_size;
        let token = (3 * hidden_size + attention.max(mlp)) * self.element_bytes;
        let logits = self.vocab_size * (self.element_bytes + FP32);
        self.tokens_per_pass() as f64 * token as f64 + logits as f64
    }

    /// Returns the most positions per sequence, up to those asked for, that fit into `available`
    /// bytes. `None` if not even one does.
    pub fn positions_in(&self, available: f64) -> Option<usize> {
        let fits = |positions: usize| {
            let demand = self.clone().with_positions(positions);
            demand.memory().total() <= available
        };
        if fits(self.positions) {
            return Some(self.positions);
        }
        let (mut fitting, mut too_many) = (0, self.positions);
        while too_many - fitting > 1 {
            let middle = fitting + (too_many - fitting) / 2;
            match fits(middle) {
                true => fitting = middle,
                false => too_many = middle,
            }
        }
        (fitting > 0).then_some(fitting)
    }
}

#[cfg(test)]
mod tests {
    use sparq::{Sketch, SparqConfig};

    use super::*;

    fn demand(method: Method) -> Demand {
        Demand {
            model: ModelShape::example(),
            intermediate_size: 1000,
            vocab_size: 300,
            method,
            element_bytes: 2,
            weight_bytes: None,
            batch: 1,
            positions: 4000,
            chunk: 500,
        }
    }

    #[test]
    fn memory_is_the_sum_of_its_parts() {
        let memory = demand(Method::DENSE).memory();
        assert_eq!(memory.weights, 2.4e6);
        // 10 layers of 4 KV heads of 64 channels: K and V in 2 bytes, and the sum of V.
        assert_eq!(memory.cache, (2 * 2560 * 4000 * 2 + 2560 * 4) as f64);
        // The MLP is the larger part: 3 x 512 + 4 x 1000 elements of 500 tokens; and the logits.
        assert_eq!(
            memory.activations,
            (500 * (1536 + 4000) * 2 + 300 * 6) as f64
        );
        assert_eq!(
            memory.total(),
            memory.weights + memory.cache + memory.activations
        );

        let four = demand(Method::DENSE).with_batch(4).memory();
        assert_eq!(four.weights, memory.weights);
        assert_eq!(four.cache, 4.0 * memory.cache);
        assert_eq!(four.activations, 4.0 * memory.activations);
        let mapped = demand(Method::DENSE).with_weight_bytes(0.0).memory();
        assert_eq!(mapped.total(), memory.total() - memory.weights);
    }

    #[test]
    fn sketch_of_the_method_counts() {
        let sparq = SparqConfig::new(16, 128).with_sketch(Sketch::Full);
        let added = demand(sparq.into()).memory().cache - demand(Method::DENSE).memory().cache;
        assert_eq!(added, (2560 * 4000 * 2) as f64);
    }

    #[test]
    fn attention_can_be_the_larger_part() {
        let mut demand = demand(Method::DENSE).with_chunk(1);
        demand.intermediate_size = 1;
        // Queries of 8 heads, keys and values of 4, of 64 components each, and 8 heads of output.
        let elements = 3 * 512 + 2 * (8 + 2 * 4) * 64 + 8 * 64;
        assert_eq!(demand.memory().activations, (elements * 2 + 300 * 6) as f64);
    }

    #[test]
    fn fitting_positions_are_the_most_that_fit() {
        let demand = demand(Method::DENSE);
        let total = |positions| demand.clone().with_positions(positions).memory().total();
        for positions in [1, 2, 499, 500, 501, 3999] {
            assert_eq!(demand.positions_in(total(positions)), Some(positions));
            let less = demand.positions_in(total(positions) - 1.0);
            assert_eq!(less, Some(positions - 1).filter(|&left| left > 0));
        }
        assert_eq!(demand.positions_in(total(9000)), Some(4000));
        assert_eq!(demand.positions_in(demand.memory().weights), None);
    }
}
