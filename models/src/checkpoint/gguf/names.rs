//! The names of tensors in llama.cpp and in Hugging Face checkpoints.

/// The divisors of the RoPE frequencies of Llama 3. Other formats have them in the configuration.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// A family of models as GGUF knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    /// Its name in `general.architecture`, and the prefix of its keys in the metadata.
    pub(super) name: &'static str,
    /// Its name in `architectures` of `config.json`.
    pub(super) architecture: &'static str,
    /// Its name in `model_type` of `config.json`.
    pub(super) model_type: &'static str,
    /// Whether the rows of queries and keys that RoPE pairs are neighbours.
    pub(super) pairs_rows: bool,
}

/// Llama, and Mistral without a sliding window, which GGUF files do not distinguish.
pub(super) const LLAMA: Family = Family {
    name: "llama",
    architecture: "LlamaForCausalLM",
    model_type: "llama",
    pairs_rows: true,
};

/// The supported families.
pub(super) const FAMILIES: [Family; 2] = [
    LLAMA,
    Family {
        name: "qwen2",
        architecture: "Qwen2ForCausalLM",
        model_type: "qwen2",
        pairs_rows: false,
    },
];

/// Modules outside of the layers, by their names in both formats.
const MODEL: [(&str, &str); 3] = [
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
];

/// Modules of a layer, by their names in both formats.
const LAYER: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

impl Family {
    pub(super) fn find(name: &str) -> Option<Self> {
        FAMILIES.into_iter().find(|family| family.name == name)
    }

    /// Returns the name of a tensor in a Hugging Face checkpoint. An unknown tensor keeps its name,
    /// and is reported as unused.
    pub(super) fn tensor(&self, name: &str) -> String {
        translate(name).unwrap_or_else(|| name.into())
    }
}

fn translate(name: &str) -> Option<String> {
    let (module, parameter) = name.rsplit_once('.')?;
    let known = |table: &[(&str, &'static str)], module: &str| {
        let found = table.iter().find(|(own, _)| *own == module);
        found.map(|(_, name)| *name)
    };
    match module.strip_prefix("blk.") {
        None => Some(format!("{}.{parameter}", known(&MODEL, module)?)),
        Some(module) => {
            let (layer, module) = module.split_once('.')?;
            Some(format!(
                "model.layers.{layer}.{}.{parameter}",
                known(&LAYER, module)?
            ))
        }
    }
}

/// Returns the name in llama.cpp of the tensor that a Hugging Face checkpoint calls `name`, for
/// messages.
pub(in super::super) fn in_llama_cpp(name: &str) -> Option<String> {
    let (module, parameter) = name.rsplit_once('.')?;
    let own = |table: &[(&'static str, &str)], module: &str| {
        let found = table.iter().find(|(_, name)| *name == module);
        found.map(|(own, _)| *own)
    };
    match module.strip_prefix("model.layers.") {
        None => Some(format!("{}.{parameter}", own(&MODEL, module)?)),
        Some(module) => {
            let (layer, module) = module.split_once('.')?;
            Some(format!("blk.{layer}.{}.{parameter}", own(&LAYER, module)?))
        }
    }
}

/// Returns whether RoPE rotates the output of this tensor.
pub(super) fn is_rotated(name: &str) -> bool {
    let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
    module.ends_with(".attn_q") || module.ends_with(".attn_k")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_get_hugging_face_names() {
        let cases = [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("output.weight", "lm_head.weight"),
            (
                "blk.12.attn_q.bias",
                "model.layers.12.self_attn.q_proj.bias",
            ),
            (
                "blk.0.ffn_norm.weight",
                "model.layers.0.post_attention_layernorm.weight",
            ),
            ("blk.0.attn_sinks.weight", "blk.0.attn_sinks.weight"),
            ("blk.0", "blk.0"),
            ("", ""),
        ];
        for (name, expected) in cases {
            assert_eq!(LLAMA.tensor(name), expected);
            let back = in_llama_cpp(expected);
            assert!(back.is_none_or(|back| back == name), "{name}");
        }
        let head = in_llama_cpp("lm_head.weight");
        assert_eq!(head.as_deref(), Some("output.weight"));
        assert!(is_rotated("blk.3.attn_k.weight") && is_rotated("blk.3.attn_q.bias"));
        assert!(!is_rotated("blk.3.attn_v.weight") && !is_rotated("blk.3.attn_q_norm.weight"));
    }
}
