//! The interface of a language model: [`CausalLm`], its [`ModelCache`] and [`CapturedLm`].

use std::sync::Arc;

use burn::tensor::{Device, FloatDType, Int, Tensor};
use sparq::cost::CacheMemory;
use sparq::{CacheMark, CapturedStep, KvCache, Method, SparqError};

use crate::sharing::{Roles, Sharing};

/// A decoder-only language model.
///
/// Tokens are [B, T] and logits [B, T, vocab] in f32.
pub trait CausalLm: Send + Sync {
    /// Returns the size of the vocabulary, the last dimension of logits.
    fn vocab_size(&self) -> usize;

    /// Returns the context length that the model was trained for (`max_position_embeddings`).
    fn context_len(&self) -> usize;

    /// Returns the device of the weights.
    fn device(&self) -> Device;

    /// Makes an empty cache for `batch` sequences, `capacity` positions and one method.
    ///
    /// The capacity doubles whenever it is exceeded.
    ///
    /// # Errors
    /// If the device does not support `dtype`, if a size is 0, or if the method has
    /// [anchors](sparq::methods::Anchors) for which the model has no plan.
    fn new_cache(
        &self,
        batch: usize,
        capacity: usize,
        dtype: FloatDType,
        method: &Method,
    ) -> Result<ModelCache, SparqError>;

    /// Makes an empty cache that is prefilled once for several methods. Each method then decodes
    /// with its own [`ModelCache::for_method`].
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
        // Without a sketch: `for_method` makes one from the keys.
        let mut cache = self.new_cache(batch, capacity, dtype, &Method::DENSE)?;
        if methods.iter().any(Method::reads_attention) {
            for layer in &mut cache.layers {
                layer.record_attention()?;
            }
        }
        Ok(cache)
    }

    /// Appends `tokens` [B, T] to the cache with dense causal attention. Returns the logits
    /// [B, last, vocab] of the last `last` positions.
    ///
    /// # Errors
    /// If the batch size is not that of the cache, or if `last` is larger than T.
    fn prefill(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut ModelCache,
        last: usize,
    ) -> Result<Tensor<3>, SparqError>;

    /// Appends one token per sequence, `tokens` [B, 1], and attends with `method`. Returns the
    /// logits [B, 1, vocab].
    ///
    /// # Errors
    /// As [`CausalLm::prefill`], and if the cache lacks state that `method` reads.
    fn decode(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut ModelCache,
        method: &Method,
    ) -> Result<Tensor<3>, SparqError>;

    /// Returns the bytes of weights that a decode step with `method` reads, 0 if unknown. The
    /// default is 0.
    fn weight_bytes(&self, method: &Method) -> usize {
        let _ = method;
        0
    }

    /// Appends one token to each of B sequences with a cache each, `tokens` [B, 1]. Returns the
    /// logits [B, 1, vocab].
    ///
    /// Sequences of different lengths and methods share the reading of the weights. The default
    /// takes a step after the other.
    ///
    /// # Errors
    /// As [`CausalLm::decode`], and if there is not one cache of one sequence per token. Some
    /// caches may have grown then: truncate them.
    fn decode_each(
        &self,
        tokens: Tensor<2, Int>,
        sequences: &mut [SequenceStep<'_>],
    ) -> Result<Tensor<3>, SparqError> {
        if tokens.dims() != [sequences.len(), 1] {
            return Err(SparqError::Shape {
                what: "tokens [sequences, 1]",
                expected: vec![sequences.len(), 1],
                found: tokens.dims().to_vec(),
            });
        }
        let step = |(row, sequence): (usize, &mut SequenceStep<'_>)| {
            let token = tokens.clone().slice_dim(0, row..row + 1);
            self.decode(token, sequence.cache, &sequence.method)
        };
        let rows = sequences.iter_mut().enumerate().map(step);
        Ok(Tensor::cat(rows.collect::<Result<Vec<_>, _>>()?, 0))
    }

    /// Returns whether [`CausalLm::decode`] can be captured by a [`CapturedStep`]. The default is
    /// false.
    ///
    /// Such a step uploads nothing, downloads nothing, changes only the cache and reads only
    /// tensors that a capture [may read](sparq::ops::can_be_captured).
    fn is_capturable(&self) -> bool {
        false
    }
}

/// A sequence in a decode step of several; see [`CausalLm::decode_each`].
#[derive(Debug)]
pub struct SequenceStep<'a> {
    /// Its cache, which holds this sequence alone.
    pub cache: &'a mut ModelCache,
    /// Its method.
    pub method: Method,
}

