//! The model: [`Decoder`].

use std::sync::Arc;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, FloatDType, Int, Tensor};
use sparq::ops::{BlockFormat, Projections, decode_linear, widen};
use sparq::{EmbeddingLayer, LinearLayer, Method, RotaryConfig, SparqError};

use super::DecoderConfig;
use super::layer::Layer;
use super::norm::Norm;
use super::pass::{LayerPass, Pass};
use crate::checkpoint::{Checkpoint, CheckpointError, Loader, check_device};
use crate::sharing::{Roles, Sharing};
use crate::weights::{RandomWeights, Weights};
use crate::{CausalLm, LayerSharing, ModelCache, SequenceStep};

/// A decoder-only transformer with a language model head.
///
/// ```no_run
/// # use std::path::Path;
/// use burn::tensor::{Device, FloatDType, Int, Tensor};
/// use sparq::{Method, SparqConfig};
/// use sparq_models::{CausalLm, Decoder, DecoderConfig, checkpoint::Checkpoint};
///
/// let (device, dtype) = (Device::default(), FloatDType::F32);
/// let checkpoint = Checkpoint::open(Path::new("checkpoints/llama"))?;
/// let config = DecoderConfig::from_checkpoint(&checkpoint)?;
/// let model = Decoder::load(&checkpoint, &config, dtype, &device)?;
///
/// let method = Method::from(SparqConfig::new(32, 128));
/// let mut cache = model.new_cache(1, 1024, dtype, &method)?;
/// let prompt = Tensor::<2, Int>::from_ints([[1, 15043, 3186]], &device);
/// let next = model.prefill(prompt, &mut cache, 1)?.argmax(2).squeeze_dim::<2>(2);
/// let logits = model.decode(next, &mut cache, &method)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Module, Debug)]
pub struct Decoder {
    embed: EmbeddingLayer,
    layers: Vec<Layer>,
    norm: Norm,
    /// `None` with tied embeddings: the embedding table [vocab, hidden] is the weight of the head.
    head: Option<LinearLayer>,
    #[module(skip)]
    embed_scale: Option<f64>,
    #[module(skip)]
    logits_scale: Option<f64>,
    #[module(skip)]
    logits_softcap: Option<f64>,
    #[module(skip)]
    context_len: usize,
    /// The number of first layers whose decode steps are dense with every method.
    #[module(skip)]
    dense_layers: usize,
    /// The plans of layers that share positions.
    #[module(skip)]
    sharing: Option<Arc<Sharing>>,
}

impl Decoder {
    /// Loads a checkpoint and converts its weights to `dtype` on `device`.
    ///
    /// # Errors
    /// If a tensor is missing, has another shape than `config` requires or holds values that are
    /// not finite, if the device does not compute in `dtype`, or if a file cannot be read.
    ///
    /// # Panics
    /// If `config` was changed to values that reading a configuration refuses.
    pub fn load(
        checkpoint: &Checkpoint,
        config: &DecoderConfig,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let loader = Loader::new(checkpoint, device, dtype)?.with_parts(config.parts());
        let model = Self::build(&loader, config, device)?;
        if checkpoint.has_another_head() {
            tracing::warn!(
                "{}: \"tie_word_embeddings\" is true, but {}.weight differs from {}.weight; \
                 both are used as they are stored",
                checkpoint.config_path().display(),
                config.keys.head,
                config.keys.embed,
            );
        }
        if config.tie_word_embeddings {
            // Some checkpoints store the embedding table under both names.
            checkpoint.ignore(&format!("{}.weight", config.keys.head));
        }
        for layer in 0..config.num_hidden_layers {
            for name in config.keys.constants {
                checkpoint.ignore(&format!("{}.{layer}.{name}", config.keys.layers));
            }
        }
        loader.finish();
        let Some(sharing) = checkpoint.sharing() else {
            return Ok(model);
        };
        let model = model.with_sharing(sharing.clone());
        model.map_err(|error| CheckpointError::Sharing {
            path: checkpoint.calibration_path(),
            error,
        })
    }

    /// Makes a model with random weights in `dtype` on `device`, for training or for timing.
    ///
    /// Matrices follow a normal distribution of standard deviation 0.02 (the families'
    /// `initializer_range`). Biases are 0 and the weights of norms scale by 1. [`Device::seed`]
    /// makes the weights reproducible.
    ///
    /// ```
    /// use burn::tensor::{Device, FloatDType};
    /// use sparq_models::{CausalLm, Decoder, DecoderConfig, checkpoint::CheckpointError, embedded};
    ///
    /// let mut config = DecoderConfig::from_checkpoint(&embedded::checkpoint()?)?;
    /// config.num_hidden_layers = 2;
    /// let model = Decoder::init(&config, FloatDType::F32, &Device::default())?;
    /// assert_eq!(model.vocab_size(), config.vocab_size);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`CheckpointError::DeviceType`] if the device does not compute in `dtype`.
    ///
    /// # Panics
    /// As [`Decoder::load`].
    pub fn init(
        config: &DecoderConfig,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        Self::init_with(config, dtype, None, device)
    }

