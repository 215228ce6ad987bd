//! The model of every family: [`Decoder`].

use burn::module::Module;
use burn::nn::{Embedding, Linear};
use burn::tensor::{Device, FloatDType, Int, Tensor};
use sparq::{Method, SparqError};

use super::DecoderConfig;
use super::layer::Layer;
use super::norm::Norm;
use crate::checkpoint::{Checkpoint, CheckpointError, Loader, check_device};
use crate::weights::{RandomWeights, Weights};
use crate::{CausalLm, ModelCache};

/// A decoder-only transformer with a language model head.
///
/// ```no_run
/// # use std::path::Path;
/// use burn::tensor::{Device, FloatDType, Int, Tensor};
/// use sparq::{Method, SparqConfig};
/// use sparq_models::{CausalLm, Decoder, DecoderConfig, checkpoint::Checkpoint};
///
/// let (device, dtype) = (Device::default(), FloatDType::F32);
/// let checkpoint = Checkpoint::open(Path::new("checkpoints/any"))?;
/// let model = Decoder::load(&checkpoint, &DecoderConfig::from_checkpoint(&checkpoint)?, dtype, &device)?;
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
    embed: Embedding,
    layers: Vec<Layer>,
    norm: Norm,
    /// `None` where the embedding table is also the head: it is then held once and read transposed.
    head: Option<Linear>,
    #[module(skip)]
    embed_scale: Option<f64>,
    #[module(skip)]
    context_len: usize,
    /// How many of the first layers attend densely in a step, whatever the method.
    #[module(skip)]
    dense_layers: usize,
}

impl Decoder {
    /// Builds the model from a checkpoint, its weights converted to `dtype` on `device`. `config` is a [`DecoderConfig`], or the configuration of a family.
    ///
    /// # Errors
    /// When a tensor is missing, has another shape than `config` says or holds weights that are not finite, when the device does not
    /// compute in `dtype`, or when a file can't be read.
    ///
    /// # Panics
    /// If fields of `config` were set to values that reading a configuration refuses.
    pub fn load(
        checkpoint: &Checkpoint,
        config: impl Into<DecoderConfig>,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let config = config.into();
        let loader = Loader::new(checkpoint, device, dtype)?;
        let model = Self::build(&loader, &config, device)?;
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
        Ok(model)
    }

    /// A model with random weights in `dtype` on `device`: to train, or to measure the shapes of models that are too large to pass around.
    ///
    /// Matrices are drawn from a normal distribution of standard deviation 0.02 (the families' `initializer_range`), biases are 0 and scales of norms 1.
    /// [`Device::seed`] makes the weights repeatable.
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
    /// [`CheckpointError::DeviceType`] where the device does not compute in `dtype`.
    ///
    /// # Panics
    /// As [`Decoder::load`].
    pub fn init(
        config: impl Into<DecoderConfig>,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        check_device(device, dtype)?;
        Self::build(&RandomWeights { device, dtype }, &config.into(), device)
    }

