//! What sets one decoder apart from another: [`DecoderConfig`].

use std::path::Path;

use burn::tensor::FloatDType;
use serde_json::Value;
use sparq::RotaryConfig;

use super::Keys;
use crate::checkpoint::Checkpoint;
use crate::config::{ConfigError, HiddenAct, generation};
use crate::families::Architecture;

/// A decoder-only transformer, from the `config.json` of any [family](Architecture).
///
/// Fields that are entries of that file have its names. As read from a file, sizes are positive, `num_attention_heads` is a multiple of `num_key_value_heads`,
/// an even number of a head's components turns, and no product of sizes that a model allocates overflows.
///
/// ```
/// use sparq_models::{DecoderConfig, embedded};
///
/// let config = DecoderConfig::from_checkpoint(&embedded::checkpoint()?)?;
/// assert_eq!((config.head_dim, config.window(0)), (64, None));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
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
    /// Positions the model was trained for.
    pub max_position_embeddings: usize,
    /// The rotary embedding.
    pub rotary: RotaryConfig,
    /// The norms of the residual stream.
    pub norm: NormKind,
    /// How a block adds to the residual stream.
    pub residual: Residual,
    /// Whether the projections of queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Whether the output projection of attention has a bias.
    pub o_bias: bool,
    /// Whether the layers of the MLP have a bias.
    pub mlp_bias: bool,
    /// Activation function of the MLP.
    pub hidden_act: HiddenAct,
    /// What embeddings are multiplied by; nothing if `None`.
    pub embed_scale: Option<f64>,
    /// The sliding window of each layer: how many of the last positions it attends to, all if `None`. Layers beyond the list have none.
    pub windows: Vec<Option<usize>>,
    /// Whether the output projection is the embedding table.
    pub tie_word_embeddings: bool,
    /// The names of the weights, from which follows which weights there are.
    pub keys: Keys,
    /// The token in front of a text; none if it is beyond the vocabulary.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text.
    pub eos_token_id: Vec<u32>,
    /// The token that fills up a batch; none if it is beyond the vocabulary.
    pub pad_token_id: Option<u32>,
    /// The type the weights were published in (`dtype`, formerly `torch_dtype`).
    pub dtype: Option<FloatDType>,
}

/// The norms of a residual stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormKind {
    /// x / sqrt(mean(x²) + epsilon) · weight (Zhang and Sennrich, arXiv 1910.07467).
    Rms {
        /// Added to the mean square.
        epsilon: f64,
    },
    /// The same with 1 + weight, which is added up in the type of the model when it is loaded.
    RmsPlusOne {
        /// Added to the mean square.
        epsilon: f64,
    },
    /// (x - mean(x)) / sqrt(var(x) + epsilon) · weight + bias (Ba et al., arXiv 1607.06450).
    Layer {
        /// Added to the variance.
        epsilon: f64,
    },
}

impl NormKind {
    /// What is added under the root.
    pub fn epsilon(self) -> f64 {
        match self {
            Self::Rms { epsilon } | Self::RmsPlusOne { epsilon } | Self::Layer { epsilon } => {
                epsilon
            }
        }
    }
}

/// How a block adds to the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// x + attention(norm(x)), and to that its own MLP(norm(·)).
    Serial,
    /// x + attention(norm(x)) + MLP(norm(x)).
    Parallel,
}

impl DecoderConfig {
    /// The configuration of an open checkpoint of any family; `generation_config.json` adds to `eos_token_id`.
    ///
    /// # Errors
    ///
    /// As [`from_json`](Self::from_json), and if `generation_config.json` is there but cannot be read.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self, ConfigError> {
        let mut config = Self::from_json(checkpoint.config(), checkpoint.config_path())?;
        generation::add_eos_token_ids(checkpoint, &mut config.eos_token_id)?;
        Ok(config)
    }

    /// The configuration in `config`, the content of the file `path`, which names its family.
    ///
    /// # Errors
    ///
    /// If the family is not supported, an entry is missing or not of its kind, entries contradict each other, or the model needs something that is not
    /// supported.
    pub fn from_json(config: &Value, path: &Path) -> Result<Self, ConfigError> {
        Architecture::detect(config, path)?.read(config, path)
    }

    /// The sliding window of a layer.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.windows.get(layer).copied().flatten()
    }
}

/// A copy, for functions that take the configuration of any family.
impl From<&DecoderConfig> for DecoderConfig {
    fn from(config: &DecoderConfig) -> Self {
        config.clone()
    }
}
