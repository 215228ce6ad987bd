//! The tensors of a checkpoint, with the names and shapes of its family.

use sparq_models::DecoderConfig;
use sparq_models::config::{MlpKeys, NormKind, QkNorm, QkvKeys};

/// The values of a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Values {
    /// Random numbers.
    Normal,
    /// The same number everywhere.
    Constant(f32),
}

/// A tensor to write.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub values: Values,
}

impl Tensor {
    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The tensors of a model, in the order of its layers.
pub fn of(config: &DecoderConfig) -> Vec<Tensor> {
    let keys = &config.keys;
    let (hidden, vocab) = (config.hidden_size, config.vocab_size);
    let mut list = List(Vec::new());
    list.add(
        format!("{}.weight", keys.embed),
        &[vocab, hidden],
        Values::Normal,
    );
    for layer in 0..config.num_hidden_layers {
        list.layer(config, layer);
    }
    list.norm(config.norm, keys.norm, hidden);
    if !config.tie_word_embeddings {
        list.linear(keys.head, hidden, vocab, false);
    }
    list.0
}

struct List(Vec<Tensor>);

impl List {
    fn add(&mut self, name: String, shape: &[usize], values: Values) {
        self.0.push(Tensor {
            name,
            shape: shape.to_vec(),
            values,
        });
    }

    fn linear(&mut self, prefix: &str, inputs: usize, outputs: usize, bias: bool) {
        self.add(
            format!("{prefix}.weight"),
            &[outputs, inputs],
            Values::Normal,
        );
        if bias {
            self.add(format!("{prefix}.bias"), &[outputs], Values::Normal);
        }
    }

    /// A norm that scales by 1.
    fn norm(&mut self, kind: NormKind, prefix: &str, size: usize) {
        let scale = match kind {
            NormKind::Rms { .. } | NormKind::Layer { .. } => 1.0,
            NormKind::RmsPlusOne { .. } => 0.0,
        };
        self.add(format!("{prefix}.weight"), &[size], Values::Constant(scale));
        if let NormKind::Layer { .. } = kind {
            self.add(format!("{prefix}.bias"), &[size], Values::Constant(0.0));
        }
    }

    fn layer(&mut self, config: &DecoderConfig, layer: usize) {
        let prefix = &format!("{}.{layer}", config.keys.layers);
        let (keys, hidden, d) = (&config.keys, config.hidden_size, config.head_dim);
        let (q, kv) = (
            config.num_attention_heads * d,
            config.num_key_value_heads * d,
        );
        let of = |name: &str| format!("{prefix}.{name}");
        self.optional_norm(config, prefix, keys.input_norm);
        match keys.qkv {
            QkvKeys::Separate(names) => {
                for (name, outputs) in names.into_iter().zip([q, kv, kv]) {
                    self.linear(&of(name), hidden, outputs, config.qkv_bias);
                }
            }
            QkvKeys::Interleaved(name) => {
                self.linear(&of(name), hidden, 3 * q, config.qkv_bias);
            }
        }
        for (name, width) in keys.qk_norm.into_iter().flatten().zip([q, kv]) {
            let width = match config.qk_norm {
                QkNorm::Heads => d,
                QkNorm::Projections => width,
            };
            self.norm(config.norm, &of(name), width);
        }
        self.linear(&of(keys.o), q, hidden, config.o_bias);
        self.optional_norm(config, prefix, keys.attention_output_norm);
        self.optional_norm(config, prefix, keys.mlp_input_norm);
        match keys.experts.zip(config.experts_of(layer)) {
            None => self.mlp(config, (keys.mlp, config.intermediate_size), prefix),
            Some((keys, experts)) => {
                self.linear(&of(keys.router), hidden, experts.count, false);
                for expert in 0..experts.count {
                    let prefix = of(&format!("{}.{expert}", keys.list));
                    self.mlp(config, (keys.mlp, experts.intermediate_size), &prefix);
                }
            }
        }
        self.optional_norm(config, prefix, keys.mlp_output_norm);
    }

    fn optional_norm(&mut self, config: &DecoderConfig, prefix: &str, name: Option<&str>) {
        if let Some(name) = name {
            self.norm(config.norm, &format!("{prefix}.{name}"), config.hidden_size);
        }
    }

    fn mlp(&mut self, config: &DecoderConfig, (keys, inner): (MlpKeys, usize), prefix: &str) {
        let (inputs, down) = match keys {
            MlpKeys::Gated { gate, up, down } => (vec![gate, up], down),
            MlpKeys::Plain { up, down } => (vec![up], down),
        };
        let (hidden, bias) = (config.hidden_size, config.mlp_bias);
        for name in inputs {
            self.linear(&format!("{prefix}.{name}"), hidden, inner, bias);
        }
        self.linear(&format!("{prefix}.{down}"), inner, hidden, bias);
    }
}
