//! The `config.json` of each model to measure: the published sizes.

use serde_json::{Value, json};

use super::name::ModelName;

/// Positions of every model: at least those of the longest run, more than published. Only the
/// tables of RoPE depend on it.
const CONTEXT: usize = 1 << 18;

/// The sizes that every `config.json` has.
struct Sizes {
    hidden: usize,
    inner: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocab: usize,
}

/// Returns the configuration of a model.
pub(super) fn config(model: ModelName) -> Value {
    let (family, sizes, more) = match model {
        ModelName::Llama3 => (
            ["LlamaForCausalLM", "llama"],
            sizes([4096, 14336, 32, 32, 8, 128_256]),
            json!({"rms_norm_eps": 1e-5, "rope_theta": 5e5}),
        ),
        ModelName::Llama32 => (
            ["LlamaForCausalLM", "llama"],
            sizes([2048, 8192, 16, 32, 8, 128_256]),
            json!({"rms_norm_eps": 1e-5, "rope_theta": 5e5, "tie_word_embeddings": true}),
        ),
        ModelName::Llama2 => (
            ["LlamaForCausalLM", "llama"],
            sizes([4096, 11008, 32, 32, 32, 32_000]),
            json!({"rms_norm_eps": 1e-5, "rope_theta": 1e4}),
        ),
        ModelName::Mistral => (
            ["MistralForCausalLM", "mistral"],
            sizes([4096, 14336, 32, 32, 8, 32_000]),
            json!({"rms_norm_eps": 1e-5, "rope_theta": 1e4, "sliding_window": 4096}),
        ),
        ModelName::Qwen2 => (
            ["Qwen2ForCausalLM", "qwen2"],
            sizes([3584, 18_944, 28, 28, 4, 152_064]),
            json!({"rms_norm_eps": 1e-6, "rope_theta": 1e6, "use_sliding_window": false}),
        ),
        ModelName::Qwen3 => (
            ["Qwen3ForCausalLM", "qwen3"],
            sizes([4096, 12_288, 36, 32, 8, 151_936]),
            json!({"rms_norm_eps": 1e-6, "rope_theta": 1e6, "head_dim": 128}),
        ),
        ModelName::Gemma => (
            ["GemmaForCausalLM", "gemma"],
            sizes([2048, 16_384, 18, 8, 1, 256_000]),
            json!({"rms_norm_eps": 1e-6, "rope_theta": 1e4, "head_dim": 256,
                "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
                "tie_word_embeddings": true}),
        ),
        ModelName::Pythia => (
            ["GPTNeoXForCausalLM", "gpt_neox"],
            sizes([2048, 8192, 16, 8, 8, 50_304]),
            json!({"layer_norm_eps": 1e-5, "rotary_emb_base": 10_000, "rotary_pct": 0.25,
                "hidden_act": "gelu", "use_parallel_residual": true}),
        ),
        ModelName::SmolLm2 => (
            ["LlamaForCausalLM", "llama"],
            sizes([576, 1536, 30, 9, 3, 49_152]),
            json!({"rms_norm_eps": 1e-5, "rope_theta": 1e5, "tie_word_embeddings": true}),
        ),
        ModelName::Tiny => (
            ["LlamaForCausalLM", "llama"],
            sizes([64, 128, 2, 4, 2, 512]),
            json!({"rms_norm_eps": 1e-5, "rope_theta": 5e5}),
        ),
    };
    merged(base(family, &sizes), more)
}

const fn sizes([hidden, inner, layers, heads, kv_heads, vocab]: [usize; 6]) -> Sizes {
    Sizes {
        hidden,
        inner,
        layers,
        heads,
        kv_heads,
        vocab,
    }
}

/// Entries of every family. No token ends a text: a measurement decides on the number of tokens.
fn base([architecture, model_type]: [&str; 2], sizes: &Sizes) -> Value {
    json!({
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.inner,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "vocab_size": sizes.vocab,
        "max_position_embeddings": CONTEXT,
        "hidden_act": "silu",
        "tie_word_embeddings": false,
        "bos_token_id": null,
        "eos_token_id": null,
        "pad_token_id": null,
    })
}

/// Returns `config` with the entries of `more`, which replace those of the same name.
fn merged(mut config: Value, more: Value) -> Value {
    let entries = more.as_object().into_iter().flatten();
    for (key, value) in entries {
        config[key] = value.clone();
    }
    config
}
