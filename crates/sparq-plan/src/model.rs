//! The sizes of a model that determine the cost of a step: [`ModelShape`].

use serde::Serialize;
use sparq::cost::CacheShape;
use sparq::{Method, Sketch};
use sparq_models::DecoderConfig;
use sparq_models::config::{MlpKeys, NormKind, QkNorm};

/// Bytes of an fp32 number. The ranges of a sketch and the sum of V are fp32 for every cache type.
pub(crate) const FP32: usize = 4;

/// The sizes of a model, from its configuration. No weights are read.
///
/// ```
/// use sparq_models::{DecoderConfig, embedded};
/// use sparq_plan::ModelShape;
///
/// let checkpoint = embedded::checkpoint()?;
/// let model = ModelShape::of(&DecoderConfig::from_checkpoint(&checkpoint)?);
/// assert_eq!(model.parameters as u64, checkpoint.num_params());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ModelShape {
    /// The number of layers.
    pub layers: usize,
    /// The width of the residual stream.
    pub hidden_size: usize,
    /// H: number of query heads per layer.
    pub heads: usize,
    /// H_kv: number of KV heads per layer.
    pub kv_heads: usize,
    /// d: head dimension.
    pub head_dim: usize,
    /// The number of weights.
    pub parameters: usize,
    /// The number of weights a step with one sequence reads: all except an embedding table that is
    /// not also the output head, and experts that are not chosen.
    pub read_parameters: usize,
    /// W: positions that layers with a sliding window attend to.
    pub sliding_window: Option<usize>,
    /// The number of layers with a sliding window.
    pub sliding_layers: usize,
}

impl ModelShape {
    /// Takes the sizes from a configuration.
    pub fn of(config: &DecoderConfig) -> Self {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let d = config.head_dim;
        let [q, kv] = [config.num_attention_heads, config.num_key_value_heads].map(|n| n * d);
        let bias = |has: bool, size: usize| if has { size } else { 0 };
        let norm = match config.norm {
            NormKind::Rms { .. } | NormKind::RmsPlusOne { .. } => hidden,
            NormKind::Layer { .. } => 2 * hidden,
        };
        let attention = hidden * (2 * q + 2 * kv)
            + bias(config.qkv_bias, q + 2 * kv)
            + bias(config.o_bias, hidden)
            + match (config.keys.qk_norm, config.qk_norm) {
                (None, _) => 0,
                (Some(_), QkNorm::Heads) => 2 * d,
                (Some(_), QkNorm::Projections) => q + kv,
            };
        let mlp = |keys: MlpKeys, inner: usize| {
            let up = match keys {
                MlpKeys::Gated { .. } => 2,
                MlpKeys::Plain { .. } => 1,
            };
            (up + 1) * hidden * inner + bias(config.mlp_bias, up * inner + hidden)
        };
        let keys = &config.keys;
        let norms = [
            keys.input_norm,
            keys.attention_output_norm,
            keys.mlp_input_norm,
            keys.mlp_output_norm,
        ];
        let norms = norms.into_iter().flatten().count() * norm;
        // The weights of a layer's MLP or experts, and of those that a step reads.
        let mlps = |layer: usize| match keys.experts.zip(config.experts_of(layer)) {
            None => [mlp(keys.mlp, inner); 2],
            Some((keys, experts)) => {
                let expert = mlp(keys.mlp, experts.intermediate_size);
                let router = hidden * experts.count;
                [experts.count, experts.per_token].map(|count| router + count * expert)
            }
        };
        let table = config.vocab_size * hidden;
        let of_layers = |which: usize| -> usize {
            let layers = 0..config.num_hidden_layers;
            layers
                .map(|layer| attention + norms + mlps(layer)[which])
                .sum()
        };
        let [parameters, read_parameters] = [0, 1].map(|which| of_layers(which) + norm + table);
        let windows = || (0..config.num_hidden_layers).filter_map(|layer| config.window(layer));
        Self {
            layers: config.num_hidden_layers,
            hidden_size: hidden,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: d,
            parameters: parameters + bias(!config.tie_word_embeddings, table),
            read_parameters,
            sliding_window: windows().next(),
            sliding_layers: windows().count(),
        }
    }

