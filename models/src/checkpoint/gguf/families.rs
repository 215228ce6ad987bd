//! Peculiarities of families in GGUF files: entries of the configuration, fused matrices and
//! stacked experts.

use serde_json::{Map, Value, json};

use super::super::{CheckpointError, decode::Stored};
use super::Gguf;

/// Entries of some families with the same meaning in both formats.
const ENTRIES: [(&str, &str); 9] = [
    ("attn_logit_softcapping", "{arch}.attn_logit_softcapping"),
    ("final_logit_softcapping", "{arch}.final_logit_softcapping"),
    ("embedding_multiplier", "{arch}.embedding_scale"),
    ("residual_multiplier", "{arch}.residual_scale"),
    ("logits_scaling", "{arch}.logit_scale"),
    ("attention_multiplier", "{arch}.attention.scale"),
    ("num_experts_per_tok", "{arch}.expert_used_count"),
    ("moe_intermediate_size", "{arch}.expert_feed_forward_length"),
    ("rope_local_base_freq", "{arch}.rope.freq_base_swa"),
];

const WINDOW: &str = "{arch}.attention.sliding_window";
const PATTERN: &str = "{arch}.attention.sliding_window_pattern";

impl Gguf {
    /// Returns the number of experts, 0 in a model without them.
    pub(super) fn experts(&self) -> u64 {
        let count = self.get("{arch}.expert_count").and_then(Value::as_u64);
        count.unwrap_or(0)
    }

    /// Adds the entries of the configuration that only some families have, and defaults of
    /// llama.cpp that differ from those of transformers.
    pub(super) fn add_family_entries(
        &self,
        config: &mut Map<String, Value>,
    ) -> Result<(), CheckpointError> {
        for (name, key) in ENTRIES {
            match self.get(key) {
                None => {}
                Some(Value::Null) => return Err(self.unexpected(key, "a number")),
                Some(value) => drop(config.insert(name.into(), value.clone())),
            }
        }
        let [hidden, heads, layers] = ["embedding_length", "attention.head_count", "block_count"]
            .map(|key| self.required_size(&format!("{{arch}}.{key}")));
        let (hidden, heads, layers) = (hidden?, heads?, layers?);
        let head_dim = self.head_dim()?;
        let mut default = |name: &str, value: Value| {
            config.entry(name).or_insert(value);
        };
        default("head_dim", head_dim.into());
        default("num_key_value_heads", heads.into());
        default("rope_theta", json!(10_000.0));
        match self.family.model_type {
            "gemma" => default("norm_adds_one", false.into()),
            "gemma2" | "gemma3_text" => {
                default("norm_adds_one", false.into());
                // The largest of each generation.
                let divides_by_width = layers == if self.family.name == "gemma2" { 46 } else { 62 };
                let divisor = match divides_by_width {
                    true => hidden as f64 / heads as f64,
                    false => head_dim as f64,
                };
                default("query_pre_attn_scalar", divisor.into());
            }
            "granite" => default(
                "attention_multiplier",
                json!(1.0 / (head_dim as f64).sqrt()),
            ),
            "qwen3_moe" => {
                default("norm_topk_prob", true.into());
                default("num_experts", self.experts().into());
            }
            "mixtral" => default("num_local_experts", self.experts().into()),
            "phi3" => {
                let context = self.original_context()?.clone();
                default("original_max_position_embeddings", context);
            }
            _ => {}
        }
        if self.get(WINDOW).and_then(Value::as_u64) == Some(0) {
            config.insert("sliding_window".into(), Value::Null);
        }
        match self.get(PATTERN) {
            Some(Value::Array(slides)) => {
                let name = |slides: &Value| match slides.as_bool() {
                    Some(true) => Ok("sliding_attention"),
                    Some(false) => Ok("full_attention"),
                    None => Err(self.unexpected(PATTERN, "a list of booleans")),
                };
                let types = slides.iter().map(name).collect::<Result<Vec<_>, _>>()?;
                config.insert("layer_types".into(), json!(types));
            }
            Some(period) => drop(config.insert("sliding_window_pattern".into(), period.clone())),
            None => {}
        }
        Ok(())
    }

    /// Returns the tensors of a Hugging Face checkpoint that the tensor `own` of the file holds:
    /// one of the name `name`, the matrices of all experts, or those of fused layers.
    pub(super) fn split(
        &self,
        own: &str,
        name: String,
        stored: Stored,
    ) -> Result<Vec<(String, Stored)>, CheckpointError> {
        // Every expert has bytes, so a file has room for as many names.
        if let [count, rows, _] = *stored.shape
            && count as u64 <= stored.bytes
            && let Some(names) = self.family.stacked_experts(own, count)
        {
            let mut parts = Vec::new();
            for (expert, name) in names.into_iter().enumerate() {
                let mut part = stored.rows(expert..expert + 1);
                if let Some(part) = &mut part {
                    part.shape = vec![rows, stored.shape[2]];
                }
                parts.extend(part.map(|part| (name, part)));
            }
            return Ok(parts);
        }
        let parts = match self.family.fuses {
            true => self.fused(own)?,
            false => None,
        };
        let Some(parts) = parts else {
            return Ok(vec![(name, stored)]);
        };
        let mut rows = parts.iter().map(|&(_, rows)| rows);
        let rows = rows.try_fold(0, usize::checked_add);
        if rows.is_none() || stored.shape.first().copied() != rows {
            let expected = format!("{} rows", rows.unwrap_or(usize::MAX));
            let found = format!("the shape {:?}", stored.shape);
            return Err(self.error(own, expected, found));
        }
        let (layer, parameter) = (own.split('.').nth(1), own.rsplit('.').next());
        let (layer, parameter) = (layer.unwrap_or_default(), parameter.unwrap_or_default());
        let mut first = 0;
        let part = |(module, rows): (&str, usize)| {
            let part = stored.rows(first..first + rows)?;
            first += rows;
            Some((format!("model.layers.{layer}.{module}.{parameter}"), part))
        };
        Ok(parts.into_iter().filter_map(part).collect())
    }

    /// Returns the layers that the tensor `own` holds, with their rows, if it is fused.
    #[allow(clippy::type_complexity, reason = "a short list")]
    fn fused(&self, own: &str) -> Result<Option<Vec<(&'static str, usize)>>, CheckpointError> {
        let module = own
            .strip_prefix("blk.")
            .and_then(|rest| rest.split('.').nth(1));
        let size = |key: &str| self.required_size(&format!("{{arch}}.{key}"));
        Ok(match module {
            Some("attn_qkv") => {
                let (heads, d) = (size("attention.head_count")?, self.head_dim()?);
                let kv_heads = match self.get("{arch}.attention.head_count_kv") {
                    Some(_) => size("attention.head_count_kv")?,
                    None => heads,
                };
                let rows = |heads: usize| heads.saturating_mul(d);
                Some(vec![
                    ("self_attn.q_proj", rows(heads)),
                    ("self_attn.k_proj", rows(kv_heads)),
                    ("self_attn.v_proj", rows(kv_heads)),
                ])
            }
            Some("ffn_up") => {
                let inner = size("feed_forward_length")?;
                Some(vec![("mlp.gate_proj", inner), ("mlp.up_proj", inner)])
            }
            _ => None,
        })
    }
}
