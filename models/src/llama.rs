//! Llama (Touvron et al., "LLaMA", arXiv 2302.13971, and its successors up to Llama 3.x), from `LlamaForCausalLM` checkpoints.
//!
//! Fields have the names of the checkpoint's keys.

use burn::module::Module;
use burn::nn::{Embedding, Linear, RmsNorm};
use burn::tensor::{Device, FloatDType, Int, Tensor};
use sparq::{KvCache, Method, Rotary, RotaryConfig, SparqAttention, SparqError};

use crate::checkpoint::{Checkpoint, CheckpointError, Loader, check_device};
use crate::config::{HiddenAct, LlamaConfig};
use crate::weights::{RandomWeights, Weights};
use crate::{CausalLm, ModelCache};

/// A Llama: pre-norm blocks of rotary grouped-query attention and a gated MLP, with a language model head.
///
/// ```no_run
/// # use std::path::Path;
/// use burn::tensor::{Device, FloatDType, Int, Tensor};
/// use sparq::{Method, SparqConfig};
/// use sparq_models::{CausalLm, Llama, checkpoint::Checkpoint, config::LlamaConfig};
///
/// let (device, dtype) = (Device::default(), FloatDType::F32);
/// let checkpoint = Checkpoint::open(Path::new("checkpoints/llama"))?;
/// let model = Llama::load(&checkpoint, &LlamaConfig::from_checkpoint(&checkpoint)?, dtype, &device)?;
///
/// let method = Method::from(SparqConfig::new(32, 128));
/// let mut cache = model.new_cache(1, 1024, dtype, &method)?;
/// let prompt = Tensor::<2, Int>::from_ints([[1, 15043, 3186]], &device);
/// let next = model.prefill(prompt, &mut cache, 1)?.argmax(2).squeeze_dim::<2>(2);
/// let logits = model.decode(next, &mut cache, &method)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Module, Debug)]
pub struct Llama {
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    /// `None` where the embedding table is also the head: it is then held once and read transposed.
    lm_head: Option<Linear>,
    #[module(skip)]
    context_len: usize,
}

#[derive(Module, Debug)]
struct Layer {
    input_layernorm: RmsNorm,
    self_attn: SparqAttention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

#[derive(Module, Debug)]
struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    #[module(skip)]
    act: HiddenAct,
}

impl Llama {
    /// Builds the model from a checkpoint, its weights converted to `dtype` on `device`.
    ///
    /// # Errors
    /// When a tensor is missing, has another shape than `config` says or holds weights that are not finite, when the device does not
    /// compute in `dtype`, or when a file can't be read.
    ///
    /// # Panics
    /// If fields of `config` were set to values that reading a configuration refuses.
    pub fn load(
        checkpoint: &Checkpoint,
        config: &LlamaConfig,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let loader = Loader::new(checkpoint, device, dtype)?;
        let model = Self::build(&loader, config, device)?;
        if config.tie_word_embeddings {
            // Some checkpoints store the embedding table under both names.
            checkpoint.ignore("lm_head.weight");
        }
        loader.finish();
        Ok(model)
    }

    /// A model with random weights in `dtype` on `device`: to train, or to measure the shapes of models that are too large to pass around.
    ///
    /// Matrices are drawn from a normal distribution of standard deviation 0.02 (the family's `initializer_range`), biases are 0 and scales of norms 1.
    /// [`Device::seed`] makes the weights repeatable.
    ///
    /// ```
    /// use burn::tensor::{Device, FloatDType};
    /// use sparq_models::{CausalLm, Llama, checkpoint::CheckpointError, config::LlamaConfig, embedded};
    ///
    /// let mut config = LlamaConfig::from_checkpoint(&embedded::checkpoint()?)?;
    /// config.num_hidden_layers = 2;
    /// let model = Llama::init(&config, FloatDType::F32, &Device::default())?;
    /// assert_eq!(model.vocab_size(), config.vocab_size);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`CheckpointError::DeviceType`] where the device does not compute in `dtype`.
    ///
    /// # Panics
    /// As [`Llama::load`].
    pub fn init(
        config: &LlamaConfig,
        dtype: FloatDType,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        check_device(device, dtype)?;
        Self::build(&RandomWeights { device, dtype }, config, device)
    }

