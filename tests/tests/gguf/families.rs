//! GGUF files of the families of llama.cpp, compared with the checkpoints they were made from.

use burn::tensor::{Device, FloatDType};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use sparq_models::checkpoint::Checkpoint;
use sparq_models::{Decoder, DecoderConfig};
use sparq_tests::*;

use super::open;
use super::writer::{GgufFile, Meta};

/// Returns the logits of a case's prompt.
fn logits(
    checkpoint: &Checkpoint,
    config: &DecoderConfig,
    case: &str,
    device: &Device,
) -> Vec<f32> {
    let model = Decoder::load(checkpoint, config, FloatDType::F32, device).unwrap();
    let expected = Expected::read(&format!("hf/{case}/expected.safetensors"));
    prefill_logits(&model, &expected)
}

#[test]
fn logits_of_families_equal_those_of_folders() {
    for case in [
        "gemma",
        "gemma2",
        "gemma3",
        "phi3",
        "phi3_longrope",
        "smollm3",
        "olmo2",
        "granite",
        "qwen3",
        "mixtral",
    ] {
        let folder = fixture(&format!("hf/{case}"));
        let mut file = GgufFile::from_folder(&folder);
        // llama.cpp derives it from the number of layers. Here every second layer has no window.
        if case == "gemma3" {
            file.set("gemma3.attention.sliding_window_pattern", Meta::U32(2));
        }
        let gguf = open(&file);
        let original = Checkpoint::open(&folder).unwrap();
        let found = DecoderConfig::from_checkpoint(&gguf).unwrap();
        let mut expected = DecoderConfig::from_checkpoint(&original).unwrap();
        // GGUF has no entry for the scale of Gemma's queries, and none for layers without RoPE.
        if case.starts_with("gemma") {
            expected.query_scale = None;
        }
        let mut found = found;
        if case == "smollm3" {
            assert_eq!(found.rope_layers, [true; 2]);
            found.rope_layers = expected.rope_layers.clone();
        }
        for device in devices() {
            let [found, expected] = [(&gguf, &found), (&original, &expected)]
                .map(|(checkpoint, config)| logits(checkpoint, config, case, &device));
            let worst = max_difference(&found, &expected);
            assert!(worst < 5e-5, "{case} on {device:?}: {worst}");
        }
        assert_eq!(gguf.unused().collect::<Vec<_>>(), [""; 0], "{case}");
    }
}

#[test]
fn every_layer_of_qwen3moe_has_experts() {
    // The second layer of the fixture alone.
    let folder = fixture("hf/qwen3_moe");
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let mut config: Value = serde_json::from_slice(&read("config.json")).unwrap();
    config["num_hidden_layers"] = json!(1);
    config["mlp_only_layers"] = json!([]);
    config["norm_topk_prob"] = json!(true);
    let bytes = read("model.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    let kept = tensors
        .iter()
        .filter(|(name, _)| !name.contains("layers.0."));
    let renamed = kept.map(|(name, view)| {
        let view = TensorView::new(view.dtype(), view.shape().to_vec(), view.data()).unwrap();
        (name.replace("layers.1.", "layers.0."), view)
    });
    let weights = safetensors::serialize(renamed, None).unwrap();
    let gguf = open(&GgufFile::from_checkpoint(
        &config,
        std::slice::from_ref(&weights),
    ));
    let original =
        Checkpoint::from_bytes("qwen3_moe", config.to_string().as_bytes(), weights).unwrap();
    for device in devices() {
        let [found, expected] = [&gguf, &original].map(|checkpoint| {
            let config = DecoderConfig::from_checkpoint(checkpoint).unwrap();
            logits(checkpoint, &config, "qwen3_moe", &device)
        });
        let worst = max_difference(&found, &expected);
        assert!(worst < 5e-5, "{device:?}: {worst}");
    }
    assert_eq!(gguf.unused().collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn fused_matrices_of_another_size_are_named() {
    let mut file = GgufFile::from_folder(&fixture("hf/phi3"));
    file.set("phi3.attention.head_count_kv", Meta::U32(1));
    let (_folder, path) = super::write(&file.bytes());
    let error = Checkpoint::open(&path).unwrap_err().to_string();
    assert_contains(&error, &["attn_qkv.weight", "48 rows", "[64, 32]"]);
}
