//! The configuration of a decoder: [`DecoderConfig`].

use std::path::Path;

use burn::tensor::FloatDType;
use serde_json::Value;
use sparq::RotaryConfig;

use super::{Keys, MlpKeys, QkvKeys};
use crate::checkpoint::{Checkpoint, Part, read_json_if_present};
use crate::config::{Architecture, ConfigError, Fields, HiddenAct};

/// Configuration of a [`Decoder`](super::Decoder), read from the `config.json` of any
/// [family](Architecture).
///
/// Fields that are entries of `config.json` have the same names.
///
/// A configuration read from a file is checked: sizes are positive, `num_attention_heads` is a
/// multiple of `num_key_value_heads`, RoPE rotates an even number of components, and no product
/// of sizes overflows.
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
    /// The width of the residual stream.
    pub hidden_size: usize,
    /// The width of the MLP. Experts have [their own](Experts::intermediate_size).
    pub intermediate_size: usize,
    /// The number of layers.
    pub num_hidden_layers: usize,
    /// The query heads of a layer.
    pub num_attention_heads: usize,
    /// The KV heads of a layer.
    pub num_key_value_heads: usize,
    /// The components of a head.
    pub head_dim: usize,
    /// The number of tokens in the vocabulary.
    pub vocab_size: usize,
    /// The context length the model was trained for, in positions.
    pub max_position_embeddings: usize,
    /// RoPE.
    pub rotary: RotaryConfig,
    /// RoPE of the layers with a sliding window, if it differs.
    pub local_rotary: Option<RotaryConfig>,
    /// Whether each layer has RoPE. A layer beyond the end of the list has.
    pub rope_layers: Vec<bool>,
    /// The norms of the residual stream.
    pub norm: NormKind,
    /// How attention and MLP add to the residual stream.
    pub residual: Residual,
    /// The factor of the outputs of attention and MLP, if any.
    pub residual_scale: Option<f64>,
    /// The extent of the norms of queries and keys, which exist if [`Keys::qk_norm`] names them.
    pub qk_norm: QkNorm,
    /// The factor of the queries, for models whose logits are not divided by sqrt(head_dim).
    pub query_scale: Option<f64>,
    /// The bound c of attention logits x, which become c tanh(x / c).
    pub attention_softcap: Option<f64>,
    /// Whether the query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// Whether the output projection of attention has a bias.
    pub o_bias: bool,
    /// Whether the layers of the MLP have a bias.
    pub mlp_bias: bool,
    /// The activation function of the MLP.
    pub hidden_act: HiddenAct,
    /// The mixture of experts in some or all layers, if any.
    pub experts: Option<Experts>,
    /// The factor that embeddings are multiplied by, if any.
    pub embed_scale: Option<f64>,
    /// The factor that logits of tokens are multiplied by, if any.
    pub logits_scale: Option<f64>,
    /// The bound of logits of tokens, as [`attention_softcap`](Self::attention_softcap).
    pub logits_softcap: Option<f64>,
    /// The sliding window of each layer, in positions. `None`, like an entry beyond the end of the
    /// list, means no window.
    pub windows: Vec<Option<usize>>,
    /// Whether the language model head is the embedding table.
    pub tie_word_embeddings: bool,
    /// The names of the weights, which also determine which weights exist.
    pub keys: Keys,
    /// The token that begins a text. `None` if the file names one outside the vocabulary.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text.
    pub eos_token_id: Vec<u32>,
    /// The token that pads a batch. `None` if the file names one outside the vocabulary.
    pub pad_token_id: Option<u32>,
    /// The type of the published weights (`dtype`, in older files `torch_dtype`).
    pub dtype: Option<FloatDType>,
}

/// The norms of a residual stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormKind {
    /// x / sqrt(mean(x²) + epsilon) * weight (Zhang and Sennrich, arXiv 1910.07467).
    Rms {
        /// Added to the mean square.
        epsilon: f64,
    },
    /// The same with 1 + weight. Loading adds the 1, in the type of the model.
    RmsPlusOne {
        /// Added to the mean square.
        epsilon: f64,
    },
    /// (x - mean(x)) / sqrt(var(x) + epsilon) * weight + bias (Ba et al., arXiv 1607.06450).
    Layer {
        /// Added to the variance.
        epsilon: f64,
    },
}

impl NormKind {
    /// Returns the number that loading adds to the weights.
    pub(crate) fn offset(self) -> f64 {
        match self {
            Self::RmsPlusOne { .. } => 1.0,
            Self::Rms { .. } | Self::Layer { .. } => 0.0,
        }
    }

    /// Returns the term added under the square root.
    pub fn epsilon(self) -> f64 {
        match self {
            Self::Rms { epsilon } | Self::RmsPlusOne { epsilon } | Self::Layer { epsilon } => {
                epsilon
            }
        }
    }
}