    fn build(
        weights: &impl Weights,
        config: &LlamaConfig,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        let rotary = RotaryConfig::new(config.head_dim)
            .with_theta(config.rope_theta)
            .with_scaling(config.rope_scaling.clone());
        let rotary = rotary
            .init(device)
            .expect("the configuration was checked when it was read");
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::build(weights, config, &format!("model.layers.{index}"), &rotary));
        Ok(Self {
            embed_tokens: weights.embedding("model.embed_tokens.weight", vocab, hidden)?,
            layers: layers.collect::<Result<_, _>>()?,
            norm: weights.rms_norm("model.norm.weight", hidden, config.rms_norm_eps)?,
            lm_head: match config.tie_word_embeddings {
                true => None,
                false => Some(weights.linear("lm_head", hidden, vocab, false)?),
            },
            context_len: config.max_position_embeddings,
        })
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
        let mut x = self.embed_tokens.forward(tokens);
        for (layer, cache) in self.layers.iter().zip(&mut cache.layers) {
            x = layer.forward(x, cache, method)?;
        }
        let x = self.norm.forward(x.slice_dim(1, len - last..len));
        let logits = match &self.lm_head {
            Some(head) => head.forward(x),
            // In two dimensions: with three, burn copies the transposed table, at 49152 x 576 for 137 ms a step where the product takes 10.
            None => {
                let [batch, len, hidden] = x.dims();
                let table = self.embed_tokens.weight.val();
                let logits = x.reshape([batch * len, hidden]).matmul(table.transpose());
                logits.reshape([batch, len, self.vocab_size()])
            }
        };
        Ok(logits.cast(FloatDType::F32))
    }
}

impl Layer {
    /// The layer under `prefix`.
    fn build(
        weights: &impl Weights,
        config: &LlamaConfig,
        prefix: &str,
        rotary: &Rotary,
    ) -> Result<Self, CheckpointError> {
        let (hidden, inner, d) = (
            config.hidden_size,
            config.intermediate_size,
            config.head_dim,
        );
        let (q, kv) = (
            config.num_attention_heads * d,
            config.num_key_value_heads * d,
        );
        let norm = |name| {
            weights.rms_norm(
                &format!("{prefix}.{name}.weight"),
                hidden,
                config.rms_norm_eps,
            )
        };
        let attention = |name, from, to| {
            weights.linear(
                &format!("{prefix}.self_attn.{name}"),
                from,
                to,
                config.attention_bias,
            )
        };
        let mlp = |name, from, to| {
            weights.linear(&format!("{prefix}.mlp.{name}"), from, to, config.mlp_bias)
        };
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            self_attn: SparqAttention {
                q_proj: attention("q_proj", hidden, q)?,
                k_proj: attention("k_proj", hidden, kv)?,
                v_proj: attention("v_proj", hidden, kv)?,
                o_proj: attention("o_proj", q, hidden)?,
                rotary: Some(rotary.clone()),
                n_heads: config.num_attention_heads,
                n_kv_heads: config.num_key_value_heads,
                head_dim: d,
            },
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: Mlp {
                gate_proj: mlp("gate_proj", hidden, inner)?,
                up_proj: mlp("up_proj", hidden, inner)?,
                down_proj: mlp("down_proj", inner, hidden)?,
                act: config.hidden_act,
            },
        })
    }

    /// x [B, T, D] -> [B, T, D].
    fn forward(
        &self,
        x: Tensor<3>,
        cache: &mut KvCache,
        method: Option<&Method>,
    ) -> Result<Tensor<3>, SparqError> {
        let normed = self.input_layernorm.forward(x.clone());
        let x = x + match method {
            None => self.self_attn.forward(normed, Some(cache))?,
            Some(method) => self.self_attn.decode(normed, cache, method)?,
        };
        let normed = self.post_attention_layernorm.forward(x.clone());
        Ok(x + self.mlp.forward(normed))
    }
}

impl Mlp {
    /// `down(act(gate(x)) * up(x))`, [B, T, D] -> [B, T, D].
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let gate = self.act.forward(self.gate_proj.forward(x.clone()));
        self.down_proj.forward(gate * self.up_proj.forward(x))
    }
}

/// A method that a cache was not made for is an error; so is a batch that differs from the cache's. Token ids are not looked at, because on a GPU that would
/// wait for the device at every step: an id beyond [`CausalLm::vocab_size`] panics on CPUs and reads some other row on GPUs. Check them before the upload.
impl CausalLm for Llama {
    fn vocab_size(&self) -> usize {
        self.embed_tokens.weight.dims()[0]
    }

    fn context_len(&self) -> usize {
        self.context_len
    }

    fn device(&self) -> Device {
        self.embed_tokens.weight.device()
    }

    fn new_cache(
        &self,
        batch: usize,
        capacity: usize,
        dtype: FloatDType,
        method: &Method,
    ) -> Result<ModelCache, SparqError> {
        let device = self.device();
        let cache = |layer: &Layer| {
            KvCache::new(
                &layer.self_attn.cache_config(batch, capacity, dtype, method),
                &device,
            )
        };
        Ok(ModelCache {
            layers: self.layers.iter().map(cache).collect::<Result<_, _>>()?,
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
        true
    }
}

fn lengths(what: &'static str, expected: String, found: usize) -> SparqError {
    SparqError::Value {
        what,
        expected,
        found: found.to_string(),
    }
}
