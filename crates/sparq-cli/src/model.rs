//! From the argument `--model` to a model, and what all commands do with one.

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use burn::tensor::{DType, Device, FloatDType};
use serde::Serialize;
use sparq::cost::CacheShape;
use sparq::{SparqConfig, Transfers};
pub use sparq_eval::steps::{PIECE, greedy_step, host, read, tensor};
use sparq_models::checkpoint::Checkpoint;
use sparq_models::config::Architecture;
use sparq_models::text::{ChatTemplate, TextTokenizer};
use sparq_models::{CausalLm, Decoder, DecoderConfig, embedded, hub};

/// Where a model comes from.
#[derive(Clone, Debug)]
pub enum ModelSource {
    /// The model inside the program.
    Embedded,
    /// A folder, which was named so by the user.
    Folder {
        /// The folder.
        path: PathBuf,
        /// A path, or an id on the hub.
        name: String,
    },
}

impl ModelSource {
    /// The model that an argument names: a folder if there is one, else an id on the hub, which is downloaded.
    ///
    /// # Errors
    /// When there is no such folder and the argument is no id, or the hub does not have it.
    pub fn find(argument: Option<&str>) -> Result<Self> {
        let Some(name) = argument else {
            return Ok(Self::Embedded);
        };
        let path = hub::resolve_model(name).context("--model")?;
        Ok(Self::Folder {
            path,
            name: name.to_owned(),
        })
    }

    /// The open checkpoint.
    ///
    /// # Errors
    /// When it can't be opened.
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        Ok(match self {
            Self::Embedded => embedded::checkpoint()?,
            Self::Folder { path, .. } => Checkpoint::open(path)?,
        })
    }

    /// What the headers tell.
    ///
    /// # Errors
    /// When the checkpoint can't be read or its architecture is unknown.
    pub fn describe(&self) -> Result<Description> {
        Description::new(&self.checkpoint()?, self.to_string())
    }

    /// The model on a device.
    ///
    /// # Errors
    /// When the checkpoint can't be read or does not fit the device.
    pub fn load(&self, device: &Device, dtype: FloatDType) -> Result<LoadedModel> {
        self.build(&self.checkpoint()?, device, dtype)
    }

    /// The model of an open checkpoint of this source.
    ///
    /// # Errors
    /// When the checkpoint can't be read or does not fit the device.
    pub fn build(
        &self,
        checkpoint: &Checkpoint,
        device: &Device,
        dtype: FloatDType,
    ) -> Result<LoadedModel> {
        let description = Description::new(checkpoint, self.to_string())?;
        let config = DecoderConfig::from_checkpoint(checkpoint)?;
        let model = Box::new(Decoder::load(checkpoint, &config, dtype, device)?);
        Ok(LoadedModel { model, description })
    }

    /// The model's tokenizer.
    ///
    /// # Errors
    /// When there is none or it can't be read.
    pub fn tokenizer(&self) -> Result<TextTokenizer> {
        Ok(match self {
            Self::Embedded => embedded::tokenizer()?,
            Self::Folder { path, .. } => TextTokenizer::from_folder(path)?,
        })
    }

    /// The model's chat template, if it has one.
    ///
    /// # Errors
    /// When it is there and can't be read.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        Ok(match self {
            Self::Embedded => None,
            Self::Folder { path, .. } => ChatTemplate::from_folder(path, None)?,
        })
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("the model inside the program"),
            Self::Folder { name, .. } => f.write_str(name),
        }
    }
}

/// A model, ready to read tokens.
pub struct LoadedModel {
    /// The model.
    pub model: Box<dyn CausalLm>,
    /// What its headers tell.
    pub description: Description,
}

/// What headers and configuration tell of a model.
#[derive(Clone, Debug, Serialize)]
pub struct Description {
    /// Where it comes from.
    pub name: String,
    /// As in `architectures`.
    pub architecture: &'static str,
    /// Weights in all tensors together.
    pub parameters: usize,
    /// The types that weights are stored in.
    pub stored_types: Vec<String>,
    /// Bytes of all weights as they are stored.
    pub weight_bytes: u64,
    /// Layers.
    pub layers: usize,
    /// Query heads of a layer.
    pub heads: usize,
    /// Key/value heads of a layer.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Tokens that there are.
    pub vocab_size: usize,
    /// Positions that the model was made for.
    pub context: usize,
    /// The settings of SparQ that a converted model is meant to be run with.
    pub attention: Option<SparqConfig>,
    /// Positions that layers with a sliding window attend to.
    pub sliding_window: Option<usize>,
    /// Layers with a sliding window.
    pub sliding_layers: usize,
}

impl Description {
    fn new(checkpoint: &Checkpoint, name: String) -> Result<Self> {
        let architecture = Architecture::of(checkpoint)?;
        let config = DecoderConfig::from_checkpoint(checkpoint)?;
        let windows: Vec<_> = config.windows.iter().flatten().copied().collect();
        let mut stored_types: Vec<String> = checkpoint
            .names()
            .filter_map(|name| checkpoint.entry(name))
            .map(|entry| format!("{:?}", entry.dtype).to_lowercase())
            .collect();
        stored_types.sort();
        stored_types.dedup();
        Ok(Self {
            name,
            architecture: architecture.name(),
            parameters: usize::try_from(checkpoint.num_params())
                .context("more weights than this machine can count")?,
            stored_types,
            weight_bytes: checkpoint.num_bytes(),
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            hidden_size: config.hidden_size,
            vocab_size: config.vocab_size,
            context: config.max_position_embeddings,
            attention: checkpoint.attention(),
            sliding_window: windows.first().copied(),
            sliding_layers: windows.len(),
        })
    }

    /// The cache of one sequence in all layers together, with elements of so many bytes.
    pub fn cache_shape(&self, element_bytes: usize) -> CacheShape {
        CacheShape {
            head_dim: self.head_dim,
            kv_heads: self.layers * self.kv_heads,
            element_bytes,
        }
    }

    /// How many of `seq_len` positions a step attends to, in the layer that attends to most.
    pub fn attended(&self, seq_len: usize) -> usize {
        match self.sliding_window {
            Some(window) if self.sliding_layers == self.layers => seq_len.min(window),
            _ => seq_len,
        }
    }

    /// The bytes that a step at `seq_len` positions moves in all layers together, each with what it attends to; `transfers` counts those of some heads at a
    /// length.
    pub fn step_bytes(
        &self,
        element_bytes: usize,
        seq_len: usize,
        transfers: impl Fn(&CacheShape, usize) -> Transfers,
    ) -> f64 {
        let window = self.sliding_window.unwrap_or(seq_len);
        let of = |layers: usize, seq_len: usize| match layers {
            0 => 0.0,
            layers => {
                let shape = CacheShape {
                    kv_heads: layers * self.kv_heads,
                    ..self.cache_shape(element_bytes)
                };
                transfers(&shape, seq_len).bytes()
            }
        };
        let sliding = of(self.sliding_layers, seq_len.min(window));
        sliding + of(self.layers - self.sliding_layers, seq_len)
    }
}

/// Bytes of an element of a type.
pub fn element_bytes(dtype: FloatDType) -> usize {
    DType::from(dtype).size()
}