/// How the attention and the MLP of a layer add to the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// y = x + attention(norm(x)), then y + MLP(norm(y)).
    Serial,
    /// x + attention(norm(x)) + MLP(norm(x)).
    Parallel,
}

/// The extent of the norms of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// Each head by itself.
    Heads,
    /// All heads of a position together.
    Projections,
}

/// A mixture of experts: MLPs of which the router chooses a few for each position.
#[derive(Clone, Debug, PartialEq)]
pub struct Experts {
    /// The number of experts of a layer.
    pub count: usize,
    /// The number of experts that a position goes through.
    pub per_token: usize,
    /// The width of an expert.
    pub intermediate_size: usize,
    /// Whether the probabilities of the chosen experts are divided by their sum.
    pub renormalize: bool,
    /// The layers with experts. The others have one MLP.
    pub layers: Vec<bool>,
}

impl DecoderConfig {
    /// Reads the configuration of a checkpoint of any family.
    ///
    /// `eos_token_id` in `generation_config.json` takes precedence: chat models end a turn with
    /// another token than a text and name it only there.
    ///
    /// `tie_word_embeddings` is corrected by the weights.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json), and if `generation_config.json` exists but cannot be
    /// read, or the weights to compare cannot.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self, ConfigError> {
        let config = Self::from_json(checkpoint.config(), checkpoint.config_path());
        let mut config = config.map_err(|error| checkpoint.name_key(error))?;
        config.tie_as_stored(checkpoint)?;
        let Some(dir) = checkpoint.dir() else {
            return Ok(config);
        };
        let path = dir.join("generation_config.json");
        if let Some(json) = read_json_if_present(&path)? {
            let ids = Fields::new(&json, &path)?.token_ids("eos_token_id")?;
            if !ids.is_empty() {
                config.eos_token_id = ids;
            }
        }
        Ok(config)
    }

    /// Corrects an entry that ties the embeddings by the weights, as transformers does: a file with
    /// another output matrix than the table is not tied, and the one matrix of a tied model may
    /// have either name.
    fn tie_as_stored(&mut self, checkpoint: &Checkpoint) -> Result<(), ConfigError> {
        if !self.tie_word_embeddings {
            return Ok(());
        }
        let [embed, head] = [self.keys.embed, self.keys.head].map(|key| format!("{key}.weight"));
        self.tie_word_embeddings = checkpoint.ties(&embed, &head).map_err(Box::new)?;
        if !checkpoint.contains(&embed) && checkpoint.contains(&head) {
            self.keys.embed = self.keys.head;
        }
        Ok(())
    }

    /// Reads `config`, the content of the file `path`, which names its family.
    ///
    /// # Errors
    /// If the family is not supported, if an entry is missing, malformed or unsupported, or if
    /// entries contradict each other.
    pub fn from_json(config: &Value, path: &Path) -> Result<Self, ConfigError> {
        Architecture::detect(config, path)?.read(config, path)
    }

    /// Returns the sliding window of a layer, in positions.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.windows.get(layer).copied().flatten()
    }

    /// Returns RoPE of a layer, if it has any.
    pub fn rotary_of(&self, layer: usize) -> Option<&RotaryConfig> {
        if !self.rope_layers.get(layer).copied().unwrap_or(true) {
            return None;
        }
        let local = self.local_rotary.as_ref();
        let local = local.filter(|_| self.window(layer).is_some());
        Some(local.unwrap_or(&self.rotary))
    }

    /// Returns the experts of a layer, if it has any.
    pub fn experts_of(&self, layer: usize) -> Option<&Experts> {
        let has = |experts: &&Experts| experts.layers.get(layer).copied().unwrap_or(false);
        self.experts.as_ref().filter(has)
    }

    /// Returns the parts of the matrices that a checkpoint of this family may store fused.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let keys = &self.keys;
        let [q, kv] = [self.num_attention_heads, self.num_key_value_heads];
        let [q, kv] = [q, kv].map(|heads| heads * self.head_dim);
        let inner = self.intermediate_size;
        let mut fused = Vec::new();
        if let (Some(name), QkvKeys::Separate([of_q, of_k, of_v])) = (keys.fused_qkv, keys.qkv) {
            fused.push((name, vec![(of_q, q), (of_k, kv), (of_v, kv)]));
        }
        if let (Some(name), MlpKeys::Gated { gate, up, .. }) = (keys.fused_gate_up, keys.mlp) {
            fused.push((name, vec![(gate, inner), (up, inner)]));
        }
        let mut parts = Vec::new();
        for layer in 0..self.num_hidden_layers {
            for (whole, modules) in &fused {
                let mut first = 0;
                for (module, rows) in modules {
                    for parameter in ["weight", "bias"] {
                        let of = |name: &str| format!("{}.{layer}.{name}.{parameter}", keys.layers);
                        parts.push(Part {
                            name: of(module),
                            whole: of(whole),
                            rows: first..first + rows,
                        });
                    }
                    first += rows;
                }
            }
        }
        parts
    }
}
