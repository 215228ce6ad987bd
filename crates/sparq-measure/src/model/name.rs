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

struct Sizes {
    layers: usize,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    inner: usize,
    vocab: usize,
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

    fn sizes(self) -> Sizes {
        let large = Sizes {
            layers: 32,
            hidden: 4096,
            heads: 32,
            kv_heads: 32,
            head_dim: 128,
            inner: 11008,
            vocab: 32000,
        };
        match self {
            ModelName::Llama3 => Sizes {
                kv_heads: 8,
                inner: 14336,
                vocab: 128_256,
                ..large
            },
            ModelName::Llama2 => large,
            ModelName::Tiny => Sizes {
                layers: 2,
                hidden: 64,
                heads: 4,
                kv_heads: 2,
                head_dim: 16,
                inner: 128,
                vocab: 256,
            },
        }
    }

    /// The number of layers.
    pub fn layers(self) -> usize {
        self.sizes().layers
    }

    /// The width of the residual stream.
    pub fn hidden_size(self) -> usize {
        self.sizes().hidden
    }

    /// The number of tokens in the vocabulary.
    pub fn vocab_size(self) -> usize {
        self.sizes().vocab
    }

    /// H, H_kv and d: query heads, KV heads and head dimension.
    pub fn heads(self) -> (usize, usize, usize) {
        let sizes = self.sizes();
        (sizes.heads, sizes.kv_heads, sizes.head_dim)
    }

    /// Bytes of the weights that every step reads: all matrices except the embedding table, of
    /// which a step reads one row per sequence.
    pub fn weight_bytes(self, dtype: CacheType) -> f64 {
        let s = self.sizes();
        let attention = s.hidden * s.head_dim * (2 * s.heads + 2 * s.kv_heads);
        let layer = attention + 3 * s.hidden * s.inner;
        ((s.layers * layer + s.hidden * s.vocab) * dtype.bytes()) as f64
    }

    /// The sizes that determine the cost of a step.
    pub fn plan(self) -> sparq_plan::ModelShape {
        let s = self.sizes();
        let read_parameters = (self.weight_bytes(CacheType::F16) / 2.0) as usize;
        sparq_plan::ModelShape {
            layers: s.layers,
            hidden_size: s.hidden,
            heads: s.heads,
            kv_heads: s.kv_heads,
            head_dim: s.head_dim,
            parameters: read_parameters + s.vocab * s.hidden,
            read_parameters,
            sliding_window: None,
            sliding_layers: 0,
        }
    }

    /// Builds the model with random weights on the device.
    ///
    /// # Errors
    /// If the device does not support the element type.
    pub fn build(self, dtype: CacheType, device: &Device) -> Result<Decoder> {
        let s = self.sizes();
        let config = DecoderConfig {
            hidden_size: s.hidden,
            intermediate_size: s.inner,
            num_hidden_layers: s.layers,
            num_attention_heads: s.heads,
            num_key_value_heads: s.kv_heads,
            head_dim: s.head_dim,
            vocab_size: s.vocab,
            // At least S of the longest run. Only the tables of RoPE depend on it.
            max_position_embeddings: 1 << 18,
            rotary: RotaryConfig::new(s.head_dim).with_theta(500_000.0),
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
        Ok(Decoder::init(&config, FloatDType::from(dtype), device)?)
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
        let (_, kv_heads, head_dim) = self.model.heads();
        CacheShape {
            head_dim,
            kv_heads: self.model.layers() * self.batch * kv_heads,
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
            let names: Vec<&str> = ModelName::value_variants()
                .iter()
                .map(|model| model.name())
                .collect();
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
            assert!(
                error.contains("llama3-8b") && error.contains(text),
                "{error}"
            );
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
