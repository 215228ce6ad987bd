//! The configuration of a model, in all forms of a checkpoint.

mod errors;
mod families;

use std::{fs, path::Path};

use crate::support::{assert_contains, f32_bytes, fixture, folder, safetensors};
use burn::tensor::FloatDType;
use safetensors::Dtype;
use serde_json::{Value, json};
use sparq::RotaryConfig;
use sparq::ops::RotaryScaling;
use sparq_models::DecoderConfig;
use sparq_models::checkpoint::Checkpoint;
use sparq_models::config::{
    Architecture, ConfigError, HiddenAct, Keys, NormKind, QkNorm, Residual,
};

/// Returns the keys without a default.
fn minimal() -> Value {
    json!({
        "hidden_size": 48, "intermediate_size": 112, "num_hidden_layers": 3, "num_attention_heads": 6, "vocab_size": 199
    })
}

/// Returns [`minimal`] with these entries added or replaced.
fn with(entries: Value) -> Value {
    let mut config = minimal();
    let object = config.as_object_mut().unwrap();
    object.extend(entries.as_object().unwrap().clone());
    config
}

/// Parses cases of the form `{entries} => message`. A case begins with the less indented line, and
/// may have several.
fn cases(table: &str) -> Vec<(Value, String)> {
    let table = table.trim().replace("\n            ", " ");
    let case = |line: &str| {
        let (entries, message) = line.split_once(" => ").unwrap();
        (serde_json::from_str(entries).unwrap(), message.to_owned())
    };
    table.lines().map(str::trim).map(case).collect()
}

fn parse(config: &Value) -> Result<DecoderConfig, ConfigError> {
    Architecture::Llama.read(config, Path::new("config.json"))
}

fn of_fixture(name: &str) -> DecoderConfig {
    let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
    assert_eq!(Architecture::of(&checkpoint).unwrap(), Architecture::Llama);
    DecoderConfig::from_checkpoint(&checkpoint).unwrap()
}

#[test]
fn fixtures_are_read_in_full() {
    let llama2 = DecoderConfig {
        hidden_size: 32,
        intermediate_size: 64,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        num_key_value_heads: 4,
        head_dim: 8,
        vocab_size: 96,
        max_position_embeddings: 256,
        rotary: RotaryConfig::new(8),
        local_rotary: None,
        rope_layers: vec![],
        norm: NormKind::Rms { epsilon: 1e-6 },
        residual: Residual::Serial,
        residual_scale: None,
        qk_norm: QkNorm::Heads,
        query_scale: None,
        attention_softcap: None,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        hidden_act: HiddenAct::Silu,
        experts: None,
        embed_scale: None,
        logits_scale: None,
        logits_softcap: None,
        windows: vec![],
        tie_word_embeddings: false,
        keys: Keys::LLAMA,
        bos_token_id: Some(1),
        eos_token_id: vec![2],
        pad_token_id: Some(0),
        dtype: Some(FloatDType::F32),
    };
    assert_eq!(of_fixture("llama2"), llama2);
    let llama3 = DecoderConfig {
        num_key_value_heads: 2,
        rotary: RotaryConfig::new(8)
            .with_theta(500_000.0)
            .with_scaling(RotaryScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: 64,
            }),
        ..llama2.clone()
    };
    assert_eq!(of_fixture("llama3"), llama3);
    let tied = DecoderConfig {
        num_key_value_heads: 2,
        head_dim: 16,
        rotary: RotaryConfig::new(16),
        tie_word_embeddings: true,
        ..llama2
    };
    assert_eq!(of_fixture("llama_tied_head_dim"), tied);
}

#[test]
fn embedded_model_is_read() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("embedded");
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let config = DecoderConfig::from_checkpoint(&checkpoint).unwrap();
    assert_eq!((config.vocab_size, config.head_dim), (256, 64));
    assert_eq!(config.dtype, Some(FloatDType::F16));
    assert_eq!((config.bos_token_id, config.eos_token_id), (None, vec![]));
    assert_eq!(
        checkpoint.entry("model.embed_tokens.weight").unwrap().shape,
        [256, 256]
    );
}

