//! Restores the `config.json` of a GGUF file.

use serde_json::{Map, Value, json};

use super::super::{CheckpointError, formats::StoredType, source::Source};
use super::{Gguf, header::TensorInfo, names::ROPE_FACTORS};

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

/// The frequency factors of RoPE in every Llama 3 model. GGUF files only have the divisors that
/// follow from them, the factor and the context.
const LOW_FREQ_FACTOR: f64 = 1.0;
const HIGH_FREQ_FACTOR: f64 = 4.0;

/// The original contexts that are tried, as exponents of 2.
const ORIGINAL_CONTEXTS: std::ops::RangeInclusive<u32> = 5..=20;

impl Gguf {
    /// Returns the configuration in the form of `config.json`.
    pub(crate) fn config(&self) -> Result<Value, CheckpointError> {
        let mut config = Map::new();
        let family = self.family;
        config.insert("architectures".into(), json!([family.architecture]));
        config.insert("model_type".into(), family.model_type.into());
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
        const TABLE: &str = "token_embd.weight";
        let shape = self.tensor(TABLE).map(|(_, tensor)| &*tensor.shape);
        let Some(&[vocab_size, _]) = shape else {
            let found = shape.map_or("none".into(), |shape| format!("the shape {shape:?}"));
            return Err(self.error(TABLE, "a tensor [tokens, width]", found));
        };
        let has = |name: &str| self.tensor(name).is_some();
        config.insert("vocab_size".into(), vocab_size.into());
        config.insert("tie_word_embeddings".into(), (!has("output.weight")).into());
        config.insert("attention_bias".into(), has("blk.0.attn_q.bias").into());
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

    /// Returns the tokens that end a text or a chat message.
    fn eos_ids(&self) -> Vec<Value> {
        let keys = ["eos_token_id", "eot_token_id"].map(|key| format!("tokenizer.ggml.{key}"));
        let mut ids: Vec<_> = keys
            .iter()
            .filter_map(|key| self.get(key))
            .cloned()
            .collect();
        ids.dedup();
        ids
    }

    fn rope_scaling(&self) -> Result<Option<Value>, CheckpointError> {
        if let Some(scaling) = self.longrope()? {
            return Ok(Some(scaling));
        }
        if let Some((source, factors)) = self.tensor(ROPE_FACTORS) {
            return self.llama3_scaling(source, factors).map(Some);
        }
        const TYPE: &str = "{arch}.rope.scaling.type";
        let kind = self.get(TYPE).and_then(Value::as_str);
        Ok(match kind {
            None | Some("none") => None,
            // The reader of the configuration refuses unknown types.
            Some(kind) => Some(json!({
                "rope_type": kind,
                "factor": self.get("{arch}.rope.scaling.factor"),
            })),
        })
    }

    /// Returns the settings from which the divisors of the frequencies follow.
    fn llama3_scaling(
        &self,
        source: &Source,
        factors: &TensorInfo,
    ) -> Result<Value, CheckpointError> {
        let head_dim = self.head_dim()?;
        let pairs = head_dim / 2;
        let (dtype, shape) = (factors.dtype, &*factors.shape);
        if dtype != StoredType::F32 || shape != [pairs] {
            let found = format!("{dtype} {shape:?}");
            return Err(self.error(ROPE_FACTORS, format!("F32 [{pairs}]"), found));
        }
        let mut bytes = vec![0; 4 * pairs];
        source.read_at(factors.offset, &mut bytes)?;
        let found: Vec<f32> = bytes
            .as_chunks()
            .0
            .iter()
            .map(|&bytes| f32::from_le_bytes(bytes))
            .collect();

        let theta = self
            .get("{arch}.rope.freq_base")
            .and_then(Value::as_f64)
            .unwrap_or(10_000.0);
        let factor = f64::from(found.iter().copied().fold(1.0, f32::max));
        let divisor = |context: u64, pair: usize| {
            let frequency = theta.powf(-2.0 * pair as f64 / head_dim as f64);
            let rotations = context as f64 * frequency / std::f64::consts::TAU;
            let kept = (rotations - LOW_FREQ_FACTOR) / (HIGH_FREQ_FACTOR - LOW_FREQ_FACTOR);
            let kept = kept.clamp(0.0, 1.0);
            1.0 / ((1.0 - kept) / factor + kept)
        };
        let fits = |&context: &u64| {
            found.iter().enumerate().all(|(pair, &found)| {
                let expected = divisor(context, pair);
                (f64::from(found) - expected).abs() <= 1e-4 * expected
            })
        };
        let Some(context) = ORIGINAL_CONTEXTS.map(|power| 1 << power).find(fits) else {
            let expected = "divisors of the frequencies as in Llama 3 (factors 1 and 4)";
            return Err(self.error(ROPE_FACTORS, expected, "others"));
        };
        Ok(json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": LOW_FREQ_FACTOR,
            "high_freq_factor": HIGH_FREQ_FACTOR,
            "original_max_position_embeddings": context,
        }))
    }
}
