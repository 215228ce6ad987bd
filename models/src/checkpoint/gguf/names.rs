//! The names of tensors in llama.cpp and in Hugging Face checkpoints.

/// The divisors of the RoPE frequencies of Llama 3. Other formats have them in the configuration.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The divisors of the RoPE frequencies of LongRoPE, for short and for long sequences.
pub(super) const LONGROPE_FACTORS: [&str; 2] =
    ["rope_factors_short.weight", "rope_factors_long.weight"];

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
    /// Modules of a layer that [`LAYER`] does not have or names otherwise.
    modules: &'static [(&'static str, &'static str)],
    /// The experts, if the family has them.
    experts: Option<ExpertNames>,
    /// Whether matrices of attention and of the MLP are stored fused.
    pub(super) fuses: bool,
}

/// The names of experts in Hugging Face checkpoints.
#[derive(Clone, Copy, Debug)]
struct ExpertNames {
    list: &'static str,
    /// The linear layers of an expert, by their names in both formats.
    modules: [(&'static str, &'static str); 3],
}

/// Llama, and Mistral without a sliding window, which GGUF files do not distinguish.
pub(super) const LLAMA: Family = Family {
    name: "llama",
    architecture: "LlamaForCausalLM",
    model_type: "llama",
    pairs_rows: true,
    modules: &[],
    experts: None,
    fuses: false,
};

/// A Llama with experts.
pub(super) const MIXTRAL: Family = Family {
    architecture: "MixtralForCausalLM",
    model_type: "mixtral",
    modules: &[("ffn_gate_inp", "block_sparse_moe.gate")],
    experts: Some(ExpertNames {
        list: "block_sparse_moe.experts",
        modules: [("ffn_gate", "w1"), ("ffn_up", "w3"), ("ffn_down", "w2")],
    }),
    ..LLAMA
};

const QWEN2: Family = Family {
    name: "qwen2",
    architecture: "Qwen2ForCausalLM",
    model_type: "qwen2",
    pairs_rows: false,
    ..LLAMA
};

const QK_NORMS: [(&str, &str); 2] = [
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
];

const GEMMA2: Family = Family {
    name: "gemma2",
    architecture: "Gemma2ForCausalLM",
    model_type: "gemma2",
    modules: &[
        QK_NORMS[0],
        QK_NORMS[1],
        ("post_attention_norm", "post_attention_layernorm"),
        ("ffn_norm", "pre_feedforward_layernorm"),
        ("post_ffw_norm", "post_feedforward_layernorm"),
    ],
    ..QWEN2
};

/// The supported families.
pub(super) const FAMILIES: [Family; 11] = [
    LLAMA,
    QWEN2,
    Family {
        name: "qwen3",
        architecture: "Qwen3ForCausalLM",
        model_type: "qwen3",
        modules: &QK_NORMS,
        ..QWEN2
    },
    Family {
        name: "qwen3moe",
        architecture: "Qwen3MoeForCausalLM",
        model_type: "qwen3_moe",
        modules: &[QK_NORMS[0], QK_NORMS[1], ("ffn_gate_inp", "mlp.gate")],
        experts: Some(ExpertNames {
            list: "mlp.experts",
            modules: [
                ("ffn_gate", "gate_proj"),
                ("ffn_up", "up_proj"),
                ("ffn_down", "down_proj"),
            ],
        }),
        ..QWEN2
    },
    Family {
        name: "gemma",
        architecture: "GemmaForCausalLM",
        model_type: "gemma",
        ..QWEN2
    },
    GEMMA2,
    Family {
        name: "gemma3",
        architecture: "Gemma3ForCausalLM",
        model_type: "gemma3_text",
        ..GEMMA2
    },
    Family {
        name: "phi3",
        architecture: "Phi3ForCausalLM",
        model_type: "phi3",
        fuses: true,
        ..QWEN2
    },
    Family {
        name: "smollm3",
        architecture: "SmolLM3ForCausalLM",
        model_type: "smollm3",
        ..LLAMA
    },
    Family {
        name: "olmo2",
        architecture: "Olmo2ForCausalLM",
        model_type: "olmo2",
        modules: &[
            QK_NORMS[0],
            QK_NORMS[1],
            ("post_attention_norm", "post_attention_layernorm"),
            ("post_ffw_norm", "post_feedforward_layernorm"),
        ],
        ..QWEN2
    },
    Family {
        name: "granite",
        architecture: "GraniteForCausalLM",
        model_type: "granite",
        ..LLAMA
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
        self.translate(name).unwrap_or_else(|| name.into())
    }

    fn translate(&self, name: &str) -> Option<String> {
        let (module, parameter) = name.rsplit_once('.')?;
        let Some(module) = module.strip_prefix("blk.") else {
            return Some(format!("{}.{parameter}", known(&MODEL, module)?));
        };
        let (layer, module) = module.split_once('.')?;
        let own = known(self.modules, module).or_else(|| known(&LAYER, module));
        let module = match own {
            Some(module) => module.to_owned(),
            // Old files have a tensor for each expert.
            None => {
                let (module, expert) = module.rsplit_once('.')?;
                self.expert(module, expert.parse().ok()?)?
            }
        };
        Some(format!("model.layers.{layer}.{module}.{parameter}"))
    }

    /// Returns the names in a Hugging Face checkpoint of the matrices of `count` experts, which the
    /// tensor `name` holds one after the other. `None` if it holds no experts.
    pub(super) fn stacked_experts(&self, name: &str, count: usize) -> Option<Vec<String>> {
        let (module, parameter) = name.strip_prefix("blk.")?.rsplit_once('.')?;
        let (layer, module) = module.split_once('.')?;
        let module = module.strip_suffix("_exps")?;
        let name = |expert| {
            let module = self.expert(module, expert)?;
            Some(format!("model.layers.{layer}.{module}.{parameter}"))
        };
        (0..count).map(name).collect()
    }

    fn expert(&self, module: &str, expert: usize) -> Option<String> {
        let names = self.experts?;
        let module = known(&names.modules, module)?;
        Some(format!("{}.{expert}.{module}", names.list))
    }
}

/// Returns the name in a Hugging Face checkpoint that a table has for a module.
fn known(table: &[(&str, &'static str)], module: &str) -> Option<&'static str> {
    let found = table.iter().find(|(own, _)| *own == module);
    found.map(|(_, name)| *name)
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
        let moe = MIXTRAL;
        assert_eq!(
            moe.tensor("blk.1.ffn_up.3.weight"),
            "model.layers.1.block_sparse_moe.experts.3.w3.weight"
        );
        let names = moe
            .stacked_experts("blk.1.ffn_down_exps.weight", 2)
            .unwrap();
        assert_eq!(
            names[1],
            "model.layers.1.block_sparse_moe.experts.1.w2.weight"
        );
        assert_eq!(moe.stacked_experts("blk.1.ffn_down.weight", 2), None);
        assert_eq!(LLAMA.stacked_experts("blk.1.ffn_down_exps.weight", 2), None);
        let head = in_llama_cpp("lm_head.weight");
        assert_eq!(head.as_deref(), Some("output.weight"));
        assert!(is_rotated("blk.3.attn_k.weight") && is_rotated("blk.3.attn_q.bias"));
        assert!(!is_rotated("blk.3.attn_v.weight") && !is_rotated("blk.3.attn_q_norm.weight"));
    }
}