    /// Makes a model as [`Decoder::init`] does, whose matrices are packed blocks of random weights:
    /// for timing. A matrix whose rows are no whole blocks is in `dtype`, as are the norms.
    ///
    /// # Errors
    /// [`CheckpointError::DeviceType`] if the device does not compute in `dtype`.
    ///
    /// # Panics
    /// As [`Decoder::load`].
    pub fn init_packed(
        config: &DecoderConfig,
        dtype: FloatDType,
        format: BlockFormat,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        Self::init_with(config, dtype, Some(format), device)
    }

    fn init_with(
        config: &DecoderConfig,
        dtype: FloatDType,
        blocks: Option<BlockFormat>,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        check_device(device, dtype)?;
        let weights = RandomWeights {
            device,
            dtype,
            blocks,
        };
        Self::build(&weights, config, device)
    }

    fn build(
        weights: &impl Weights,
        config: &DecoderConfig,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let (hidden, vocab, keys) = (config.hidden_size, config.vocab_size, &config.keys);
        // Layers with the same RoPE share one table of angles.
        let init = |rotary: &RotaryConfig| {
            let rotary = rotary.init(device);
            rotary.expect("a configuration that was read has valid RoPE parameters")
        };
        let (global, local) = (init(&config.rotary), config.local_rotary.as_ref().map(init));
        let layers = (0..config.num_hidden_layers).map(|index| {
            let rotary = config.rotary_of(index).map(|rotary| match &local {
                Some(local) if config.local_rotary.as_ref() == Some(rotary) => local,
                _ => &global,
            });
            Layer::build(weights, config, index, rotary)
        });
        Ok(Self {
            embed: weights.embedding(&format!("{}.weight", keys.embed), vocab, hidden)?,
            layers: layers.collect::<Result<_, _>>()?,
            norm: Norm::build(weights, config.norm, keys.norm, hidden)?,
            head: match config.tie_word_embeddings {
                true => None,
                false => Some(weights.linear(keys.head, hidden, vocab, false)?),
            },
            embed_scale: config.embed_scale,
            logits_scale: config.logits_scale,
            logits_softcap: config.logits_softcap,
            context_len: config.max_position_embeddings,
            dense_layers: 0,
            sharing: None,
        })
    }

    /// Makes the decode steps of the first `layers` layers dense with every method. The default is
    /// 0.
    ///
    /// Set it before making caches: the caches of these layers hold only what dense attention
    /// reads. These layers are no anchors and reuse no positions.
    pub fn with_dense_layers(self, layers: usize) -> Self {
        let measured = self.sharing.as_ref().map(|known| known.measured().clone());
        let device = self.device();
        let plans = |measured| Arc::new(Sharing::new(measured, layers, &device));
        Self {
            sharing: measured.map(plans),
            dense_layers: layers,
            ..self
        }
    }

    /// Lets layers share positions, as methods with [anchors](sparq::methods::Anchors) need.
    ///
    /// Set it before making caches. [`Decoder::load`] sets it for a converted model with a
    /// measurement.
    ///
    /// # Errors
    /// [`SparqError::Value`] if the measurement is not one of a model with these layers.
    pub fn with_sharing(self, measured: LayerSharing) -> Result<Self, SparqError> {
        let attention = |layer: &Layer| (layer.attention.window, layer.attention.n_kv_heads);
        let (windows, kv_heads): (Vec<_>, Vec<_>) = self.layers.iter().map(attention).unzip();
        let kv_heads = kv_heads.first().copied().unwrap_or(0);
        measured.check(&windows, kv_heads)?;
        let sharing = Sharing::new(measured, self.dense_layers, &self.device());
        Ok(Self {
            sharing: Some(Arc::new(sharing)),
            ..self
        })
    }

