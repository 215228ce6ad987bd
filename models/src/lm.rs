//! What every model offers to the code that generates text with it: [`CausalLm`] and its [`ModelCache`].

use burn::tensor::{Device, FloatDType, Int, Tensor};
use sparq::{CacheMemory, KvCache, Method, SparqError};

/// The caches of a model, one [`KvCache`] per layer, all of the same lengths.
#[derive(Clone, Debug)]
pub struct ModelCache {
    /// One cache per layer, in the order of the layers.
    pub layers: Vec<KvCache>,
}

impl ModelCache {
    /// Positions held by the longest sequence of the batch, left padding included.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, KvCache::len)
    }

    /// Whether nothing has been appended yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rolls every layer back to at most `len` positions.
    pub fn truncate(&mut self, len: usize) {
        for layer in &mut self.layers {
            layer.truncate(len);
        }
    }

    /// Forgets every position; the buffers stay allocated.
    pub fn clear(&mut self) {
        for layer in &mut self.layers {
            layer.clear();
        }
    }

    /// Bytes allocated by all layers together.
    pub fn memory(&self) -> CacheMemory {
        self.layers.iter().map(KvCache::memory).sum()
    }
}

/// A decoder-only language model that reads tokens into a cache and predicts the next one.
pub trait CausalLm: Send + Sync {
    /// Number of entries of the vocabulary: the last dimension of every logits tensor.
    fn vocab_size(&self) -> usize;

    /// Positions the model was made for (`max_position_embeddings`).
    fn context_len(&self) -> usize;

    /// The device that holds the weights.
    fn device(&self) -> Device;

    /// An empty cache for `batch` sequences with room for `capacity` positions (it grows by doubling), holding what `method` needs.
    ///
    /// # Errors
    /// When the device can't hold `dtype`, or a size is 0.
    fn new_cache(
        &self,
        batch: usize,
        capacity: usize,
        dtype: FloatDType,
        method: &Method,
    ) -> Result<ModelCache, SparqError>;

    /// Reads `tokens` [B, T] densely (causal) behind what the cache holds and returns the logits of the last `last` positions, [B, last, vocab] in f32.
    ///
    /// # Errors
    /// When the tokens don't fit the cache (batch size), or `last` is larger than T.
    fn prefill(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut ModelCache,
        last: usize,
    ) -> Result<Tensor<3>, SparqError>;

    /// Reads one token per sequence, `tokens` [B, 1], attending with `method`, and returns the logits [B, 1, vocab] in f32.
    ///
    /// # Errors
    /// As [`CausalLm::prefill`], and when `method` needs what the cache does not hold.
    fn decode(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut ModelCache,
        method: &Method,
    ) -> Result<Tensor<3>, SparqError>;
}
