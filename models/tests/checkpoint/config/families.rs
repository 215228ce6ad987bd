//! The differences between families, in the forms of transformers 4 and 5.

use std::path::Path;

use serde_json::{Value, json};
use sparq::ops::RotaryScaling;
use sparq_models::DecoderConfig;
use sparq_models::checkpoint::Checkpoint;
use sparq_models::config::{Architecture, HiddenAct, NormKind, Residual};

use super::{cases, with};
use crate::support::fixture;

fn of_fixture(name: &str) -> DecoderConfig {
    DecoderConfig::from_checkpoint(&Checkpoint::open(&fixture(name)).unwrap()).unwrap()
}

/// Reads the smallest configuration of a family with these entries added or replaced.
fn read(architecture: Architecture, entries: Value) -> Result<DecoderConfig, String> {
    let config = architecture.read(&with(entries), Path::new("config.json"));
    config.map_err(|error| {
        let error = error.to_string();
        error.strip_prefix("config.json: ").unwrap().to_string()
    })
}

#[test]
fn fixtures_are_read_by_their_family() {
    let mistral = of_fixture("mistral_sliding");
    assert_eq!(mistral.windows, [Some(24); 3]);
    assert_eq!((mistral.head_dim, mistral.num_key_value_heads), (8, 2));

    let gemma = of_fixture("gemma_mqa");
    assert_eq!((gemma.head_dim, gemma.num_key_value_heads), (16, 1));
    assert_eq!(gemma.norm, NormKind::RmsPlusOne { epsilon: 1e-6 });
    assert_eq!(gemma.hidden_act, HiddenAct::GeluTanh);
    assert_eq!(gemma.embed_scale, Some(32f64.sqrt()));
    assert!(gemma.tie_word_embeddings);

    let neox = of_fixture("gpt_neox");
    assert_eq!(
        (neox.rotary.rotary_dim, neox.num_key_value_heads),
        (Some(2), 4)
    );
    assert_eq!(neox.norm, NormKind::Layer { epsilon: 1e-5 });
    assert_eq!(neox.residual, Residual::Parallel);
    assert!(neox.qkv_bias && neox.o_bias && neox.mlp_bias);
    let serial = of_fixture("gpt_neox_serial");
    assert_eq!(serial.residual, Residual::Serial);
    assert_eq!(serial.rotary.rotary_dim, None);

    let qwen2 = of_fixture("qwen2");
    assert!(qwen2.qkv_bias && !qwen2.o_bias && !qwen2.mlp_bias);
    assert_eq!(qwen2.keys.qk_norm, None);
    assert_eq!(qwen2.windows, [None; 3]);
    let qwen3 = of_fixture("qwen3");
    assert!(!qwen3.qkv_bias && qwen3.keys.qk_norm.is_some());
    assert_eq!(qwen3.head_dim, 16);
}

#[test]
fn defaults_are_those_of_the_family() {
    let read = |architecture| read(architecture, json!({"head_dim": 8})).unwrap();
    let mistral = read(Architecture::Mistral);
    assert_eq!(mistral.windows, [Some(4096); 3]);
    assert_eq!(mistral.max_position_embeddings, 131_072);
    let gemma = super::with(json!({}));
    let gemma = Architecture::Gemma
        .read(&gemma, Path::new("config.json"))
        .unwrap();
    assert_eq!((gemma.head_dim, gemma.max_position_embeddings), (256, 8192));
    assert!(gemma.tie_word_embeddings);
    let neox = read(Architecture::GptNeox);
    assert_eq!(neox.rotary.rotary_dim, Some(2));
    assert_eq!((neox.rotary.theta, neox.hidden_act), (1e4, HiddenAct::Gelu));
    assert_eq!(neox.residual, Residual::Parallel);
    assert!(neox.qkv_bias && !neox.tie_word_embeddings);
    for architecture in [Architecture::Qwen2, Architecture::Qwen3] {
        let qwen = read(architecture);
        assert_eq!(qwen.windows, [None; 3]);
        assert_eq!(qwen.max_position_embeddings, 32_768);
    }
}