#[test]
fn defaults_are_those_of_transformers() {
    let config = parse(&minimal()).unwrap();
    assert_eq!((config.num_key_value_heads, config.head_dim), (6, 8));
    assert_eq!(
        (config.norm.epsilon(), config.max_position_embeddings),
        (1e-6, 2048)
    );
    assert_eq!(
        (config.rotary.theta, config.rotary.scaling),
        (10_000.0, RotaryScaling::None)
    );
    assert_eq!(config.hidden_act, HiddenAct::Silu);
    assert!(!config.tie_word_embeddings && !config.qkv_bias && !config.o_bias && !config.mlp_bias);
    assert_eq!(
        (config.bos_token_id, config.pad_token_id, config.dtype),
        (None, None, None)
    );
    let nulls = json!({
        "num_key_value_heads": null, "head_dim": null, "rope_scaling": null,
        "rope_parameters": null, "pad_token_id": null,
        "eos_token_id": null, "torch_dtype": null, "attention_bias": null
    });
    assert_eq!(parse(&with(nulls)).unwrap(), parse(&minimal()).unwrap());
}

#[test]
fn rotary_reads_the_older_and_the_newer_form() {
    let llama3 = json!({
        "factor": 32.0, "low_freq_factor": 1, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192
    });
    let with_entries = |mut base: Value, entries: Value| {
        let object = base.as_object_mut().unwrap();
        object.extend(entries.as_object().unwrap().clone());
        base
    };
    let scaled = RotaryScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let cases = [
        (json!({"rope_theta": 5e5}), 5e5, RotaryScaling::None),
        (
            json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}}),
            5e5,
            RotaryScaling::Linear { factor: 2.0 },
        ),
        (
            json!({"rope_theta": 5e5, "rope_scaling": with_entries(llama3.clone(), json!({"rope_type": "llama3"}))}),
            5e5,
            scaled.clone(),
        ),
        // Some files have both names of the type: the newer one counts.
        (
            json!({"rope_scaling": with_entries(llama3.clone(), json!({"rope_type": "llama3", "type": "x"}))}),
            1e4,
            scaled.clone(),
        ),
        (
            json!({"rope_parameters": with_entries(llama3, json!({"rope_type": "llama3", "rope_theta": 5e5}))}),
            5e5,
            scaled,
        ),
        (
            json!({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}}),
            1e6,
            RotaryScaling::Linear { factor: 4.0 },
        ),
        (
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rope_theta": 7.0}),
            1e6,
            RotaryScaling::None,
        ),
        (
            json!({"rope_parameters": {"rope_type": "default"}, "rope_theta": 7.0}),
            7.0,
            RotaryScaling::None,
        ),
        (
            json!({"partial_rotary_factor": 1.0}),
            1e4,
            RotaryScaling::None,
        ),
        // The older form takes the place of the whole newer one, base included.
        (
            json!({
                "rope_parameters": {"rope_type": "default", "rope_theta": 77777.0},
                "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            }),
            1e4,
            RotaryScaling::Linear { factor: 2.0 },
        ),
        (
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}, "rope_scaling": {}}),
            7.0,
            RotaryScaling::None,
        ),
    ];
    for (entries, theta, scaling) in cases {
        let config = parse(&with(entries.clone())).unwrap();
        assert_eq!(
            (config.rotary.theta, config.rotary.scaling),
            (theta, scaling),
            "{entries}"
        );
    }
}

#[test]
fn long_context_scalings_are_read() {
    let scaling = |entries: Value| parse(&with(entries)).unwrap().rotary.scaling;
    let yarn = |factor, attention_factor| RotaryScaling::Yarn {
        factor,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
        original_max_position_embeddings: 64,
        attention_factor,
    };
    let original = json!({"rope_scaling": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64
    }});
    assert_eq!(scaling(original), yarn(4.0, 0.1 * 4f64.ln() + 1.0));
    // The context of the training at the top level counts first, and gives a missing factor.
    let ratio = json!({
        "max_position_embeddings": 512, "original_max_position_embeddings": 64,
        "rope_scaling": {
            "type": "yarn", "factor": null, "mscale": 1.0, "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 7
        },
    });
    assert_eq!(scaling(ratio), yarn(8.0, 1.0));
    let dynamic = json!({
        "max_position_embeddings": 512, "rope_scaling": {"type": "dynamic", "factor": 2.0}
    });
    let expected = RotaryScaling::Dynamic {
        factor: 2.0,
        original_max_position_embeddings: 512,
    };
    assert_eq!(scaling(dynamic), expected);
    let longrope = json!({
        "max_position_embeddings": 512, "original_max_position_embeddings": 64,
        "rope_scaling": {
            "type": "longrope", "short_factor": [1, 1, 1, 1.5], "long_factor": [1, 2, 3, 4]
        },
    });
    let expected = RotaryScaling::LongRope {
        short_factor: vec![1.0, 1.0, 1.0, 1.5],
        long_factor: vec![1.0, 2.0, 3.0, 4.0],
        original_max_position_embeddings: 64,
        attention_factor: (1.0 + 8f64.ln() / 64f64.ln()).sqrt(),
    };
    assert_eq!(scaling(longrope), expected);
    let llama3 = json!({"max_position_embeddings": 512, "rope_scaling": {
        "type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4
    }});
    let RotaryScaling::Llama3 {
        original_max_position_embeddings,
        ..
    } = scaling(llama3)
    else {
        panic!("the type is llama3");
    };
    assert_eq!(original_max_position_embeddings, 512);
}

