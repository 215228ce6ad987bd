//! Restores the `config.json` of a GGUF file.

use serde_json::{Map, Value, json};

use super::super::CheckpointError;
use super::{Gguf, tokenizer::is_no_token};

/// Entries with the same meaning in both formats, which a file has to have.
const REQUIRED: [(&str, &str); 6] = [
    ("hidden_size", "{arch}.embedding_length"),
    ("intermediate_size", "{arch}.feed_forward_length"),
    ("num_hidden_layers", "{arch}.block_count"),
    ("num_attention_heads", "{arch}.attention.head_count"),
    ("max_position_embeddings", "{arch}.context_length"),
    ("rms_norm_eps", "{arch}.attention.layer_norm_rms_epsilon"),
];
/// Entries with the same meaning in both formats, which a file may have.
const OPTIONAL: [(&str, &str); 6] = [
    ("num_key_value_heads", "{arch}.attention.head_count_kv"),
    ("head_dim", "{arch}.attention.key_length"),
    ("rope_theta", "{arch}.rope.freq_base"),
    ("sliding_window", "{arch}.attention.sliding_window"),
    ("bos_token_id", "tokenizer.ggml.bos_token_id"),
    ("pad_token_id", "tokenizer.ggml.padding_token_id"),
];

/// Returns the GGUF key of the entry `name` of the configuration, for messages. `family` is the
/// name in `general.architecture`.
pub(in super::super) fn key_of(name: &str, family: &str) -> Option<String> {
    const OTHERS: [(&str, &str); 4] = [
        ("eos_token_id", "tokenizer.ggml.eos_token_id"),
        ("partial_rotary_factor", "{arch}.rope.dimension_count"),
        ("rope_scaling.factor", "{arch}.rope.scaling.factor"),
        ("rope_scaling.rope_type", "{arch}.rope.scaling.type"),
    ];
    let mut all = REQUIRED.iter().chain(&OPTIONAL).chain(&OTHERS);
    let (_, key) = all.find(|(own, _)| *own == name)?;
    Some(key.replace("{arch}", family))
}

impl Gguf {
    /// Returns the configuration in the form of `config.json`.
    pub(crate) fn config(&self) -> Result<Value, CheckpointError> {
        let mut config = Map::new();
        let family = self.family;
        let has = |name: &str| self.tensor(name).is_some();
        let [qkv_bias, o_bias] = ["attn_q", "attn_output"].map(|name| {
            let tensor = format!("blk.0.{name}.bias");
            has(&tensor)
        });
        // The configuration of Llama has one entry for all four biases. A Llama with biases on
        // queries, keys and values alone is a Qwen 2.
        let (architecture, model_type) = match qkv_bias && !o_bias {
            true => ("Qwen2ForCausalLM", "qwen2"),
            false => (family.architecture, family.model_type),
        };
        config.insert("architectures".into(), json!([architecture]));
        config.insert("model_type".into(), model_type.into());
        for (name, key) in REQUIRED {
            let value = self.required(key, "a number")?;
            config.insert(name.into(), value.clone());
        }
        for (name, key) in OPTIONAL {
            if let Some(value) = self.get(key) {
                config.insert(name.into(), value.clone());
            }
        }
        for (name, key) in REQUIRED.iter().chain(&OPTIONAL) {
            // NaN becomes null here, and a null in a config.json counts as absent.
            if config.get(*name).is_some_and(Value::is_null) {
                return Err(self.unexpected(key, "a number"));
            }
        }
        for name in ["bos_token_id", "pad_token_id"] {
            if config.get(name).is_some_and(is_no_token) {
                config.remove(name);
            }
        }
        const TABLE: &str = "token_embd.weight";
        let shape = self.tensor(TABLE).map(|(_, tensor)| &*tensor.shape);
        let Some(&[vocab_size, _]) = shape else {
            let found = shape.map_or("none".into(), |shape| format!("the shape {shape:?}"));
            return Err(self.error(TABLE, "a tensor [tokens, width]", found));
        };
        config.insert("vocab_size".into(), vocab_size.into());
        config.insert("tie_word_embeddings".into(), (!has("output.weight")).into());
        config.insert("attention_bias".into(), (qkv_bias || o_bias).into());
        config.insert("mlp_bias".into(), has("blk.0.ffn_up.bias").into());
        config.insert("eos_token_id".into(), self.eos_ids().into());
        if let Some(scaling) = self.rope_scaling()? {
            config.insert("rope_scaling".into(), scaling);
        }
        let rotated = self
            .get("{arch}.rope.dimension_count")
            .and_then(Value::as_f64);
        let head_dim = self.head_dim()? as f64;
        if let Some(rotated) = rotated.filter(|&rotated| rotated != head_dim) {
            config.insert("partial_rotary_factor".into(), (rotated / head_dim).into());
        }
        self.add_family_entries(&mut config)?;
        Ok(Value::Object(config))
    }

    /// Returns the head dimension.
    pub(super) fn head_dim(&self) -> Result<usize, CheckpointError> {
        const KEY: &str = "{arch}.attention.key_length";
        const WIDTH: &str = "{arch}.embedding_length";
        if self.get(KEY).is_some() {
            return self.even(KEY, self.required_size(KEY)?);
        }
        let heads = self.required_size("{arch}.attention.head_count")?;
        self.even(WIDTH, self.required_size(WIDTH)? / heads)
    }

    fn even(&self, key: &str, head_dim: usize) -> Result<usize, CheckpointError> {
        match head_dim > 0 && head_dim.is_multiple_of(2) {
            true => Ok(head_dim),
            false => Err(self.unexpected(key, "an even head dimension")),
        }
    }

    /// Returns the tokens that end a text or a chat message: those with entries of their own, and
    /// those that llama.cpp knows by their text.
    fn eos_ids(&self) -> Vec<Value> {
        let keys = ["eos_token_id", "eot_token_id", "eom_token_id"];
        let named = keys.map(|key| self.get(&format!("tokenizer.ggml.{key}")).cloned());
        let named = named.into_iter().flatten().filter(|id| !is_no_token(id));
        let mut ids: Vec<Value> = Vec::new();
        // A file without a vocabulary is still a model. Reading its tokenizer reports the fault.
        let vocabulary = self.vocabulary().ok();
        let known = vocabulary.iter().flat_map(|vocabulary| {
            let default = self.token("eos_token_id", vocabulary).ok().flatten();
            default.into_iter().chain(vocabulary.turn_ends())
        });
        for id in named.chain(known.map(Value::from)) {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        ids
    }
}
