//! The models by their shapes.

use std::str::FromStr;

use anyhow::Result;
use burn::tensor::{Device, FloatDType};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use sparq::cost::CacheShape;
use sparq::ops::RotaryScaling;
use sparq::{SparqConfig, Transfers};
use sparq_models::Llama;
use sparq_models::config::{HiddenAct, LlamaConfig};

use super::report::StepRow;
use crate::bandwidth::Bandwidth;
use crate::contender::MethodName;
use crate::shape::CacheType;

/// A model's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum ModelShape {
    /// Llama-3-8B: 32 layers, 32 heads / 8 of K and V
    #[serde(rename = "llama3-8b")]
    #[value(name = "llama3-8b")]
    Llama3,
    /// Llama-2-7B: 32 layers, 32 heads / 32 of K and V
    #[serde(rename = "llama2-7b")]
    #[value(name = "llama2-7b")]
    Llama2,
    /// Two small layers, to see that everything runs
    #[serde(rename = "tiny")]
    #[value(name = "tiny")]
    Tiny,
}

/// Sizes of a model: layers, hidden size, H, H_kv, d, intermediate size, vocabulary.
struct Sizes {
    layers: usize,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    inner: usize,
    vocab: usize,
}

impl ModelShape {
    /// The name in JSON files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            ModelShape::Llama3 => "llama3-8b",
            ModelShape::Llama2 => "llama2-7b",
            ModelShape::Tiny => "tiny",
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
            ModelShape::Llama3 => Sizes {
                kv_heads: 8,
                inner: 14336,
                vocab: 128_256,
                ..large
            },
            ModelShape::Llama2 => large,
            ModelShape::Tiny => Sizes {
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

    /// Layers.
    pub fn layers(self) -> usize {
        self.sizes().layers
    }

    /// Width of the residual stream.
    pub fn hidden_size(self) -> usize {
        self.sizes().hidden
    }

    /// Tokens that there are.
    pub fn vocab_size(self) -> usize {
        self.sizes().vocab
    }

    /// Query heads, key/value heads and elements of a head.
    pub fn heads(self) -> (usize, usize, usize) {
        let sizes = self.sizes();
        (sizes.heads, sizes.kv_heads, sizes.head_dim)
    }

    /// Bytes of the weights that every step reads: all matrices but the embedding table, of which it reads a row.
    pub fn weight_bytes(self, dtype: CacheType) -> f64 {
        let s = self.sizes();
        let attention = s.hidden * s.head_dim * (2 * s.heads + 2 * s.kv_heads);
        let layer = attention + 3 * s.hidden * s.inner;
        ((s.layers * layer + s.hidden * s.vocab) * dtype.bytes()) as f64
    }

    /// What of it decides the cost of a step.
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

    /// The model with random weights, on the device.
    ///
    /// # Errors
    /// When the device can't compute in the type.
    pub fn build(self, dtype: CacheType, device: &Device) -> Result<Llama> {
        let s = self.sizes();
        let config = LlamaConfig {
            hidden_size: s.hidden,
            intermediate_size: s.inner,
            num_hidden_layers: s.layers,
            num_attention_heads: s.heads,
            num_key_value_heads: s.kv_heads,
            head_dim: s.head_dim,
            vocab_size: s.vocab,
            rms_norm_eps: 1e-5,
            // As long as the longest run: only tables of angles depend on it.
            max_position_embeddings: 1 << 18,
            rope_theta: 500_000.0,
            rope_scaling: RotaryScaling::None,
            tie_word_embeddings: false,
            attention_bias: false,
            mlp_bias: false,
            hidden_act: HiddenAct::Silu,
            bos_token_id: None,
            eos_token_id: vec![],
            pad_token_id: None,
            dtype: None,
        };
        Ok(Llama::init(&config, FloatDType::from(dtype), device)?)
    }
}

/// A model, B and S.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunShape {
    /// The model.
    pub model: ModelShape,
    /// B: sequences.
    pub batch: usize,
    /// S: positions in the caches at the first step, its own token included.
    pub seq_len: usize,
}

impl RunShape {
    /// The runs that are measured where none is named: contexts from short to what one card with 80 GB holds.
    pub const ALL: [RunShape; 6] = [
        Self::new(ModelShape::Llama3, 1, 4096),
        Self::new(ModelShape::Llama3, 1, 32_768),
        Self::new(ModelShape::Llama3, 1, 131_072),
        Self::new(ModelShape::Llama2, 1, 16_384),
        Self::new(ModelShape::Llama2, 1, 65_536),
        Self::new(ModelShape::Llama2, 16, 4096),
    ];

    const fn new(model: ModelShape, batch: usize, seq_len: usize) -> Self {
        Self {
            model,
            batch,
            seq_len,
        }
    }

    /// What decides the bytes that a step moves of all caches together.
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

    /// A row for this run on which nothing has been measured.
    pub(super) fn row(
        &self,
        dtype: CacheType,
        settings: Option<SparqConfig>,
        bandwidth: &Bandwidth,
    ) -> StepRow {
        let cache = self.cache(dtype);
        let transfers = match &settings {
            None => Transfers::dense(&cache, self.seq_len),
            Some(config) => Transfers::sparq(&cache, self.seq_len, config),
        };
        let weight_bytes = self.model.weight_bytes(dtype);
        StepRow {
            run: *self,
            dtype,
            method: match settings {
                None => MethodName::Dense,
                Some(_) => MethodName::Sparq,
            },
            settings,
            weight_bytes,
            cache_bytes: transfers.bytes(),
            floor_us: bandwidth.floor_us(weight_bytes + transfers.bytes()),
            eager: None,
            captured: None,
            parts: None,
            skipped: None,
        }
    }
}

impl FromStr for RunShape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || {
            let names: Vec<&str> = ModelShape::value_variants()
                .iter()
                .map(|model| model.name())
                .collect();
            format!(
                "expected MODEL,B,S such as llama3-8b,1,4096 with a model of {} and B and S of 1 or more, found {text:?}",
                names.join(", ")
            )
        };
        let parts: Vec<&str> = text.split(',').map(str::trim).collect();
        let [model, batch, seq_len] = parts[..] else {
            return Err(error());
        };
        let model = ModelShape::from_str(model, false).map_err(|_| error())?;
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
    fn a_run_is_a_model_and_two_sizes() {
        let run = RunShape::new(ModelShape::Llama2, 16, 4096);
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
    fn sizes_are_those_of_the_models() {
        // The published 8.03 and 6.74 thousand million parameters, less the embedding table.
        let weights = |model: ModelShape| model.weight_bytes(CacheType::F16) / 2e9;
        assert!((weights(ModelShape::Llama3) - (8.03 - 0.525)).abs() < 0.01);
        assert!((weights(ModelShape::Llama2) - (6.74 - 0.131)).abs() < 0.01);
        let long = RunShape::new(ModelShape::Llama3, 1, 131_072);
        assert!((long.kv_bytes(CacheType::F16) / 17.18e9 - 1.0).abs() < 1e-3);
    }
}