    /// The layers without and with a sliding window: pairs of their number and the positions they
    /// attend to.
    pub fn layers_at(&self, seq_len: usize) -> [(usize, usize); 2] {
        let window = self.sliding_window.unwrap_or(seq_len);
        [
            (self.layers - self.sliding_layers, seq_len),
            (self.sliding_layers, seq_len.min(window)),
        ]
    }

    /// The bytes a step moves of the caches of `batch` sequences, in all layers.
    pub fn step_bytes(
        &self,
        method: &Method,
        batch: usize,
        seq_len: usize,
        element_bytes: usize,
    ) -> f64 {
        let bytes = |(layers, attended): (usize, usize)| {
            let shape = CacheShape {
                head_dim: self.head_dim,
                kv_heads: batch * layers * self.kv_heads,
                layers: self.layers,
                element_bytes,
            };
            method.transfers(&shape, attended).bytes()
        };
        let layers = self.layers_at(seq_len);
        layers.into_iter().filter(|(n, _)| *n > 0).map(bytes).sum()
    }

    /// The bytes of the cache of one sequence in all layers: K and V of every position, the key
    /// sketch with its ranges, the sum of V, and for methods that read it the attention each
    /// position has received. A sliding window frees no positions.
    pub fn cache_bytes(&self, method: &Method, seq_len: usize, element_bytes: usize) -> f64 {
        let channels = self.layers * self.kv_heads * self.head_dim;
        let selecting = method.anchors().of(self.layers) * self.kv_heads * self.head_dim;
        let row = method.rows().row_bits(self.head_dim, element_bytes) / 8;
        let kv = 2 * self.layers * self.kv_heads * seq_len * row;
        let sketch = match method.sketch() {
            None => 0,
            Some(Sketch::Full) => selecting * seq_len * element_bytes,
            Some(sketch @ (Sketch::Bits8 | Sketch::Bits4)) => {
                let bits = sketch.bits().unwrap_or_default();
                selecting * seq_len * bits / 8 + 2 * selecting * FP32
            }
        };
        let received = match method.reads_attention() {
            true => self.layers * self.kv_heads * seq_len * FP32,
            false => 0,
        };
        (kv + sketch + channels * FP32 + received) as f64
    }
}

#[cfg(test)]
impl ModelShape {
    /// A model for calculations by hand.
    pub(crate) fn example() -> Self {
        Self {
            layers: 10,
            hidden_size: 512,
            heads: 8,
            kv_heads: 4,
            head_dim: 64,
            parameters: 1_200_000,
            read_parameters: 1_000_000,
            sliding_window: None,
            sliding_layers: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn::tensor::{Device, FloatDType};
    use sparq::methods::{Anchors, Dense};
    use sparq::{RowFormat, SparqConfig};
    use sparq_models::checkpoint::Checkpoint;
    use sparq_models::{CausalLm, Decoder, LayerSharing};

    use super::*;

    fn checkpoints() -> Vec<(String, Checkpoint)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/hf");
        let entries = std::fs::read_dir(folder).unwrap();
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.join("config.json").exists());
        let open = |path: std::path::PathBuf| {
            let name = path.display().to_string();
            (name, Checkpoint::open(&path).unwrap())
        };
        paths.into_iter().map(open).collect()
    }

    #[test]
    fn model_counts_the_weights_of_every_family() {
        let checkpoints = checkpoints();
        assert!(checkpoints.len() >= 10);
        for (name, checkpoint) in checkpoints {
            let config = DecoderConfig::from_checkpoint(&checkpoint).unwrap();
            let model = ModelShape::of(&config);
            // Loading checks that every weight exists. Files may store additional constants.
            Decoder::load(&checkpoint, &config, FloatDType::F32, &Device::default()).unwrap();
            let constants = config.keys.constants;
            let size = |key: &str| -> usize {
                match constants.iter().any(|constant| key.ends_with(constant)) {
                    true => checkpoint.entry(key).unwrap().shape.iter().product(),
                    false => 0,
                }
            };
            let unused = checkpoint.names().map(size).sum::<usize>() as u64;
            let counted = model.parameters as u64 + unused;
            assert_eq!(counted, checkpoint.num_params(), "{name}");
            let mut not_read = match config.tie_word_embeddings {
                true => 0,
                false => config.vocab_size * config.hidden_size,
            };
            // A step reads as many experts as it chooses, whichever they are.
            let is_read = |layer: usize, key: &str| {
                let experts = config.keys.experts.as_ref().zip(config.experts_of(layer));
                experts.is_none_or(|(keys, experts)| {
                    let list = format!(".layers.{layer}.{}.", keys.list);
                    let index = key
                        .split_once(&list)
                        .and_then(|(_, rest)| rest.split_once('.'));
                    index.is_none_or(|(index, _)| {
                        index.parse::<usize>().unwrap() < experts.per_token
                    })
                })
            };
            for layer in 0..config.num_hidden_layers {
                for key in checkpoint.names().filter(|key| !is_read(layer, key)) {
                    let shape = checkpoint.entry(key).unwrap().shape;
                    not_read += shape.iter().product::<usize>();
                }
            }
            assert_eq!(model.parameters - model.read_parameters, not_read, "{name}");
        }
    }