#[test]
fn numbers_that_are_not_finite_are_read_where_unused() {
    let weights = safetensors(&[("a", Dtype::F32, &[1], f32_bytes(&[1.0]))]);
    let open = |entry: &str| {
        let config = with(json!({"model_type": "llama"})).to_string();
        let config = config.replacen('{', &format!("{{{entry}, "), 1);
        let dir = folder(&[
            ("config.json", config.as_bytes()),
            ("model.safetensors", &weights),
        ]);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        DecoderConfig::from_checkpoint(&checkpoint).map_err(|error| error.to_string())
    };
    assert!(open(r#""time_step_limit": [0.0, Infinity], "x": NaN"#).is_ok());
    let error = open(r#""rms_norm_eps": -Infinity"#).unwrap_err();
    let expected = "\"rms_norm_eps\": expected a positive number, found \"-Infinity\"";
    assert_contains(&error, &[expected]);
}

#[test]
fn token_ids_are_numbers_lists_or_absent() {
    let ids = |entries| {
        let config = parse(&with(entries)).unwrap();
        (
            config.bos_token_id,
            config.eos_token_id,
            config.pad_token_id,
        )
    };
    assert_eq!(
        ids(json!({"bos_token_id": 1, "eos_token_id": [2, u32::MAX, -1, 3], "pad_token_id": -1})),
        (Some(1), vec![2, 3], None)
    );
    assert_eq!(
        ids(json!({"bos_token_id": u32::MAX, "eos_token_id": u32::MAX, "pad_token_id": null})),
        (None, vec![], None)
    );
    assert_eq!(
        ids(json!({"bos_token_id": [5], "eos_token_id": 7, "pad_token_id": 198})),
        (Some(5), vec![7], Some(198))
    );
    // Both exceed an embedding of 199 tokens.
    assert_eq!(
        ids(json!({"bos_token_id": 199, "pad_token_id": 32000})),
        (None, vec![], None)
    );
}

#[test]
fn dtype_has_an_older_and_a_newer_key() {
    let dtype = |entries| parse(&with(entries)).unwrap().dtype;
    assert_eq!(
        dtype(json!({"torch_dtype": "bfloat16"})),
        Some(FloatDType::BF16)
    );
    assert_eq!(dtype(json!({"dtype": "float16"})), Some(FloatDType::F16));
    assert_eq!(
        dtype(json!({"dtype": "torch.float32", "torch_dtype": "float16"})),
        Some(FloatDType::F32)
    );
}

#[test]
fn end_tokens_of_generation_config_come_first() {
    let weights = safetensors(&[("a", Dtype::F32, &[1], f32_bytes(&[1.0]))]);
    let config = with(json!({"model_type": "llama", "eos_token_id": 2})).to_string();
    let dir = folder(&[
        ("config.json", config.as_bytes()),
        ("model.safetensors", &weights),
    ]);
    let read = || DecoderConfig::from_checkpoint(&Checkpoint::open(dir.path()).unwrap());
    assert_eq!(read().unwrap().eos_token_id, [2]);
    let path = dir.path().join("generation_config.json");
    fs::write(&path, r#"{"eos_token_id": [9, 2, 4]}"#).unwrap();
    assert_eq!(read().unwrap().eos_token_id, [9, 2, 4]);
    fs::write(&path, r#"{"eos_token_id": 9}"#).unwrap();
    assert_eq!(read().unwrap().eos_token_id, [9]);
    fs::write(&path, r#"{"eos_token_id": -1}"#).unwrap();
    assert_eq!(read().unwrap().eos_token_id, [2]);
    fs::write(&path, r#"{"eos_token_id": "</s>"}"#).unwrap();
    let error = read().unwrap_err().to_string();
    assert_contains(&error, &["generation_config.json: \"eos_token_id\""]);
    fs::write(&path, "{").unwrap();
    let error = read().unwrap_err().to_string();
    assert_contains(&error, &["generation_config.json: not valid JSON"]);
}
