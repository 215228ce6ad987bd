//! Models of commands: from `--model` to a description, a tokenizer and weights.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn::tensor::{DType, Device, FloatDType};
use serde::{Serialize, Serializer};
use sparq::cost::CacheShape;
use sparq::ops::is_output_major;
use sparq::{Method, SparqConfig, Transfers};
use sparq_device::DeviceChoice;
use sparq_models::checkpoint::Checkpoint;
use sparq_models::config::Architecture;
use sparq_models::text::{ChatTemplate, TextTokenizer};
use sparq_models::{CausalLm, Decoder, DecoderConfig, LayerSharing, embedded, hub};
use sparq_plan::Demand;

/// The source of a model.
#[derive(Clone, Debug)]
pub struct ModelSource {
    /// The folder or GGUF file, `None` for the embedded model.
    pub place: Option<Place>,
    /// The file with settings and measurements, if it is not that of the folder.
    calibration: Option<PathBuf>,
}

/// A folder or GGUF file.
#[derive(Clone, Debug)]
pub struct Place {
    /// The path.
    pub path: PathBuf,
    /// The path or hub ID that the user gave.
    pub name: String,
}

impl ModelSource {
    /// The embedded model.
    pub const EMBEDDED: Self = Self {
        place: None,
        calibration: None,
    };

    /// Returns the model at a path, under the name that the user gave.
    pub fn at(path: &Path, name: impl ToString) -> Self {
        let place = Place {
            path: path.to_owned(),
            name: name.to_string(),
        };
        Self {
            place: Some(place),
            ..Self::EMBEDDED
        }
    }

    /// Sets the file of the settings and measurements.
    pub fn with_calibration(self, path: Option<&Path>) -> Self {
        let calibration = path.map(Path::to_owned);
        Self {
            calibration,
            ..self
        }
    }

    /// Finds the model of an argument: a folder or file if it exists, else a hub ID, which is
    /// downloaded.
    ///
    /// # Errors
    /// If there is no such folder or file, and the argument is not an ID or unknown to the hub.
    pub fn find(argument: Option<&str>) -> Result<Self> {
        let Some(name) = argument else {
            return Ok(Self::EMBEDDED);
        };
        let path = hub::resolve_model(name).context("--model")?;
        Ok(Self::at(&path, name))
    }

    /// Returns the name of the model in JSON documents.
    pub fn json_name(&self) -> &str {
        match &self.place {
            None => "the model inside the program",
            Some(place) => &place.name,
        }
    }

    /// Opens the checkpoint.
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        let checkpoint = match &self.place {
            None => embedded::checkpoint()?,
            Some(place) => Checkpoint::open(&place.path)?,
        };
        match &self.calibration {
            Some(path) => checkpoint.with_calibration(path).context("--calibration"),
            None => Ok(checkpoint),
        }
    }

    /// Describes the model from headers and configuration, without reading weights.
    pub fn describe(&self) -> Result<Description> {
        Description::new(&self.checkpoint()?, self.clone())
    }

    /// Returns the memory that the model needs on a device with a method and a type.
    pub fn demand(
        &self,
        device: &DeviceChoice,
        dtype: FloatDType,
        method: Method,
    ) -> Result<Demand> {
        let checkpoint = self.checkpoint()?;
        let config = DecoderConfig::from_checkpoint(&checkpoint)?;
        let demand = Demand::new(&config, method, element_bytes(dtype));
        let is_mapped = !device.is_gpu() && checkpoint.is_mapped();
        if is_mapped && checkpoint.float_type() == Some(dtype) {
            return Ok(demand.with_weight_bytes(0.0));
        }
        let blocks = match is_output_major(&device.open()) {
            true => checkpoint.bytes_with_blocks(dtype, !device.is_gpu()),
            false => None,
        };
        Ok(match blocks {
            Some(bytes) => demand.with_weight_bytes(bytes as f64),
            None => demand,
        })
    }

    /// Loads the model to a device.
    pub fn load(&self, device: &Device, dtype: FloatDType) -> Result<LoadedModel> {
        self.build(&self.checkpoint()?, device, dtype)
    }

    /// Loads the model from an open checkpoint of this source.
    pub fn build(
        &self,
        checkpoint: &Checkpoint,
        device: &Device,
        dtype: FloatDType,
    ) -> Result<LoadedModel> {
        let description = Description::new(checkpoint, self.clone())?;
        let config = DecoderConfig::from_checkpoint(checkpoint)?;
        let model = Box::new(Decoder::load(checkpoint, &config, dtype, device)?);
        Ok(LoadedModel { model, description })
    }

    /// Reads the tokenizer.
    pub fn tokenizer(&self) -> Result<TextTokenizer> {
        Ok(match &self.place {
            None => embedded::tokenizer()?,
            Some(place) => TextTokenizer::from_folder(&place.path)?,
        })
    }

    /// Reads the chat template, if there is one.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        Ok(match &self.place {
            None => None,
            Some(place) => ChatTemplate::from_folder(&place.path, None)?,
        })
    }

    /// Reads the first `limit` tokens of a text file, the value of the option `option`.
    pub fn text_tokens(&self, option: &str, path: &Path, limit: usize) -> Result<Vec<u32>> {
        let text = read_text(path).context(option.to_owned())?;
        let mut tokens = self.tokenizer()?.encode(&text, true)?;
        tokens.truncate(limit);
        Ok(tokens)
    }
}

