//! The errors of unusable configurations.

use serde_json::json;

use super::{cases, parse, with};

/// Checks the message of each case, without the name of the file.
#[track_caller]
fn assert_messages(table: &str) {
    for (entries, expected) in cases(table) {
        let message = parse(&with(entries)).unwrap_err().to_string();
        assert_eq!(message.strip_prefix("config.json: "), Some(&*expected));
    }
}

#[test]
fn unsupported_rotary_parameters_are_named() {
    assert_messages(
        r#"
        {"rope_scaling": {"rope_type": "ntk", "factor": 4.0}}
            => "rope_scaling.rope_type": expected default, linear, dynamic, llama3, yarn or longrope, found "ntk"
        {"rope_scaling": {"type": "dynamic"}}
            => "rope_scaling.factor": expected a positive number, found nothing
        {"rope_scaling": {"type": "dynamic", "factor": 0.5}}
            => "rope_scaling": expected settings that give a frequency for each pair of components,
            found factor of dynamic rotary scaling: expected at least 1, found 0.5
        {"rope_parameters": {"rope_type": "longrope"}}
            => "rope_parameters.short_factor": expected a list of numbers, found nothing
        {"rope_scaling": {"rope_type": "longrope", "short_factor": [1, 1, 1, 1], "long_factor": [1, 2]}}
            => "rope_scaling": expected settings that give a frequency for each pair of components,
            found rotary scaling long_factor: expected 4 numbers (one per pair), found 2
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "beta_slow": 0}}
            => "rope_parameters.beta_slow": expected a positive number, found 0
        {"rope_scaling": {"type": "linear"}}
            => "rope_scaling.factor": expected a positive number, found nothing
        {"rope_scaling": {"type": "linear", "factor": 0}}
            => "rope_scaling.factor": expected a positive number, found 0
        {"rope_scaling": [1, 2]} => "rope_scaling": expected an object, found a list of 2
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}}
            => "rope_scaling.high_freq_factor": expected more than low_freq_factor, 4, found 4.0
        {"partial_rotary_factor": 0.5} => "partial_rotary_factor": expected 1.0, found 0.5
        {"rope_theta": -1.0} => "rope_theta": expected a positive number, found -1.0
        "#,
    );
}

#[test]
fn impossible_sizes_are_named() {
    assert_messages(
        r#"
        {"head_dim": 1099511627776} => "head_dim": expected at most 65536, found 1099511627776
        {"hidden_size": 0} => "hidden_size": expected a positive integer, found 0
        {"vocab_size": null} => "vocab_size": expected a positive integer, found nothing
        {"num_hidden_layers": -1} => "num_hidden_layers": expected a positive integer, found -1
        {"num_hidden_layers": 1000000} => "num_hidden_layers": expected at most 4096, found 1000000
        {"intermediate_size": 1.5} => "intermediate_size": expected a positive integer, found 1.5
        {"intermediate_size": "112"} => "intermediate_size": expected a positive integer, found "112"
        {"num_key_value_heads": 4}
            => "num_key_value_heads": expected a divisor of num_attention_heads, 6, found 4
        {"num_key_value_heads": 12}
            => "num_key_value_heads": expected a divisor of num_attention_heads, 6, found 12
        {"num_attention_heads": 7}
            => "num_attention_heads": expected a divisor of hidden_size, 48, or a head_dim, found 7
        {"head_dim": 7} => "head_dim": expected an even number, found 7
        {"vocab_size": 18446744073709551615}
            => "vocab_size": expected a size that fits into memory, found 18446744073709551615
        {"intermediate_size": 1152921504606846976}
            => "intermediate_size": expected a size that fits into memory, found 1152921504606846976
        {"max_position_embeddings": 1152921504606846976}
            => "max_position_embeddings": expected a size that fits into memory, found 1152921504606846976
        {"num_attention_heads": 1152921504606846976, "num_key_value_heads": 1, "head_dim": 16}
            => "num_attention_heads": expected a size that fits into memory, found 1152921504606846976
        "#,
    );
}

#[test]
fn entries_of_wrong_kind_are_named() {
    assert_messages(
        r#"
        {"hidden_act": "quick_gelu"}
            => "hidden_act": expected one of silu, swish, gelu, gelu_new, gelu_fast,
            gelu_pytorch_tanh, relu, found "quick_gelu"
        {"tie_word_embeddings": "yes"} => "tie_word_embeddings": expected true or false, found "yes"
        {"rms_norm_eps": 0.0} => "rms_norm_eps": expected a positive number, found 0.0
        {"torch_dtype": "float8_e4m3fn"}
            => "torch_dtype": expected float32, float16 or bfloat16, found "float8_e4m3fn"
        {"eos_token_id": ["</s>"]}
            => "eos_token_id": expected a token id or a list of token ids, found a list of 1
        {"bos_token_id": -2}
            => "bos_token_id": expected a token id or a list of token ids, found -2
        {"quantization_config": {"quant_method": "gptq"}}
            => "quantization_config": expected weights in a float type
            (for quantised ones use GGUF, or sparq convert), found GPTQ
        {"quantization_config": {"quant_method": "awq", "bits": 4}}
            => "quantization_config": expected weights in a float type
            (for quantised ones use GGUF, or sparq convert), found AWQ with 4 bits
        {"quantization": {"group_size": 64, "bits": 4}}
            => "quantization": expected weights in a float type
            (for quantised ones use GGUF, or sparq convert), found MLX with 4 bits
        "#,
    );
    let not_an_object = parse(&json!([1])).unwrap_err().to_string();
    assert!(not_an_object.contains("expected an object, found a list of 1"));
}
