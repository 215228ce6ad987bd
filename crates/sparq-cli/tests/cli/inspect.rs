//! `sparq inspect`: its counts, and the settings of its budgets.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::{CONTEXT, Checkpoint, HEAD_DIM, VOCAB, document, stdout};

#[test]
fn inspect_reads_headers_only() {
    let mut checkpoint = Checkpoint::new();
    // Reading a NaN weight would fail.
    checkpoint.tensors.get_mut("model.norm.weight").unwrap().1[0] = f32::NAN;
    checkpoint.write();
    let found = document(&["inspect", &checkpoint.argument(), "--sketch", "full"]);
    let parameters: usize = checkpoint
        .tensors
        .values()
        .map(|(_, values)| values.len())
        .sum();
    assert_eq!(found["model"]["architecture"], "LlamaForCausalLM");
    for (key, value) in [
        ("parameters", parameters),
        ("layers", 2),
        ("head_dim", HEAD_DIM),
        ("vocab_size", VOCAB),
        ("context", CONTEXT),
    ] {
        assert_eq!(found["model"][key], json!(value), "{key}");
    }
    assert_eq!(
        found["cache"]["bytes_per_token"],
        json!(2 * 2 * HEAD_DIM * 2)
    );
    assert_eq!(
        found["cache"]["sketch_bytes_per_token"],
        json!(2 * HEAD_DIM * 2)
    );
}

#[test]
fn settings_keep_every_budget() {
    let found = document(&["inspect"]);
    let rows = found["budget"].as_array().unwrap();
    assert_eq!(rows.len(), 6 * 4);
    for row in rows {
        let (share, ratio) = (
            row["settings"]["share"].as_f64().unwrap(),
            row["ratio"].as_f64().unwrap(),
        );
        assert!(share <= ratio && share > 0.5 * ratio, "{row}");
    }
    let text = stdout(&["inspect"]);
    assert!(
        text.contains("LlamaForCausalLM") && text.contains("128k"),
        "{text}"
    );
}

#[test]
fn bytes_follow_the_window_of_each_layer() {
    let hf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/hf");
    let all = document(&["inspect", hf.join("mistral_sliding").to_str().unwrap()]);
    assert_eq!(
        (
            &all["model"]["sliding_window"],
            &all["model"]["sliding_layers"]
        ),
        (&json!(24), &json!(3))
    );
    // 2 W d + 2 d elements of 2 bytes for each of 3 layers with 2 heads of 8, at any length.
    for row in all["budget"].as_array().unwrap() {
        assert_eq!(
            row["dense_bytes"],
            json!(3.0 * 2.0 * 2.0 * 8.0 * 2.0 * 25.0)
        );
    }
    // One of three layers has a sliding window.
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(hf.join("qwen2/config.json")).unwrap()).unwrap();
    config["use_sliding_window"] = json!(true);
    config["sliding_window"] = json!(24);
    config["layer_types"] = json!(["full_attention", "sliding_attention", "full_attention"]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    std::fs::copy(
        hf.join("qwen2/model.safetensors"),
        folder.path().join("model.safetensors"),
    )
    .unwrap();
    let some = document(&["inspect", folder.path().to_str().unwrap()]);
    assert_eq!(some["model"]["sliding_layers"], json!(1));
    let mut found = 0;
    for row in some["budget"].as_array().unwrap() {
        let length = row["seq_len"].as_f64().unwrap();
        let dense = 2.0 * 2.0 * 8.0 * 2.0 * (2.0 * (length + 1.0) + 25.0);
        assert_eq!(row["dense_bytes"], json!(dense));
        if let Some(share) = row["settings"]["share"].as_f64() {
            found += 1;
            assert!(share <= row["ratio"].as_f64().unwrap(), "{row}");
        }
    }
    assert!(found > 12, "{found}");
}
