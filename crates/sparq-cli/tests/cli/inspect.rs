//! `sparq inspect`: its counts, and the settings of its budgets.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::{
    CONTEXT, Checkpoint, HEAD_DIM, VOCAB, contains, document, has_fields, stdout,
};

#[test]
fn inspect_reads_headers_only() {
    let mut checkpoint = Checkpoint::new();
    // Reading a NaN weight would fail.
    checkpoint.tensors.get_mut("model.norm.weight").unwrap().1[0] = f32::NAN;
    checkpoint.write();
    let found = document(&format!("inspect {} --sketch full", checkpoint.argument()));
    let sizes = checkpoint.tensors.values().map(|(_, values)| values.len());
    let expected = json!({
        "architecture": "LlamaForCausalLM",
        "parameters": sizes.sum::<usize>(),
        "layers": 2,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCAB,
        "context": CONTEXT,
    });
    has_fields(&found["model"], &expected);
    let expected = json!({
        "bytes_per_token": 2 * 2 * HEAD_DIM * 2,
        "sketch_bytes_per_token": 2 * HEAD_DIM * 2,
    });
    has_fields(&found["cache"], &expected);
}

#[test]
fn documents_name_the_embedded_model() {
    // The name is part of the format.
    assert_eq!(
        document("inspect")["model"]["name"],
        "the model inside the program"
    );
}

#[test]
fn settings_keep_every_budget() {
    let found = document("inspect");
    let rows = found["budget"].as_array().unwrap();
    assert_eq!(rows.len(), 6 * 4);
    for row in rows {
        let share = row["settings"]["share"].as_f64().unwrap();
        let ratio = row["ratio"].as_f64().unwrap();
        assert!(share <= ratio && share > 0.5 * ratio, "{row}");
    }
    contains(&stdout("inspect"), &["LlamaForCausalLM", "128k"]);
}

#[test]
fn bytes_follow_the_window_of_each_layer() {
    let hf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/hf");
    let all = document(&format!("inspect {}/mistral_sliding", hf.display()));
    has_fields(
        &all["model"],
        &json!({"sliding_window": 24, "sliding_layers": 3}),
    );
    // 2 W d + 2 d elements of 2 bytes for each of 3 layers with 2 heads of 8, at any length.
    for row in all["budget"].as_array().unwrap() {
        assert_eq!(row["dense_bytes"], 3.0 * 2.0 * 2.0 * 8.0 * 2.0 * 25.0);
    }
    // One of three layers has a sliding window.
    let qwen2 = hf.join("qwen2");
    let config = std::fs::read(qwen2.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["use_sliding_window"] = json!(true);
    config["sliding_window"] = json!(24);
    config["layer_types"] = json!(["full_attention", "sliding_attention", "full_attention"]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let weights = "model.safetensors";
    std::fs::copy(qwen2.join(weights), folder.path().join(weights)).unwrap();
    let some = document(&format!("inspect {}", folder.path().display()));
    assert_eq!(some["model"]["sliding_layers"], 1);
    let mut found = 0;
    for row in some["budget"].as_array().unwrap() {
        let length = row["seq_len"].as_f64().unwrap();
        let dense = 2.0 * 2.0 * 8.0 * 2.0 * (2.0 * (length + 1.0) + 25.0);
        assert_eq!(row["dense_bytes"], dense);
        if let Some(share) = row["settings"]["share"].as_f64() {
            found += 1;
            assert!(share <= row["ratio"].as_f64().unwrap(), "{row}");
        }
    }
    assert!(found > 12, "{found}");
}
