//! Llama (Touvron et al., "LLaMA", arXiv 2302.13971, and its successors up to Llama 3.x): `LlamaForCausalLM`.

use std::path::Path;

use burn::tensor::FloatDType;
use serde_json::Value;
use sparq::RotaryConfig;
use sparq::ops::RotaryScaling;

use super::{Architecture, Family};
use crate::checkpoint::Checkpoint;
use crate::config::{ConfigError, Defaults, Fields, HiddenAct, generation, read_base};
use crate::decoder::{Decoder, DecoderConfig, Keys, NormKind, Residual};

pub(super) const FAMILY: Family = Family {
    architecture: "LlamaForCausalLM",
    model_type: "llama",
    read,
};

/// Pre-norm blocks of rotary grouped-query attention and a gated MLP, with RMS norms.
fn read(fields: Fields<'_>) -> Result<DecoderConfig, ConfigError> {
    let attention_bias = fields.switch("attention_bias")?.unwrap_or(false);
    Ok(DecoderConfig {
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        mlp_bias: fields.switch("mlp_bias")?.unwrap_or(false),
        ..read_base(fields, &Defaults::LLAMA)?
    })
}

/// A [`Decoder`] that a [`LlamaConfig`] describes.
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
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type Llama = Decoder;

/// The `config.json` of a `LlamaForCausalLM`, with its defaults filled in.
///
/// Sizes are positive, `num_attention_heads` is a multiple of `num_key_value_heads`, `head_dim` is even, and no product of sizes that a
/// model allocates overflows.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads of each layer.
    pub num_attention_heads: usize,
    /// Key-value heads of each layer.
    pub num_key_value_heads: usize,
    /// Components of each head.
    pub head_dim: usize,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Added to the mean square in the norms.
    pub rms_norm_eps: f64,
    /// Positions the model was trained for.
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies are scaled to reach beyond the context of the first training.
    pub rope_scaling: RotaryScaling,
    /// Whether the output projection is the embedding table.
    pub tie_word_embeddings: bool,
    /// Whether the projections of attention have a bias.
    pub attention_bias: bool,
    /// Whether the projections of the MLP have a bias.
    pub mlp_bias: bool,
    /// Activation function of the MLP.
    pub hidden_act: HiddenAct,
    /// The token in front of a text; none if it is beyond the vocabulary.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text.
    pub eos_token_id: Vec<u32>,
    /// The token that fills up a batch; none if it is beyond the vocabulary.
    pub pad_token_id: Option<u32>,
    /// The type the weights were published in (`dtype`, formerly `torch_dtype`).
    pub dtype: Option<FloatDType>,
}

impl LlamaConfig {
    /// The configuration of an open checkpoint; `generation_config.json` adds to `eos_token_id`.
    ///
    /// # Errors
    ///
    /// As [`from_json`](Self::from_json), and if `generation_config.json` is there but cannot be read.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self, ConfigError> {
        let mut config = Self::from_json(checkpoint.config(), checkpoint.config_path())?;
        generation::add_eos_token_ids(checkpoint, &mut config.eos_token_id)?;
        Ok(config)
    }

    /// The configuration in `config`, the content of the file `path`.
    ///
    /// # Errors
    ///
    /// If an entry is missing or not of its kind, if entries contradict each other, or if the model needs something that is not supported.
    pub fn from_json(config: &Value, path: &Path) -> Result<Self, ConfigError> {
        let config = Architecture::Llama.read(config, path)?;
        Ok(Self {
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            num_hidden_layers: config.num_hidden_layers,
            num_attention_heads: config.num_attention_heads,
            num_key_value_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            vocab_size: config.vocab_size,
            rms_norm_eps: config.norm.epsilon(),
            max_position_embeddings: config.max_position_embeddings,
            rope_theta: config.rotary.theta,
            rope_scaling: config.rotary.scaling,
            tie_word_embeddings: config.tie_word_embeddings,
            attention_bias: config.qkv_bias,
            mlp_bias: config.mlp_bias,
            hidden_act: config.hidden_act,
            bos_token_id: config.bos_token_id,
            eos_token_id: config.eos_token_id,
            pad_token_id: config.pad_token_id,
            dtype: config.dtype,
        })
    }
}

impl From<&LlamaConfig> for DecoderConfig {
    fn from(config: &LlamaConfig) -> Self {
        Self {
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            num_hidden_layers: config.num_hidden_layers,
            num_attention_heads: config.num_attention_heads,
            num_key_value_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            vocab_size: config.vocab_size,
            max_position_embeddings: config.max_position_embeddings,
            rotary: RotaryConfig::new(config.head_dim)
                .with_theta(config.rope_theta)
                .with_scaling(config.rope_scaling.clone()),
            norm: NormKind::Rms {
                epsilon: config.rms_norm_eps,
            },
            residual: Residual::Serial,
            qkv_bias: config.attention_bias,
            o_bias: config.attention_bias,
            mlp_bias: config.mlp_bias,
            hidden_act: config.hidden_act,
            embed_scale: None,
            windows: Vec::new(),
            tie_word_embeddings: config.tie_word_embeddings,
            keys: Keys::LLAMA,
            bos_token_id: config.bos_token_id,
            eos_token_id: config.eos_token_id.clone(),
            pad_token_id: config.pad_token_id,
            dtype: config.dtype,
        }
    }
}
