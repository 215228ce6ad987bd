//! The errors of unusable configurations.

use serde_json::{Value, json};

use super::{parse, with};

/// Returns the message of the error, without the name of the file.
#[track_caller]
fn message(entries: Value) -> String {
    let message = parse(&with(entries)).unwrap_err().to_string();
    message.strip_prefix("config.json: ").unwrap().to_string()
}

#[test]
fn unsupported_rotary_parameters_are_named() {
    let kinds = "expected default, linear or llama3";
    let cases = [
        (
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
            format!("\"rope_scaling.rope_type\": {kinds}, found \"yarn\""),
        ),
        (
            json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
            format!("\"rope_scaling.type\": {kinds}, found \"dynamic\""),
        ),
        (
            json!({"rope_parameters": {"rope_type": "longrope"}}),
            format!("\"rope_parameters.rope_type\": {kinds}, found \"longrope\""),
        ),
        (
            json!({"rope_scaling": {"type": "linear"}}),
            "\"rope_scaling.factor\": expected a positive number, found nothing".into(),
        ),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 0}}),
            "\"rope_scaling.factor\": expected a positive number, found 0".into(),
        ),
        (
            json!({"rope_scaling": [1, 2]}),
            "\"rope_scaling\": expected an object, found a list of 2".into(),
        ),
        (
            json!({"rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            }}),
            "\"rope_scaling.high_freq_factor\": expected more than low_freq_factor, 4, found 4.0".into(),
        ),
        (
            json!({"rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            }}),
            "\"rope_scaling.original_max_position_embeddings\": expected a positive integer, found nothing".into(),
        ),
        (
            json!({"partial_rotary_factor": 0.5}),
            "\"partial_rotary_factor\": expected 1.0, found 0.5".into(),
        ),
        (
            json!({"rope_theta": -1.0}),
            "\"rope_theta\": expected a positive number, found -1.0".into(),
        ),
    ];
    for (entries, expected) in cases {
        assert_eq!(message(entries), expected);
    }
}

#[test]
fn impossible_sizes_are_named() {
    let cases = [
        (
            json!({"head_dim": 1_u64 << 40}),
            "\"head_dim\": expected at most 65536, found 1099511627776",
        ),
        (
            json!({"hidden_size": 0}),
            "\"hidden_size\": expected a positive integer, found 0",
        ),
        (
            json!({"vocab_size": null}),
            "\"vocab_size\": expected a positive integer, found nothing",
        ),
        (
            json!({"num_hidden_layers": -1}),
            "\"num_hidden_layers\": expected a positive integer, found -1",
        ),
        (
            json!({"num_hidden_layers": 1_000_000}),
            "\"num_hidden_layers\": expected at most 4096, found 1000000",
        ),
        (
            json!({"intermediate_size": 1.5}),
            "\"intermediate_size\": expected a positive integer, found 1.5",
        ),
        (
            json!({"intermediate_size": "112"}),
            "\"intermediate_size\": expected a positive integer, found \"112\"",
        ),
        (
            json!({"num_key_value_heads": 4}),
            "\"num_key_value_heads\": expected a divisor of num_attention_heads, 6, found 4",
        ),
        (
            json!({"num_key_value_heads": 12}),
            "\"num_key_value_heads\": expected a divisor of num_attention_heads, 6, found 12",
        ),
        (
            json!({"num_attention_heads": 7}),
            "\"num_attention_heads\": expected a divisor of hidden_size, 48, or a head_dim, found 7",
        ),
        (
            json!({"head_dim": 7}),
            "\"head_dim\": expected an even number, found 7",
        ),
        (
            json!({"vocab_size": u64::MAX}),
            "\"vocab_size\": expected a size that fits into memory, found 18446744073709551615",
        ),
        (
            json!({"intermediate_size": 1u64 << 60}),
            "\"intermediate_size\": expected a size that fits into memory, found 1152921504606846976",
        ),
        (
            json!({"max_position_embeddings": 1u64 << 60}),
            "\"max_position_embeddings\": expected a size that fits into memory, found 1152921504606846976",
        ),
        (
            json!({"num_attention_heads": 1u64 << 60, "num_key_value_heads": 1, "head_dim": 16}),
            "\"num_attention_heads\": expected a size that fits into memory, found 1152921504606846976",
        ),
    ];
    for (entries, expected) in cases {
        assert_eq!(message(entries), expected);
    }
}

#[test]
fn entries_of_wrong_kind_are_named() {
    let cases = [
        (
            json!({"hidden_act": "quick_gelu"}),
            "\"hidden_act\": expected one of silu, swish, gelu, gelu_new, gelu_fast, \
             gelu_pytorch_tanh, relu, found \"quick_gelu\"",
        ),
        (
            json!({"tie_word_embeddings": "yes"}),
            "\"tie_word_embeddings\": expected true or false, found \"yes\"",
        ),
        (
            json!({"rms_norm_eps": 0.0}),
            "\"rms_norm_eps\": expected a positive number, found 0.0",
        ),
        (
            json!({"torch_dtype": "float8_e4m3fn"}),
            "\"torch_dtype\": expected float32, float16 or bfloat16, found \"float8_e4m3fn\"",
        ),
        (
            json!({"eos_token_id": ["</s>"]}),
            "\"eos_token_id\": expected a token id or a list of token ids, found a list of 1",
        ),
        (
            json!({"bos_token_id": -2}),
            "\"bos_token_id\": expected a token id or a list of token ids, found -2",
        ),
        (
            json!({"quantization_config": {"quant_method": "gptq"}}),
            "\"quantization_config\": expected nothing (this quantisation is not supported), found an object of 1",
        ),
    ];
    for (entries, expected) in cases {
        assert_eq!(message(entries), expected);
    }
    let not_an_object = parse(&json!([1])).unwrap_err().to_string();
    assert!(not_an_object.contains("expected an object, found a list of 1"));
}
