//! What every model offers to the code that generates text with it: [`CausalLm`] and its [`ModelCache`].

use burn::tensor::{Device, FloatDType, Int, Tensor};
use sparq::cost::CacheMemory;
use sparq::{CapturedStep, KvCache, Method, SparqError};

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

    /// Caches with the same positions that hold what `method` reads; see [`KvCache::for_method`].
    ///
    /// # Errors
    /// As [`KvCache::for_method`].
    pub fn for_method(&self, method: &Method) -> Result<Self, SparqError> {
        let layers = self.layers.iter().map(|layer| layer.for_method(method));
        Ok(Self {
            layers: layers.collect::<Result<_, _>>()?,
        })
    }

    /// Bytes allocated by all layers together.
    pub fn memory(&self) -> CacheMemory {
        self.layers.iter().map(KvCache::memory).sum()
    }
}

/// What a [`CapturedStep`](sparq::CapturedStep) needs of its state.
impl AsMut<[KvCache]> for ModelCache {
    fn as_mut(&mut self) -> &mut [KvCache] {
        &mut self.layers
    }
}

/// A model's decode step: tokens [B, 1] -> logits [B, 1, vocab] in f32.
type Decode<'a, S> =
    Box<dyn Fn(&Tensor<2, Int>, &mut S, &Method) -> Result<Tensor<3>, SparqError> + 'a>;

/// [`CausalLm::decode`] as a step that is recorded once and replayed, where device and model can; see [`CapturedStep`].
///
/// ```
/// use burn::tensor::{Device, FloatDType, Int, Tensor};
/// use sparq::{Method, SparqConfig};
/// use sparq_models::{CapturedLm, CausalLm, Llama, config::LlamaConfig, embedded};
///
/// let (device, checkpoint) = (Device::default(), embedded::checkpoint()?);
/// let model = Llama::load(&checkpoint, &LlamaConfig::from_checkpoint(&checkpoint)?, FloatDType::F32, &device)?;
/// let method = Method::from(SparqConfig::new(16, 128));
/// let mut cache = model.new_cache(1, 64, FloatDType::F32, &method)?;
/// model.prefill(Tensor::from_ints([[73, 110, 32]], &device), &mut cache, 1)?;
///
/// let mut decode = CapturedLm::new(&model, &mut cache, method);
/// let logits = decode.step(Tensor::<2, Int>::from_ints([[116]], &device))?;
/// assert_eq!(logits.dims(), [1, 1, 256]);
/// drop(decode);
/// assert_eq!(cache.len(), 4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct CapturedLm<'a> {
    step:
        CapturedStep<Tensor<2, Int>, &'a mut ModelCache, Tensor<3>, Decode<'a, &'a mut ModelCache>>,
}

impl<'a> CapturedLm<'a> {
    /// Steps of `model` behind what `cache` holds.
    pub fn new(model: &'a dyn CausalLm, cache: &'a mut ModelCache, method: Method) -> Self {
        let decode: Decode<'a, &'a mut ModelCache> =
            Box::new(|tokens, cache, method| model.decode(tokens.clone(), cache, method));
        Self {
            step: CapturedStep::new(cache, method, decode).with_capture(model.is_capturable()),
        }
    }

    /// Sets whether steps are recorded where device and model can; true at first.
    pub fn with_capture(self, capture: bool) -> Self {
        let capture = capture && self.step.captures();
        Self {
            step: self.step.with_capture(capture),
        }
    }

    /// Whether the next step would be a replay.
    pub fn is_captured(&self) -> bool {
        self.step.is_captured()
    }

    /// Reads one token per sequence, `tokens` [B, 1], and returns the logits [B, 1, vocab] in f32.
    ///
    /// # Errors
    /// As [`CausalLm::decode`] and [`CapturedStep::step`].
    pub fn step(&mut self, tokens: Tensor<2, Int>) -> Result<Tensor<3>, SparqError> {
        self.step.step(tokens)
    }

    /// The cache. After changing it the next steps are recorded anew.
    pub fn cache_mut(&mut self) -> &mut ModelCache {
        self.step.state_mut()
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

    /// An empty cache to prefill once for several methods, each of which then decodes on its own [`ModelCache::for_method`]. The arguments are
    /// [`CausalLm::new_cache`]'s.
    ///
    /// # Errors
    /// As [`CausalLm::new_cache`].
    fn new_shared_cache(
        &self,
        batch: usize,
        capacity: usize,
        dtype: FloatDType,
        methods: &[Method],
    ) -> Result<ModelCache, SparqError> {
        // Sketches are made from the keys when a method gets its own.
        let mut cache = self.new_cache(batch, capacity, dtype, &Method::DENSE)?;
        if methods.iter().any(Method::reads_attention) {
            for layer in &mut cache.layers {
                layer.record_attention()?;
            }
        }
        Ok(cache)
    }

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

    /// Whether [`CausalLm::decode`] can be recorded by a [`CapturedStep`](sparq::CapturedStep): it uploads nothing, reads nothing back and changes nothing but the
    /// cache; and it reads nothing that [can't be recorded](sparq::ops::can_be_captured). False unless the model says otherwise.
    fn is_capturable(&self) -> bool {
        false
    }
}