/// The caches of a model, one per layer, with the same positions in each.
#[derive(Clone, Debug, Default)]
pub struct ModelCache {
    /// The cache of each layer.
    pub layers: Vec<KvCache>,
    /// The plans of the model that the cache is for, if layers can share positions.
    sharing: Option<Arc<Sharing>>,
}

impl ModelCache {
    /// Combines the caches of the layers of a model.
    pub fn new(layers: Vec<KvCache>) -> Self {
        let sharing = None;
        Self { layers, sharing }
    }

    /// Sets the plans of the model.
    pub(crate) fn with_sharing(self, sharing: Option<Arc<Sharing>>) -> Self {
        Self { sharing, ..self }
    }

    /// Returns the roles of the layers in steps with a method; see [`Roles::of`].
    pub(crate) fn roles(&self, method: &Method) -> Result<Option<Arc<Roles>>, SparqError> {
        Roles::of(self.sharing.as_ref(), self.layers.len(), method)
    }

    /// Returns the positions of the longest sequence, left padding included.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, KvCache::len)
    }

    /// Returns whether the cache holds no positions.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Removes all but the first `len` positions.
    pub fn truncate(&mut self, len: usize) {
        for layer in &mut self.layers {
            layer.truncate(len);
        }
    }

    /// Removes all positions. The memory stays allocated.
    pub fn clear(&mut self) {
        for layer in &mut self.layers {
            layer.clear();
        }
    }

    /// Marks the current lengths, for [`ModelCache::roll_back`].
    pub fn mark(&self) -> ModelMark {
        ModelMark(self.layers.iter().map(KvCache::mark).collect())
    }

    /// Takes back the appends since a mark, except the first `kept[b]` positions of sequence b. The
    /// mark is then at the new lengths. See [`KvCache::roll_back`].
    ///
    /// # Errors
    /// As [`KvCache::roll_back`].
    pub fn roll_back(&mut self, mark: &mut ModelMark, kept: &[usize]) -> Result<(), SparqError> {
        KvCache::roll_back_all(&mut self.layers, &mut mark.0, kept)
    }

    /// Makes a sequence idle. See [`KvCache::set_idle`].
    ///
    /// # Errors
    /// As [`KvCache::set_idle`].
    pub fn set_idle(&mut self, sequence: usize) -> Result<(), SparqError> {
        let mut layers = self.layers.iter_mut();
        layers.try_for_each(|layer| layer.set_idle(sequence))
    }

    /// Replaces a sequence by the only one of another cache. See [`KvCache::write_sequence`].
    ///
    /// # Errors
    /// As [`KvCache::write_sequence`], and if the number of layers differs. Some layers may have
    /// been written then: make the sequence idle.
    pub fn write_sequence(&mut self, sequence: usize, from: &ModelCache) -> Result<(), SparqError> {
        let (expected, found) = (self.layers.len(), from.layers.len());
        if expected != found {
            return Err(SparqError::Value {
                what: "layers of a cache",
                expected: expected.to_string(),
                found: found.to_string(),
            });
        }
        let mut layers = std::iter::zip(&mut self.layers, &from.layers);
        layers.try_for_each(|(layer, from)| layer.write_sequence(sequence, from))
    }

    /// Returns a cache of some of the sequences. See [`KvCache::select`].
    ///
    /// # Errors
    /// As [`KvCache::select`].
    pub fn select(&self, order: &[Option<usize>], capacity: usize) -> Result<Self, SparqError> {
        let layers = self.layers.iter();
        let layers = layers.map(|layer| layer.select(order, capacity));
        let layers = layers.collect::<Result<_, _>>()?;
        Ok(Self::new(layers).with_sharing(self.sharing.clone()))
    }

    /// As [`ModelCache::select`], in place of this cache: memory holds at most one layer twice.
    ///
    /// # Errors
    /// As [`KvCache::select`]. Some layers may have been replaced then, and the cache is of no use.
    pub fn rearrange(
        &mut self,
        order: &[Option<usize>],
        capacity: usize,
    ) -> Result<(), SparqError> {
        let mut layers = self.layers.iter_mut();
        layers.try_for_each(|layer| {
            *layer = layer.select(order, capacity)?;
            // A GPU's allocator would keep the old buffers for others of their size.
            layer.tensors().v_sum.device().memory_cleanup();
            Ok(())
        })
    }

    /// Sets the ranges and codes of the key sketches, if they are due. Call it after the last
    /// prefill of a prompt; see [`KvCache::refresh_sketch`].
    pub fn finish_prompt(&mut self) {
        for layer in &mut self.layers {
            layer.refresh_sketch();
        }
    }

    /// Returns a cache with the same positions and the state that `method` reads. See
    /// [`KvCache::for_method`].
    ///
    /// # Errors
    /// As [`KvCache::for_method`], and as [`CausalLm::new_cache`] for the anchors of the method.
    pub fn for_method(&self, method: &Method) -> Result<Self, SparqError> {
        let roles = self.roles(method)?;
        let copy = |(index, layer): (usize, &KvCache)| match &roles {
            Some(roles) => layer.for_method(&roles.cache_method(index, method)),
            None => layer.for_method(method),
        };
        let layers = self.layers.iter().enumerate().map(copy);
        Ok(Self {
            layers: layers.collect::<Result<_, _>>()?,
            sharing: self.sharing.clone(),
        })
    }

    /// Returns the bytes that all layers have allocated.
    pub fn memory(&self) -> CacheMemory {
        self.layers.iter().map(KvCache::memory).sum()
    }
}

