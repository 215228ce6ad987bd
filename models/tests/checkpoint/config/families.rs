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
    let mut config = with(entries);
    // The default of some families is no divisor of the number of heads here.
    let entries = config.as_object_mut().unwrap();
    entries.entry("num_key_value_heads").or_insert(json!(2));
    let config = architecture.read(&config, Path::new("config.json"));
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
    let read_with = read;
    let read = |architecture| read(architecture, json!({"head_dim": 8})).unwrap();
    let mistral = read(Architecture::Mistral);
    assert_eq!(mistral.windows, [Some(4096); 3]);
    assert_eq!(mistral.max_position_embeddings, 131_072);
    let gemma = read_with(Architecture::Gemma, json!({})).unwrap();
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
fn absent_sizes_are_those_of_the_family() {
    use Architecture::{
        Gemma, Gemma2, Gemma3, Granite, Llama, Mistral, Mixtral, Olmo2, Phi3, Qwen2, Qwen3,
        Qwen3Moe, SmolLm3,
    };
    // KV heads, components of a head, epsilon and base.
    let cases = [
        (Llama, 32, 2, 1e-6, 1e4),
        (Mistral, 8, 2, 1e-6, 1e4),
        (Mixtral, 8, 2, 1e-5, 1e6),
        (Qwen2, 32, 2, 1e-6, 1e4),
        (Qwen3, 32, 128, 1e-6, 1e4),
        (Qwen3Moe, 4, 2, 1e-6, 1e4),
        (Gemma, 16, 256, 1e-6, 1e4),
        (Gemma2, 4, 256, 1e-6, 1e4),
        (Gemma3, 4, 256, 1e-6, 1e6),
        (Phi3, 32, 2, 1e-5, 1e4),
        (SmolLm3, 4, 2, 1e-6, 2e6),
        (Olmo2, 32, 2, 1e-5, 1e4),
        (Granite, 32, 2, 1e-6, 1e4),
    ];
    for (architecture, kv_heads, head_dim, epsilon, theta) in cases {
        let entries = json!({"num_attention_heads": 32, "hidden_size": 64});
        let path = Path::new("config.json");
        let config = architecture.read(&with(entries), path).unwrap();
        let found = (config.num_key_value_heads, config.head_dim);
        assert_eq!(found, (kv_heads, head_dim), "{architecture:?}");
        let found = (config.norm.epsilon(), config.rotary.theta);
        assert_eq!(found, (epsilon, theta), "{architecture:?}");
        let null = json!({
            "num_attention_heads": 32, "hidden_size": 64, "num_key_value_heads": null
        });
        let config = architecture.read(&with(null), path).unwrap();
        assert_eq!(config.num_key_value_heads, 32, "{architecture:?}");
    }
}

#[test]
fn gemma_3_reads_two_ropes_in_both_forms() {
    let of = |entries| {
        let config = read(Architecture::Gemma3, entries).unwrap();
        let local = config.local_rotary.unwrap();
        let [global, local] = [config.rotary, local].map(|rotary| (rotary.theta, rotary.scaling));
        (global, local)
    };
    let linear = RotaryScaling::Linear { factor: 8.0 };
    let none = RotaryScaling::None;
    let default = ((1e6, none.clone()), (1e4, none.clone()));
    assert_eq!(of(json!({})), default);
    let older = json!({
        "rope_theta": 5e5, "rope_local_base_freq": 2e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}
    });
    let expected = ((5e5, linear), (2e4, none));
    assert_eq!(of(older), expected);
    let newer = json!({"rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}
    }});
    assert_eq!(of(newer), expected);

    let config = read(Architecture::Gemma3, json!({"sliding_window_pattern": 2})).unwrap();
    assert_eq!(config.windows, [Some(4096), None, Some(4096)]);
    assert_eq!(config.rotary_of(0), config.local_rotary.as_ref());
    assert_eq!(config.rotary_of(1), Some(&config.rotary));
}