/// Serializes the name of the model. The name of the embedded model is part of the format of JSON
/// documents, so it differs from the one in texts.
impl Serialize for ModelSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.json_name())
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            None => f.write_str("the embedded model"),
            Some(place) => f.write_str(&place.name),
        }
    }
}

/// A model with its weights on a device.
pub struct LoadedModel {
    /// The model.
    pub model: Box<dyn CausalLm>,
    /// The description.
    pub description: Description,
}

/// The description of a model from headers and configuration.
#[derive(Clone, Debug, Serialize)]
pub struct Description {
    /// The source. JSON documents have its name.
    pub name: ModelSource,
    /// The name in `architectures` of the configuration.
    pub architecture: &'static str,
    /// The number of weights in all tensors.
    pub parameters: usize,
    /// The storage types of the weights.
    pub stored_types: Vec<String>,
    /// The stored bytes of all weights.
    pub weight_bytes: u64,
    /// The number of layers.
    pub layers: usize,
    /// The number of query heads per layer.
    pub heads: usize,
    /// The number of KV heads per layer.
    pub kv_heads: usize,
    /// The head dimension.
    pub head_dim: usize,
    /// The width of the residual stream.
    pub hidden_size: usize,
    /// The number of tokens in the vocabulary.
    pub vocab_size: usize,
    /// The number of positions the model was made for.
    pub context: usize,
    /// The settings of SparQ stored with a converted model.
    pub attention: Option<SparqConfig>,
    /// The measurement of shared layers stored with a converted model.
    #[serde(skip)]
    pub sharing: Option<LayerSharing>,
    /// The sliding window, in positions.
    pub sliding_window: Option<usize>,
    /// The number of layers with a sliding window.
    pub sliding_layers: usize,
    /// The float type of most weights; `None` if most are quantised.
    #[serde(skip)]
    pub stored_float: Option<FloatDType>,
}

impl Description {
    fn new(checkpoint: &Checkpoint, name: ModelSource) -> Result<Self> {
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
                .context("num_params: expected a count that fits into usize")?,
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
            sharing: checkpoint.sharing().cloned(),
            sliding_window: windows.first().copied(),
            sliding_layers: windows.len(),
            stored_float: checkpoint.float_type(),
        })
    }

    /// Checks that there is a plan for the anchors of a method.
    ///
    /// # Errors
    /// If some layers are to select positions for all, and there is no measurement of shared layers
    /// or no plan of so many.
    pub fn check_anchors(&self, method: &Method) -> Result<()> {
        let anchors = method.anchors().of(self.layers);
        match &self.sharing {
            _ if anchors == self.layers => {}
            Some(sharing) => drop(sharing.plan(anchors, 0)?),
            None => bail!(
                "anchors: expected all, since {} has no measurement of shared layers, found {anchors}; \
                 convert it with --calibrate TEXT, or give --calibration FILE",
                self.name
            ),
        }
        Ok(())
    }

    /// Returns the shape of one sequence's cache over all layers, as if they were more KV heads.
    pub fn cache_shape(&self, element_bytes: usize) -> CacheShape {
        CacheShape {
            head_dim: self.head_dim,
            kv_heads: self.layers * self.kv_heads,
            layers: self.layers,
            element_bytes,
        }
    }

    /// Returns how many of `seq_len` positions the layer with the widest view attends to.
    pub fn attended(&self, seq_len: usize) -> usize {
        match self.sliding_window {
            Some(window) if self.sliding_layers == self.layers => seq_len.min(window),
            _ => seq_len,
        }
    }

    /// Returns the bytes that a decode step at `seq_len` positions moves over all layers, sliding
    /// windows considered. `transfers` counts the bytes of a cache shape at a number of positions.
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

/// Reads a text file.
pub fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path)
        .with_context(|| format!("{}: expected a text file in UTF-8", path.display()))
}

/// Returns the bytes of an element of a float type.
pub fn element_bytes(dtype: FloatDType) -> usize {
    DType::from(dtype).size()
}