/// The lengths of a [`ModelCache`] to roll back to.
#[derive(Debug)]
pub struct ModelMark(Vec<CacheMark>);

/// Gives a [`CapturedStep`] access to the caches.
impl AsMut<[KvCache]> for ModelCache {
    fn as_mut(&mut self) -> &mut [KvCache] {
        &mut self.layers
    }
}

/// [`CausalLm::decode`], captured once and replayed if device and model support it. See
/// [`CapturedStep`].
///
/// ```
/// use burn::tensor::{Device, FloatDType, Int, Tensor};
/// use sparq::{Method, SparqConfig};
/// use sparq_models::{CapturedLm, CausalLm, Decoder, DecoderConfig, embedded};
///
/// let (device, checkpoint) = (Device::default(), embedded::checkpoint()?);
/// let config = DecoderConfig::from_checkpoint(&checkpoint)?;
/// let model = Decoder::load(&checkpoint, &config, FloatDType::F32, &device)?;
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

/// A decode step, or a prefill of a few tokens: tokens [B, T] to logits [B, T, vocab].
type Decode<'a, S> =
    Box<dyn Fn(&Tensor<2, Int>, &mut S, &Method) -> Result<Tensor<3>, SparqError> + 'a>;

impl<'a> CapturedLm<'a> {
    /// Makes the decode step of `model` on `cache` with `method`.
    pub fn new(model: &'a dyn CausalLm, cache: &'a mut ModelCache, method: Method) -> Self {
        let decode: Decode<'a, &'a mut ModelCache> =
            Box::new(|tokens, cache, method| match tokens.dims()[1] {
                1 => model.decode(tokens.clone(), cache, method),
                len => model.prefill(tokens.clone(), cache, len),
            });
        Self {
            step: CapturedStep::new(cache, method, decode).with_capture(model.is_capturable()),
        }
    }

    /// Sets whether steps are captured if device and model support it. The default is true.
    pub fn with_capture(self, capture: bool) -> Self {
        let capture = capture && self.step.captures();
        Self {
            step: self.step.with_capture(capture),
        }
    }

    /// Returns whether the next step is a replay.
    pub fn is_captured(&self) -> bool {
        self.step.is_captured()
    }

    /// Appends one token per sequence, `tokens` [B, 1], and returns the logits [B, 1, vocab].
    ///
    /// # Errors
    /// As [`CausalLm::decode`] and [`CapturedStep::step`].
    pub fn step(&mut self, tokens: Tensor<2, Int>) -> Result<Tensor<3>, SparqError> {
        self.step.step(tokens)
    }

    /// Appends a few tokens to every sequence, `tokens` [B, T], with dense attention. Returns the
    /// logits [B, T, vocab]. Passes of each T are captured like steps.
    ///
    /// # Errors
    /// As [`CausalLm::prefill`] and [`CapturedStep::step`].
    pub fn prefill(&mut self, tokens: Tensor<2, Int>) -> Result<Tensor<3>, SparqError> {
        let [_, len] = tokens.dims();
        let method = self.step.method();
        self.step.set_method(Method::DENSE);
        let logits = self.step.step_by(tokens, len);
        self.step.set_method(method);
        logits
    }

    /// Sets the method of the next steps. See [`CapturedStep::set_method`].
    pub fn set_method(&mut self, method: Method) {
        self.step.set_method(method);
    }

    /// Returns the cache, for changes in place. See [`CapturedStep::caches_mut`].
    pub fn caches_mut(&mut self) -> &mut ModelCache {
        self.step.caches_mut()
    }

    /// Returns the cache. The next steps are captured anew, because the caller may change it.
    pub fn cache_mut(&mut self) -> &mut ModelCache {
        self.step.state_mut()
    }
}
