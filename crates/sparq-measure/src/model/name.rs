//! The models to measure, by name, and the shapes of their runs.

use std::fmt;
use std::str::FromStr;

use anyhow::Result;
use burn::tensor::{Device, FloatDType};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use sparq::RotaryConfig;
use sparq::cost::CacheShape;
use sparq_models::config::{HiddenAct, Keys, NormKind, Residual};
use sparq_models::{Decoder, DecoderConfig};
use sparq_plan::ModelShape;

use crate::shape::CacheType;

/// A model, known by its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum ModelName {
    /// Llama-3-8B: 32 layers, 32 query heads, 8 KV heads
    #[serde(rename = "llama3-8b")]
    #[value(name = "llama3-8b")]
    Llama3,
    /// Llama-2-7B: 32 layers, 32 query heads, 32 KV heads
    #[serde(rename = "llama2-7b")]
    #[value(name = "llama2-7b")]
    Llama2,
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
            ModelName::Llama2 => "llama2-7b",
            ModelName::Tiny => "tiny",
        }
    }

    /// The configuration: the published sizes, without biases.
    pub fn config(self) -> DecoderConfig {
        let llama2 = DecoderConfig {
            hidden_size: 4096,
            intermediate_size: 11008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: 32,
            head_dim: 128,
            vocab_size: 32000,
            // At least S of the longest run. Only the tables of RoPE depend on it.
            max_position_embeddings: 1 << 18,
            rotary: RotaryConfig::new(128).with_theta(500_000.0),
            norm: NormKind::Rms { epsilon: 1e-5 },
            residual: Residual::Serial,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            hidden_act: HiddenAct::Silu,
            embed_scale: None,
            windows: vec![],
            tie_word_embeddings: false,
            keys: Keys::LLAMA,
            bos_token_id: None,
            eos_token_id: vec![],
            pad_token_id: None,
            dtype: None,
        };
        match self {
            ModelName::Llama2 => llama2,
            ModelName::Llama3 => DecoderConfig {
                num_key_value_heads: 8,
                intermediate_size: 14336,
                vocab_size: 128_256,
                ..llama2
            },
            ModelName::Tiny => DecoderConfig {
                hidden_size: 64,
                intermediate_size: 128,
                num_hidden_layers: 2,
                num_attention_heads: 4,
                num_key_value_heads: 2,
                head_dim: 16,
                vocab_size: 256,
                rotary: RotaryConfig::new(16).with_theta(500_000.0),
                ..llama2
            },
        }
    }

    /// Bytes of the weights that every step reads: all matrices except the embedding table, of
    /// which a step reads one row per sequence.
    pub fn weight_bytes(self, dtype: CacheType) -> f64 {
        let config = self.config();
        let heads = config.num_attention_heads + config.num_key_value_heads;
        let layer = 2 * heads * config.head_dim + 3 * config.intermediate_size;
        let columns = config.num_hidden_layers * layer + config.vocab_size;
        (columns * config.hidden_size * dtype.bytes()) as f64
    }

    /// The sizes that determine the cost of a step. The weights are those of matrices, without
    /// norms.
    pub fn plan(self) -> ModelShape {
        let config = self.config();
        let read_parameters = (self.weight_bytes(CacheType::F16) / 2.0) as usize;
        ModelShape {
            parameters: read_parameters + config.vocab_size * config.hidden_size,
            read_parameters,
            ..ModelShape::of(&config)
        }
    }

    /// Builds the model with random weights on the device.
    ///
    /// # Errors
    /// If the device does not support the element type.
    pub fn build(self, dtype: CacheType, device: &Device) -> Result<Decoder> {
        Ok(Decoder::init(
            &self.config(),
            FloatDType::from(dtype),
            device,
        )?)
    }
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
            element_bytes: dtype.bytes(),
        }
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
        let long = RunShape::new(ModelName::Llama3, 1, 131_072);
        assert!((long.kv_bytes(CacheType::F16) / 17.18e9 - 1.0).abs() < 1e-3);
    }
}
