//! `config.json`, with weights that fit some configurations: every model that loads has to run.

use std::sync::LazyLock;

use burn::tensor::{Device, FloatDType, Tensor};
use serde_json::{Map, json};
use sparq::{Method, SparqConfig};
use sparq_models::{
    CausalLm, Decoder, DecoderConfig, checkpoint::Checkpoint, config::Architecture,
};

use super::accepted;

/// Sizes of the model that the weights fit.
const VOCAB: usize = 16;
const HIDDEN: usize = 8;
const HEAD_DIM: usize = 4;

pub(super) fn run(data: &[u8]) -> bool {
    let weights: &'static [u8] = &WEIGHTS;
    let checkpoint = Checkpoint::from_bytes("model", data, weights);
    let Some(checkpoint) = accepted(checkpoint, "config.json") else {
        return false;
    };
    for family in Architecture::ALL {
        let config = family.read(checkpoint.config(), checkpoint.config_path());
        if let Some(config) = accepted(config, "config.json") {
            let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
            assert!(heads.is_multiple_of(kv_heads));
            for rotary in std::iter::once(&config.rotary).chain(&config.local_rotary) {
                assert!(rotary.frequencies().is_ok());
            }
        }
    }
    let config = DecoderConfig::from_checkpoint(&checkpoint);
    let Some(config) = accepted(config, "config.json") else {
        return false;
    };
    let (device, dtype) = (Device::default(), FloatDType::F32);
    let model = Decoder::load(&checkpoint, &config, dtype, &device);
    // The error is about a tensor: its message names the file of weights.
    let Some(model) = accepted(model, "model") else {
        return false;
    };
    let method = Method::from(SparqConfig::new(HEAD_DIM / 2, 2));
    let mut cache = model.new_cache(1, 2, dtype, &method).unwrap();
    let prompt = Tensor::from_ints([[1, 5, 2, 9]], &device);
    let logits = model.prefill(prompt, &mut cache, 1).unwrap();
    assert_eq!(logits.dims(), [1, 1, VOCAB]);
    let logits = model.decode(Tensor::from_ints([[3]], &device), &mut cache, &method);
    assert_eq!(logits.unwrap().dims(), [1, 1, VOCAB]);
    true
}

/// Weights for two layers of every family: two query heads and one KV head, or two KV heads for a
/// family without grouped-query attention.
static WEIGHTS: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("gpt_neox.embed_in.weight".into(), vec![VOCAB, HIDDEN]),
        ("lm_head.weight".into(), vec![VOCAB, HIDDEN]),
        ("embed_out.weight".into(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".into(), vec![HIDDEN]),
        ("gpt_neox.final_layer_norm.weight".into(), vec![HIDDEN]),
        ("gpt_neox.final_layer_norm.bias".into(), vec![HIDDEN]),
    ];
    let norms = [
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ];
    let llama = [
        ("self_attn.q_proj", 2 * HEAD_DIM),
        ("self_attn.k_proj", HEAD_DIM),
        ("self_attn.v_proj", HEAD_DIM),
        ("self_attn.o_proj", HIDDEN),
        ("mlp.gate_proj", HIDDEN),
        ("mlp.up_proj", HIDDEN),
        ("mlp.down_proj", HIDDEN),
        ("self_attn.qkv_proj", 4 * HEAD_DIM),
        ("mlp.gate_up_proj", 2 * HIDDEN),
        ("mlp.gate", 2),
        ("mlp.experts.0.gate_proj", HIDDEN),
        ("mlp.experts.0.up_proj", HIDDEN),
        ("mlp.experts.0.down_proj", HIDDEN),
        ("mlp.experts.1.gate_proj", HIDDEN),
        ("mlp.experts.1.up_proj", HIDDEN),
        ("mlp.experts.1.down_proj", HIDDEN),
        ("block_sparse_moe.gate", 2),
        ("block_sparse_moe.experts.0.w1", HIDDEN),
        ("block_sparse_moe.experts.0.w2", HIDDEN),
        ("block_sparse_moe.experts.0.w3", HIDDEN),
        ("block_sparse_moe.experts.1.w1", HIDDEN),
        ("block_sparse_moe.experts.1.w2", HIDDEN),
        ("block_sparse_moe.experts.1.w3", HIDDEN),
    ];
    let gpt_neox = [
        ("attention.query_key_value", 6 * HEAD_DIM),
        ("attention.dense", HIDDEN),
        ("mlp.dense_h_to_4h", HIDDEN),
        ("mlp.dense_4h_to_h", HIDDEN),
    ];
    for layer in 0..2 {
        for (layers, linears) in [("model.layers", &llama[..]), ("gpt_neox.layers", &gpt_neox)] {
            for norm in norms {
                shapes.push((format!("{layers}.{layer}.{norm}.weight"), vec![HIDDEN]));
                shapes.push((format!("{layers}.{layer}.{norm}.bias"), vec![HIDDEN]));
            }
            for &(linear, out) in linears {
                let weight = format!("{layers}.{layer}.{linear}.weight");
                shapes.push((weight, vec![out, HIDDEN]));
                shapes.push((format!("{layers}.{layer}.{linear}.bias"), vec![out]));
            }
        }
        for norm in ["q_norm", "k_norm"] {
            let weight = format!("model.layers.{layer}.self_attn.{norm}.weight");
            shapes.push((weight, vec![HEAD_DIM]));
        }
    }
    file(&shapes)
});

/// Returns a safetensors file with tensors of these shapes and arbitrary numbers.
fn file(shapes: &[(String, Vec<usize>)]) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, shape) in shapes {
        let start = data.len();
        for at in 0..shape.iter().product::<usize>() {
            data.extend((((at * 37 + start) % 64) as f32 / 64.0 - 0.4).to_le_bytes());
        }
        let offsets = [start, data.len()];
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": offsets});
        header.insert(name.clone(), entry);
    }
    let header = serde_json::Value::Object(header).to_string().into_bytes();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend(data);
    bytes
}