    #[test]
    fn model_counts_the_bytes_of_a_cache() {
        let (device, seq_len) = (Device::default(), 256);
        for (name, checkpoint) in checkpoints() {
            let config = DecoderConfig::from_checkpoint(&checkpoint).unwrap();
            let model = Decoder::load(&checkpoint, &config, FloatDType::F32, &device).unwrap();
            let sketches = [Sketch::Full, Sketch::Bits8, Sketch::Bits4];
            let methods = sketches.map(|sketch| SparqConfig::new(2, 8).with_sketch(sketch).into());
            let rows = RowFormat::Int8;
            let rounded = [
                SparqConfig::new(2, 8).with_rows(rows).into(),
                Dense { rows }.into(),
            ];
            for method in methods.into_iter().chain([Method::DENSE]).chain(rounded) {
                let cache = model.new_cache(1, seq_len, FloatDType::F32, &method);
                let layers = cache.unwrap().layers;
                let held: usize = layers.iter().map(|layer| layer.memory().total()).sum();
                let counted = ModelShape::of(&config).cache_bytes(&method, seq_len, 4);
                assert_eq!(counted, held as f64, "{name} {method:?}");
            }
        }
    }

    #[test]
    fn model_counts_the_sketches_of_anchors() {
        let mut counted = 0;
        for (name, checkpoint) in checkpoints() {
            let config = DecoderConfig::from_checkpoint(&checkpoint).unwrap();
            let (layers, kv_heads) = (config.num_hidden_layers, config.num_key_value_heads);
            if layers < 2 || config.windows.iter().any(Option::is_some) {
                continue;
            }
            let sharing = LayerSharing {
                top_k: 8,
                steps: 1,
                kept: (0..layers).map(|b| vec![Some(0.5); b + 1]).collect(),
                heads: (0..layers).map(|b| vec![vec![0; kv_heads]; b]).collect(),
            };
            let device = Device::default();
            let model = Decoder::load(&checkpoint, &config, FloatDType::F32, &device).unwrap();
            let model = model.with_sharing(sharing).unwrap();
            for sketch in [Sketch::Full, Sketch::Bits4] {
                let method = SparqConfig::new(2, 8).with_sketch(sketch);
                let method = Method::from(method.with_anchors(Anchors::Number(1)));
                let cache = model.new_cache(1, 256, FloatDType::F32, &method).unwrap();
                let held = cache.memory().total();
                let found = ModelShape::of(&config).cache_bytes(&method, 256, 4);
                assert_eq!(found, held as f64, "{name} {method:?}");
                counted += 1;
            }
        }
        assert!(counted >= 4, "{counted}");
    }

    #[test]
    fn model_windows_bound_the_bytes_of_a_step() {
        let model = ModelShape {
            sliding_window: Some(100),
            sliding_layers: 7,
            ..ModelShape::example()
        };
        // Per head: 2 x 1000 x 64 elements and 2 x 64 new ones in three layers, and 2 x 100 x 64
        // in seven.
        let bytes = model.step_bytes(&Method::DENSE, 5, 1000, 2);
        assert_eq!(bytes, (5 * 4 * 2 * 2 * 64 * (3 * 1001 + 7 * 101)) as f64);
        let shorter = model.step_bytes(&Method::DENSE, 1, 50, 2);
        assert_eq!(shorter, (4 * 2 * 2 * 64 * 10 * 51) as f64);
    }
}