#[test]
fn rotary_part_has_three_names() {
    let neox = |entries| read(Architecture::GptNeox, entries);
    let cases = [
        (json!({"rotary_pct": 0.5}), Some(4), 1e4),
        (
            json!({"rotary_pct": 1.0, "rotary_emb_base": 500}),
            None,
            500.0,
        ),
        (
            json!({"partial_rotary_factor": 0.75, "rotary_pct": 0.5}),
            Some(6),
            1e4,
        ),
        (
            json!({
                "rope_parameters": {
                    "rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 7.0,
                },
                "rotary_pct": 1.0,
            }),
            Some(4),
            7.0,
        ),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 9.0, "rotary_emb_base": 500}),
            Some(2),
            9.0,
        ),
    ];
    for (entries, dim, theta) in cases {
        let rotary = neox(entries.clone()).unwrap().rotary;
        assert_eq!((rotary.rotary_dim, rotary.theta), (dim, theta), "{entries}");
    }
    let linear = json!({"rope_scaling": {"type": "linear", "factor": 2.0}});
    let scaling = neox(linear).unwrap().rotary.scaling;
    assert_eq!(scaling, RotaryScaling::Linear { factor: 2.0 });
}

#[test]
fn windows_apply_to_all_some_or_no_layers() {
    let windows = |architecture, entries: Value| {
        let config = read(architecture, entries).unwrap();
        [0, 1, 2].map(|layer| config.window(layer))
    };
    let types = |names: [&str; 3]| names.map(|name| format!("{name}_attention"));
    let (mistral, qwen) = (Architecture::Mistral, Architecture::Qwen2);
    assert_eq!(windows(mistral, json!({"sliding_window": null})), [None; 3]);
    assert_eq!(windows(mistral, json!({"sliding_window": 7})), [Some(7); 3]);
    let some = json!({"sliding_window": 7, "layer_types": types(["full", "sliding", "full"])});
    assert_eq!(windows(mistral, some), [None, Some(7), None]);

    let unused = json!({"sliding_window": 7, "max_window_layers": 0});
    assert_eq!(windows(qwen, unused), [None; 3]);
    let used = json!({"sliding_window": 7, "max_window_layers": 2, "use_sliding_window": true});
    assert_eq!(windows(qwen, used.clone()), [None, None, Some(7)]);
    assert_eq!(windows(Architecture::Qwen3, used), [None, None, Some(7)]);
    let all = json!({"use_sliding_window": true, "max_window_layers": 0});
    assert_eq!(windows(qwen, all), [Some(4096); 3]);
    let some = json!({
        "sliding_window": 7, "use_sliding_window": true,
        "layer_types": types(["sliding", "full", "sliding"]),
    });
    assert_eq!(windows(qwen, some), [Some(7), None, Some(7)]);
}

#[test]
fn unsupported_settings_are_named() {
    let tables = [
        (
            Architecture::Mistral,
            r#"
        {"sliding_window": 0} => "sliding_window": expected a positive integer, found 0
        {"sliding_window": 2147483648}
            => "sliding_window": expected at most 2147483647, found 2147483648
        {"layer_types": ["full_attention"]} => "layer_types": expected a list of 3, found a list of 1
        {"layer_types": [1]} => "layer_types": expected a list of strings, found a list of 1
        {"layer_types": ["full_attention", "full_attention", "linear_attention"]}
            => "layer_types.2": expected full_attention or sliding_attention, found "linear_attention"
            "#,
        ),
        (
            Architecture::Qwen2,
            r#"
        {"layer_types": ["sliding_attention", "full_attention", "full_attention"], "sliding_window": 7}
            => "layer_types.0": expected full_attention, since no sliding_window is in use,
            found "sliding_attention"
        {"max_window_layers": -1}
            => "max_window_layers": expected an integer that is not negative, found -1
        {"partial_rotary_factor": 0.5} => "partial_rotary_factor": expected 1.0, found 0.5
            "#,
        ),
        (
            Architecture::Gemma,
            r#"
        {"use_bidirectional_attention": true}
            => "use_bidirectional_attention": expected false, found true
        {"hidden_activation": "x"}
            => "hidden_activation": expected one of silu, swish, gelu, gelu_new, gelu_fast,
            gelu_pytorch_tanh, relu, found "x"
            "#,
        ),
        (
            Architecture::GptNeox,
            r#"
        {"layer_norm_eps": 0} => "layer_norm_eps": expected a positive number, found 0
        {"use_parallel_residual": "no"}
            => "use_parallel_residual": expected true or false, found "no"
        {"rotary_pct": 0.4}
            => "head_dim": expected an even number of components that RoPE rotates, found 3 of 8
        {"rotary_pct": 0.01}
            => "head_dim": expected an even number of components that RoPE rotates, found 0 of 8
        {"rotary_pct": 1.5} => "rotary_pct": expected at most 1.0, found 1.5
        {"rope_parameters": {"partial_rotary_factor": -1}}
            => "rope_parameters.partial_rotary_factor": expected a positive number, found -1
            "#,
        ),
    ];
    for (architecture, table) in tables {
        for (entries, expected) in cases(table) {
            assert_eq!(read(architecture, entries).unwrap_err(), expected);
        }
    }
}
