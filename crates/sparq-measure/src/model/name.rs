//! The models to measure, by name, and the shapes of their runs.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use anyhow::Result;
use burn::tensor::{Device, FloatDType};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sparq::cost::CacheShape;
use sparq::ops::BlockFormat;
use sparq_models::config::MlpKeys;
use sparq_models::{Decoder, DecoderConfig};
use sparq_plan::ModelShape;

use super::published;
use crate::shape::CacheType;

/// A model, known by its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum ModelName {
    /// Llama-3-8B: 32 layers, 32 query heads, 8 KV heads
    #[serde(rename = "llama3-8b")]
    #[value(name = "llama3-8b")]
    Llama3,
    /// Llama-3.2-1B: 16 layers, 32 query heads, 8 KV heads
    #[serde(rename = "llama3.2-1b")]
    #[value(name = "llama3.2-1b")]
    Llama32,
    /// Llama-2-7B: 32 layers, 32 query heads, 32 KV heads
    #[serde(rename = "llama2-7b")]
    #[value(name = "llama2-7b")]
    Llama2,
    /// Mistral-7B 0.1: 32 query heads, 8 KV heads, a sliding window of 4096 positions
    #[serde(rename = "mistral-7b")]
    #[value(name = "mistral-7b")]
    Mistral,
    /// Qwen2.5-7B: 28 layers, 28 query heads, 4 KV heads, biases
    #[serde(rename = "qwen2.5-7b")]
    #[value(name = "qwen2.5-7b")]
    Qwen2,
    /// Qwen3-8B: 36 layers, 32 query heads, 8 KV heads, norms of queries and keys
    #[serde(rename = "qwen3-8b")]
    #[value(name = "qwen3-8b")]
    Qwen3,
    /// Gemma-2B: 18 layers, 8 query heads of 256 components, 1 KV head
    #[serde(rename = "gemma-2b")]
    #[value(name = "gemma-2b")]
    Gemma,
    /// Pythia-1B: 16 layers, 8 heads of 256 components, MLP parallel to attention
    #[serde(rename = "pythia-1b")]
    #[value(name = "pythia-1b")]
    Pythia,
    /// SmolLM2-135M: 30 layers, 9 query heads, 3 KV heads
    #[serde(rename = "smollm2-135m")]
    #[value(name = "smollm2-135m")]
    SmolLm2,
    /// Two small layers, to check that everything runs
    #[serde(rename = "tiny")]
    #[value(name = "tiny")]
    Tiny,
}

impl ModelName {
    /// The name in JSON files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            ModelName::Llama3 => "llama3-8b",
            ModelName::Llama32 => "llama3.2-1b",
            ModelName::Llama2 => "llama2-7b",
            ModelName::Mistral => "mistral-7b",
            ModelName::Qwen2 => "qwen2.5-7b",
            ModelName::Qwen3 => "qwen3-8b",
            ModelName::Gemma => "gemma-2b",
            ModelName::Pythia => "pythia-1b",
            ModelName::SmolLm2 => "smollm2-135m",
            ModelName::Tiny => "tiny",
        }
    }

    /// The `config.json`: the published sizes, with a context of 262144 positions.
    pub fn config_json(self) -> Value {
        published::config(self)
    }

    /// The configuration that [`Self::config_json`] describes.
    pub fn config(self) -> DecoderConfig {
        let config = DecoderConfig::from_json(&self.config_json(), Path::new(self.name()));
        config.expect("a published configuration is valid")
    }

    /// Bytes of the weights that every step reads: all matrices except the embedding table, of
    /// which a step reads one row per sequence.
    pub fn weight_bytes(self, dtype: CacheType) -> f64 {
        (self.read_weights() * dtype.bytes()) as f64
    }

    /// The same bytes of packed weights.
    pub fn packed_bytes(self, format: BlockFormat) -> f64 {
        (self.read_weights() / format.weights() * format.bytes()) as f64
    }

    fn read_weights(self) -> usize {
        let config = self.config();
        layer_matrices(&config) + config.vocab_size * config.hidden_size
    }

    /// The sizes that determine the cost of a step. The weights are those of matrices, without
    /// norms.
    pub fn plan(self) -> ModelShape {
        let config = self.config();
        let read_parameters = (self.weight_bytes(CacheType::F16) / 2.0) as usize;
        let table = match config.tie_word_embeddings {
            true => 0,
            false => config.vocab_size * config.hidden_size,
        };
        ModelShape {
            parameters: read_parameters + table,
            read_parameters,
            ..ModelShape::of(&config)
        }
    }

    /// Builds the model with random weights on the device: floats, or packed ones of a format.
    ///
    /// # Errors
    /// If the device does not support the element type.
    pub fn build(
        self,
        dtype: CacheType,
        weights: Option<BlockFormat>,
        device: &Device,
    ) -> Result<Decoder> {
        let (config, dtype) = (self.config(), FloatDType::from(dtype));
        Ok(match weights {
            None => Decoder::init(&config, dtype, device)?,
            Some(format) => Decoder::init_packed(&config, dtype, format, device)?,
        })
    }
}