    /// Returns the method of layer `index` in a decode step with `method`.
    fn method_of<'a>(&self, index: usize, method: &'a Method) -> &'a Method {
        match index < self.dense_layers {
            true => &Method::DENSE,
            false => method,
        }
    }

    /// Maps tokens [B, T] to the logits [B, last, vocab] of the last positions, in f32.
    fn forward(
        &self,
        tokens: Tensor<2, Int>,
        mut pass: Pass<'_, '_>,
        last: usize,
    ) -> Result<Tensor<3>, SparqError> {
        let [_, len] = tokens.dims();
        if let Some(found) = pass.other_than(self.layers.len()) {
            let expected = format!("{} layers", self.layers.len());
            return Err(wrong_value("cache", expected, found));
        }
        if last == 0 || last > len {
            let expected = format!("1 to {len} (the number of tokens)");
            return Err(wrong_value("last", expected, last));
        }
        let mut selections = pass.selections()?;
        let mut x = self.embed.forward(tokens);
        if let Some(scale) = self.embed_scale {
            x = x * scale;
        }
        for (index, layer) in self.layers.iter().enumerate() {
            x = match &mut pass {
                Pass::Prompt(cache) => {
                    layer.forward(x, LayerPass::Prompt(&mut cache.layers[index]))
                }
                Pass::Step(cache, method) => {
                    let cache = &mut cache.layers[index];
                    let method = self.method_of(index, method);
                    let method = selections[0].before(index, cache, method);
                    layer.forward(x, LayerPass::Step(cache, &method))
                }
                Pass::Each(sequences) => {
                    let rows = sequences.iter_mut().zip(&selections);
                    let rows = rows.map(|(sequence, selections)| {
                        let cache = &mut sequence.cache.layers[index];
                        let method = self.method_of(index, &sequence.method);
                        let method = selections.before(index, cache, method);
                        (cache, method)
                    });
                    let mut rows: Vec<_> = rows.collect();
                    let rows = rows
                        .iter_mut()
                        .map(|(cache, method)| (&mut **cache, &*method));
                    layer.forward(x, LayerPass::Each(&mut rows.collect::<Vec<_>>()))
                }
            }?;
            pass.keep_selections(index, &mut selections);
        }
        let x = match last == len {
            true => x,
            false => x.slice_dim(1, len - last..len),
        };
        let [batch, last, hidden] = x.dims();
        let head = match &self.head {
            Some(head) => head.into(),
            None => (&self.embed).into(),
        };
        let x = x.reshape([batch * last, hidden]);
        let logits = decode_linear(x, (&self.norm).into(), Projections::One(head), None);
        let mut logits = widen(logits).reshape([batch, last, self.vocab_size()]);
        if let Some(scale) = self.logits_scale {
            logits = logits * scale;
        }
        Ok(match self.logits_softcap {
            Some(bound) => (logits / bound).tanh() * bound,
            None => logits,
        })
    }
}

/// A method or a batch size that the cache was not made for is an error.
///
/// Token ids are not checked, because on a GPU the check would wait for the device in every step.
/// An id outside the vocabulary panics on CPUs and reads an arbitrary embedding on GPUs, so check
/// ids before the upload.
impl CausalLm for Decoder {
    fn vocab_size(&self) -> usize {
        self.embed.dims()[0]
    }

    fn context_len(&self) -> usize {
        self.context_len
    }

    fn device(&self) -> Device {
        self.embed.device()
    }

    fn new_cache(
        &self,
        batch: usize,
        capacity: usize,
        dtype: FloatDType,
        method: &Method,
    ) -> Result<ModelCache, SparqError> {
        let device = self.device();
        let roles = Roles::of(self.sharing.as_ref(), self.layers.len(), method)?;
        let cache = |(index, layer): (usize, &Layer)| {
            let method = self.method_of(index, method);
            let method = match &roles {
                Some(roles) => &roles.cache_method(index, method),
                None => method,
            };
            let config = layer.attention.cache_config(batch, capacity, dtype, method);
            let mut cache = config.init(&device)?;
            if method.reads_attention() {
                cache.record_attention()?;
            }
            Ok(cache)
        };
        let layers = self.layers.iter().enumerate().map(cache);
        let layers = layers.collect::<Result<_, SparqError>>()?;
        Ok(ModelCache::new(layers).with_sharing(self.sharing.clone()))
    }

    fn prefill(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut ModelCache,
        last: usize,
    ) -> Result<Tensor<3>, SparqError> {
        self.forward(tokens, Pass::Prompt(cache), last)
    }

    fn decode(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut ModelCache,
        method: &Method,
    ) -> Result<Tensor<3>, SparqError> {
        self.forward(tokens, Pass::Step(cache, method), 1)
    }

    fn decode_each(
        &self,
        tokens: Tensor<2, Int>,
        sequences: &mut [SequenceStep<'_>],
    ) -> Result<Tensor<3>, SparqError> {
        self.forward(tokens, Pass::Each(sequences), 1)
    }

    fn weight_bytes(&self, _method: &Method) -> usize {
        let bytes = |weights: &dyn Fn(&mut WeightBytes)| {
            let mut count = WeightBytes(0);
            weights(&mut count);
            count.0
        };
        // Of an embedding table that is not also the head, a step reads one row.
        let table = bytes(&|count| self.embed.visit(count));
        let all = bytes(&|count| self.visit(count));
        all - if self.head.is_some() { table } else { 0 }
    }

    fn is_capturable(&self) -> bool {
        // One thread loads all weights, so one of them answers for all.
        let on_device = self.layers.iter().all(Layer::is_capturable);
        on_device && sparq::ops::can_be_captured(&self.norm.weight())
    }
}

/// Counts the bytes of the parameters it visits.
struct WeightBytes(usize);

impl ModuleVisitor for WeightBytes {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.val();
        self.0 += tensor.shape().num_elements() * tensor.dtype().size();
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        let tensor = param.val();
        self.0 += tensor.shape().num_elements() * tensor.dtype().size();
    }
}

fn wrong_value(what: &'static str, expected: String, found: usize) -> SparqError {
    SparqError::Value {
        what,
        expected,
        found: found.to_string(),
    }
}