#[test]
fn gemma_2_scales_queries_and_bounds_logits() {
    let config = |entries| read(Architecture::Gemma2, entries).unwrap();
    let default = config(json!({}));
    let bounds = |config: &DecoderConfig| (config.attention_softcap, config.logits_softcap);
    assert_eq!(bounds(&default), (Some(50.0), Some(30.0)));
    assert_eq!(default.query_scale, None);
    assert_eq!(default.windows, [Some(4096), None, Some(4096)]);
    let other = config(json!({
        "head_dim": 8, "query_pre_attn_scalar": 2, "attn_logit_softcapping": null,
        "final_logit_softcapping": 5.0
    }));
    assert_eq!(other.query_scale, Some(2.0));
    assert_eq!(bounds(&other), (None, Some(5.0)));
}

#[test]
fn smollm3_has_layers_without_rope() {
    let rope = |entries| {
        let config = read(Architecture::SmolLm3, entries).unwrap();
        [0, 1, 2].map(|layer| config.rotary_of(layer).is_some())
    };
    assert_eq!(rope(json!({})), [true; 3]);
    assert_eq!(
        rope(json!({"no_rope_layer_interval": 2})),
        [true, false, true]
    );
    assert_eq!(
        rope(json!({"no_rope_layers": [0, 1, 0]})),
        [false, true, false]
    );
    let window = json!({
        "no_rope_layer_interval": 2, "use_sliding_window": true, "sliding_window": 7
    });
    let config = read(Architecture::SmolLm3, window).unwrap();
    assert_eq!(config.windows, [None, Some(7), None]);
}

#[test]
fn granite_has_four_multipliers() {
    let config = read(Architecture::Granite, json!({"head_dim": 16})).unwrap();
    assert_eq!((config.embed_scale, config.logits_scale), (None, None));
    assert_eq!(
        (config.query_scale, config.residual_scale),
        (Some(4.0), None)
    );
    let entries = json!({
        "head_dim": 16, "embedding_multiplier": 12, "logits_scaling": 8.0,
        "residual_multiplier": 0.22, "attention_multiplier": 0.25
    });
    let config = read(Architecture::Granite, entries).unwrap();
    assert_eq!(
        (config.embed_scale, config.logits_scale),
        (Some(12.0), Some(0.125))
    );
    assert_eq!(
        (config.query_scale, config.residual_scale),
        (None, Some(0.22))
    );
}

#[test]
fn experts_are_in_some_or_all_layers() {
    let experts = |architecture, entries| read(architecture, entries).unwrap().experts.unwrap();
    let mixtral = experts(Architecture::Mixtral, json!({}));
    assert_eq!(
        (mixtral.count, mixtral.per_token, mixtral.renormalize),
        (8, 2, true)
    );
    assert_eq!(
        (mixtral.intermediate_size, mixtral.layers),
        (112, vec![true; 3])
    );
    let qwen = |entries| experts(Architecture::Qwen3Moe, entries);
    let default = qwen(json!({}));
    assert_eq!(
        (default.count, default.per_token, default.renormalize),
        (128, 8, false)
    );
    assert_eq!(
        (default.intermediate_size, default.layers),
        (768, vec![true; 3])
    );
    let step = qwen(json!({"decoder_sparse_step": 2, "num_experts": 16}));
    assert_eq!((step.count, step.layers), (16, vec![false, true, false]));
    let some = qwen(json!({"mlp_only_layers": [2], "num_local_experts": 9}));
    assert_eq!((some.count, some.layers), (9, vec![true, true, false]));
    let error = read(Architecture::Mixtral, json!({"num_experts_per_tok": 9})).unwrap_err();
    assert_eq!(
        error,
        "\"num_experts_per_tok\": expected at most the 8 experts, found 9"
    );
}

#[test]
fn old_names_of_longrope_are_known() {
    let entries = |name: &str| {
        json!({
            "head_dim": 8, "partial_rotary_factor": 0.5, "max_position_embeddings": 8192,
            "rope_scaling": {"type": name, "short_factor": [1, 1], "long_factor": [1, 2]}
        })
    };
    for name in ["su", "yarn", "longrope"] {
        let rotary = read(Architecture::Phi3, entries(name)).unwrap().rotary;
        assert_eq!(rotary.rotary_dim, Some(4));
        assert_eq!(rotary.scaling.changes_after(), Some(4096), "{name}");
    }
    assert!(read(Architecture::Llama, json!({"rope_scaling": {"type": "su"}})).is_err());
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