/// The number of weights in the matrices of all layers.
pub(crate) fn layer_matrices(config: &DecoderConfig) -> usize {
    let heads = config.num_attention_heads + config.num_key_value_heads;
    let mlp = match config.keys.mlp {
        MlpKeys::Gated { .. } => 3,
        MlpKeys::Plain { .. } => 2,
    };
    let columns = 2 * heads * config.head_dim + mlp * config.intermediate_size;
    config.num_hidden_layers * columns * config.hidden_size
}

/// A model, B and S.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunShape {
    /// The model.
    pub model: ModelName,
    /// B: number of sequences.
    pub batch: usize,
    /// S: number of positions in the caches at the first step, its own token included.
    pub seq_len: usize,
}

impl RunShape {
    /// The default runs: from a short context to the longest that a GPU with 80 GB holds.
    pub const ALL: [RunShape; 6] = [
        Self::new(ModelName::Llama3, 1, 4096),
        Self::new(ModelName::Llama3, 1, 32_768),
        Self::new(ModelName::Llama3, 1, 131_072),
        Self::new(ModelName::Llama2, 1, 16_384),
        Self::new(ModelName::Llama2, 1, 65_536),
        Self::new(ModelName::Llama2, 16, 4096),
    ];

    const fn new(model: ModelName, batch: usize, seq_len: usize) -> Self {
        Self {
            model,
            batch,
            seq_len,
        }
    }

    /// The sizes that determine the bytes a step moves of all caches.
    pub fn cache(&self, dtype: CacheType) -> CacheShape {
        let config = self.model.config();
        CacheShape {
            head_dim: config.head_dim,
            kv_heads: config.num_hidden_layers * self.batch * config.num_key_value_heads,
            layers: config.num_hidden_layers,
            element_bytes: dtype.bytes(),
        }
    }

    /// The positions that a step attends to: S, or fewer with a sliding window in every layer.
    pub fn attended(&self) -> usize {
        let config = self.model.config();
        let windows = (0..config.num_hidden_layers).map(|layer| config.window(layer));
        let widest = windows.map(|window| window.unwrap_or(usize::MAX)).max();
        self.seq_len.min(widest.unwrap_or(usize::MAX))
    }

    /// Bytes of K and V in all layers.
    pub fn kv_bytes(&self, dtype: CacheType) -> f64 {
        let cache = self.cache(dtype);
        (2 * cache.kv_heads * self.seq_len * cache.head_dim * cache.element_bytes) as f64
    }
}

impl fmt::Display for RunShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (model, batch, seq_len) = (self.model.name(), self.batch, self.seq_len);
        write!(f, "{model} B={batch} S={seq_len}")
    }
}

impl FromStr for RunShape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || {
            let names = ModelName::value_variants().iter();
            let names: Vec<&str> = names.map(|model| model.name()).collect();
            format!(
                "expected MODEL,B,S such as llama3-8b,1,4096 with MODEL one of {} \
                 and B and S at least 1, found {text:?}",
                names.join(", ")
            )
        };
        let parts: Vec<&str> = text.split(',').map(str::trim).collect();
        let [model, batch, seq_len] = parts[..] else {
            return Err(error());
        };
        let model = ModelName::from_str(model, false).map_err(|_| error())?;
        let size = |text: &str| text.parse().ok().filter(|&size| size > 0);
        match (size(batch), size(seq_len)) {
            (Some(batch), Some(seq_len)) => Ok(Self::new(model, batch, seq_len)),
            _ => Err(error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_shape_parses_a_model_and_two_sizes() {
        let run = RunShape::new(ModelName::Llama2, 16, 4096);
        assert_eq!("llama2-7b,16,4096".parse(), Ok(run));
        for text in ["llama2-7b,16", "llama9,1,1", "tiny,0,5", "tiny,1,x"] {
            let error = text.parse::<RunShape>().unwrap_err();
            assert!(error.contains("llama3-8b"), "{error}");
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn model_sizes_match_the_published_ones() {
        // The published 8.03e9 and 6.74e9 parameters, without the embedding table.
        let weights = |model: ModelName| model.weight_bytes(CacheType::F16) / 2e9;
        assert!((weights(ModelName::Llama3) - (8.03 - 0.525)).abs() < 0.01);
        assert!((weights(ModelName::Llama2) - (6.74 - 0.131)).abs() < 0.01);
        let parameters = |model: ModelName| ModelShape::of(&model.config()).parameters as f64;
        for (model, billions) in [
            (ModelName::Llama3, 8.030),
            (ModelName::Llama32, 1.236),
            (ModelName::Llama2, 6.738),
            (ModelName::Mistral, 7.242),
            (ModelName::Qwen2, 7.616),
            (ModelName::Qwen3, 8.191),
            (ModelName::Gemma, 2.506),
            (ModelName::Pythia, 1.012),
            (ModelName::SmolLm2, 0.1345),
        ] {
            let found = parameters(model) / 1e9;
            assert!((found / billions - 1.0).abs() < 1e-3, "{model:?}: {found}");
            assert!(model.plan().parameters as f64 <= parameters(model));
        }
        let long = RunShape::new(ModelName::Llama3, 1, 131_072);
        assert!((long.kv_bytes(CacheType::F16) / 17.18e9 - 1.0).abs() < 1e-3);
        assert_eq!(long.attended(), 131_072);
        let windowed = RunShape::new(ModelName::Mistral, 1, 131_072);
        assert_eq!(windowed.attended(), 4096);
    }
}