    fn build(
        weights: &impl Weights,
        config: &DecoderConfig,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let (hidden, vocab, keys) = (config.hidden_size, config.vocab_size, &config.keys);
        // One table of angles for all layers.
        let rotary = config.rotary.init(device);
        let rotary = rotary.expect("the configuration was checked when it was read");
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::build(weights, config, index, &rotary));
        Ok(Self {
            embed: weights.embedding(&format!("{}.weight", keys.embed), vocab, hidden)?,
            layers: layers.collect::<Result<_, _>>()?,
            norm: Norm::build(weights, config.norm, keys.norm, hidden)?,
            head: match config.tie_word_embeddings {
                true => None,
                false => Some(weights.linear(keys.head, hidden, vocab, false)?),
            },
            embed_scale: config.embed_scale,
            context_len: config.max_position_embeddings,
            dense_layers: 0,
        })
    }

    /// Lets the first `layers` attend densely in every step, whatever its method; 0 at first.
    ///
    /// Their caches hold what dense attention reads, so set it before they are made.
    pub fn with_dense_layers(self, layers: usize) -> Self {
        Self {
            dense_layers: layers,
            ..self
        }
    }

    /// The method of layer `index` in a step of `method`.
    fn method_of<'a>(&self, index: usize, method: &'a Method) -> &'a Method {
        match index < self.dense_layers {
            true => &Method::DENSE,
            false => method,
        }
    }

    /// tokens [B, T] -> logits [B, last, vocab] of the last positions, in f32; a step where there is a `method`, else a prefill.
    fn forward(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut ModelCache,
        method: Option<&Method>,
        last: usize,
    ) -> Result<Tensor<3>, SparqError> {
        let [_, len] = tokens.dims();
        if cache.layers.len() != self.layers.len() {
            return Err(lengths(
                "cache",
                format!("{} layers", self.layers.len()),
                cache.layers.len(),
            ));
        }
        if last == 0 || last > len {
            return Err(lengths(
                "last",
                format!("1 to {len} (the tokens given)"),
                last,
            ));
        }
        let mut x = self.embed.forward(tokens);
        if let Some(scale) = self.embed_scale {
            x = x * scale;
        }
        for (index, (layer, cache)) in self.layers.iter().zip(&mut cache.layers).enumerate() {
            let method = method.map(|method| self.method_of(index, method));
            x = layer.forward(x, cache, method)?;
        }
        let x = self.norm.forward(x.slice_dim(1, len - last..len));
        let logits = match &self.head {
            Some(head) => head.forward(x),
            // In two dimensions: with three, burn copies the transposed table, at 49152 x 576 for 137 ms a step where the product takes 10.
            None => {
                let [batch, len, hidden] = x.dims();
                let table = self.embed.weight.val();
                let logits = x.reshape([batch * len, hidden]).matmul(table.transpose());
                logits.reshape([batch, len, self.vocab_size()])
            }
        };
        Ok(logits.cast(FloatDType::F32))
    }
}

/// A method that a cache was not made for is an error; so is a batch that differs from the cache's. Token ids are not looked at, because on a GPU that would
/// wait for the device at every step: an id beyond [`CausalLm::vocab_size`] panics on CPUs and reads some other row on GPUs. Check them before the upload.
impl CausalLm for Decoder {
    fn vocab_size(&self) -> usize {
        self.embed.weight.dims()[0]
    }

    fn context_len(&self) -> usize {
        self.context_len
    }

    fn device(&self) -> Device {
        self.embed.weight.device()
    }

    fn new_cache(
        &self,
        batch: usize,
        capacity: usize,
        dtype: FloatDType,
        method: &Method,
    ) -> Result<ModelCache, SparqError> {
        let device = self.device();
        let cache = |(index, layer): (usize, &Layer)| {
            let method = self.method_of(index, method);
            let config = layer.attention.cache_config(batch, capacity, dtype, method);
            let mut cache = config.init(&device)?;
            if method.reads_attention() {
                cache.record_attention()?;
            }
            Ok(cache)
        };
        let layers = self.layers.iter().enumerate().map(cache);
        Ok(ModelCache {
            layers: layers.collect::<Result<_, SparqError>>()?,
        })
    }

    fn prefill(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut ModelCache,
        last: usize,
    ) -> Result<Tensor<3>, SparqError> {
        self.forward(tokens, cache, None, last)
    }

    fn decode(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut ModelCache,
        method: &Method,
    ) -> Result<Tensor<3>, SparqError> {
        self.forward(tokens, cache, Some(method), 1)
    }

    fn is_capturable(&self) -> bool {
        // All weights are loaded by one thread.
        sparq::ops::can_be_captured(&self.embed.weight.val())
    }
}

fn lengths(what: &'static str, expected: String, found: usize) -> SparqError {
    SparqError::Value {
        what,
        expected,
        found: found.to_string(),
    }
}
