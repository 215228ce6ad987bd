//! Bad input ends with exit code 2 and a message that names file, key, expected and found value.

use crate::support::{
    CONTEXT, Checkpoint, HEAD_DIM, VOCAB, document, fails, sparq, words, write_tensors,
};
use serde_json::json;

/// Runs `logits`, which reads headers, weights and tokens, on a damaged checkpoint. The message has
/// to contain all `parts`, and no file may remain.
fn logits_fail(checkpoint: &Checkpoint, extra: &[&str], parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (checkpoint.argument(), folder.path().join("out.safetensors"));
    let mut arguments = vec!["logits", "--model", &model, "--out", out.to_str().unwrap()];
    if !extra.contains(&"--tokens") {
        arguments.extend(["--tokens", "1,2,3"]);
    }
    arguments.extend(extra);
    let message = fails(&arguments);
    for part in parts {
        assert!(message.contains(part), "expected {part:?} in: {message}");
    }
    let left: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn undamaged_checkpoint_is_read() {
    // The other tests rely on this one: their commands fail only because of the damage.
    let checkpoint = Checkpoint::new();
    let out = checkpoint.path().join("out.safetensors");
    let written = document(&words(&format!(
        "logits --model {} --tokens 1,2,3 --out {}",
        checkpoint.argument(),
        out.display()
    )));
    assert_eq!(written["shape"], json!([1, 3, VOCAB]));
}

#[test]
fn missing_folder_is_refused() {
    for command in [&["inspect"][..], &["generate", "--prompt", "x", "--model"]] {
        let message = fails(&[command, &["./no/such/folder"]].concat());
        assert!(
            message.contains("./no/such/folder") && message.contains("expected"),
            "{message}"
        );
    }
}

#[test]
fn truncated_file_is_refused() {
    let checkpoint = Checkpoint::new();
    let bytes = std::fs::read(checkpoint.path().join("model.safetensors")).unwrap();
    // Inside the length, the header and the data.
    for length in [0, 4, 100, bytes.len() - 1] {
        checkpoint.write_file("model.safetensors", &bytes[..length]);
        logits_fail(
            &checkpoint,
            &[],
            &["model.safetensors", "expected", "found"],
        );
    }
}

#[test]
fn header_length_beyond_the_file_is_refused() {
    let checkpoint = Checkpoint::new();
    let mut bytes = std::fs::read(checkpoint.path().join("model.safetensors")).unwrap();
    for length in [1_u64 << 63, u64::MAX] {
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        checkpoint.write_file("model.safetensors", &bytes);
        logits_fail(
            &checkpoint,
            &[],
            &["model.safetensors", "expected", "found"],
        );
    }
}

#[test]
fn missing_shard_is_refused() {
    let mut checkpoint = Checkpoint::new();
    checkpoint.shard();
    std::fs::remove_file(checkpoint.path().join("model-00002-of-00002.safetensors")).unwrap();
    logits_fail(
        &checkpoint,
        &[],
        &[
            "model.safetensors.index.json",
            "model-00002-of-00002.safetensors",
            "expected",
            "found",
        ],
    );
}

#[test]
fn index_outside_the_folder_is_refused() {
    let mut checkpoint = Checkpoint::new();
    let mut index = checkpoint.shard();
    for outside in [
        "../model-00001-of-00002.safetensors",
        "/etc/passwd",
        "a/../../b.safetensors",
    ] {
        index["weight_map"]["model.norm.weight"] = json!(outside);
        checkpoint.write_index(&index);
        logits_fail(
            &checkpoint,
            &[],
            &[
                "model.safetensors.index.json",
                "model.norm.weight",
                "expected",
                "found",
                outside,
            ],
        );
    }
}

#[test]
fn wrong_shape_is_refused() {
    let mut checkpoint = Checkpoint::new();
    let (shape, _) = checkpoint
        .tensors
        .get_mut("model.layers.1.mlp.up_proj.weight")
        .unwrap();
    shape.reverse();
    checkpoint.write();
    logits_fail(
        &checkpoint,
        &[],
        &[
            "model.layers.1.mlp.up_proj.weight",
            "expected shape [24, 16]",
            "found [16, 24]",
        ],
    );
}

#[test]
fn missing_tensor_is_refused() {
    let mut checkpoint = Checkpoint::new();
    checkpoint
        .tensors
        .remove("model.layers.0.self_attn.k_proj.weight");
    checkpoint.write();
    logits_fail(
        &checkpoint,
        &[],
        &[
            "model.layers.0.self_attn.k_proj.weight",
            "expected",
            "found",
        ],
    );
}

#[test]
fn unknown_architecture_is_refused() {
    let mut checkpoint = Checkpoint::new();
    checkpoint.config["architectures"] = json!(["MambaForCausalLM"]);
    checkpoint.config["model_type"] = json!("mamba");
    checkpoint.write();
    logits_fail(
        &checkpoint,
        &[],
        &[
            "config.json",
            "architectures",
            "expected",
            "LlamaForCausalLM",
            "MambaForCausalLM",
        ],
    );
}

#[test]
fn nan_weights_are_refused() {
    let mut checkpoint = Checkpoint::new();
    checkpoint
        .tensors
        .get_mut("model.layers.1.self_attn.q_proj.weight")
        .unwrap()
        .1[5] = f32::NAN;
    checkpoint.write();
    logits_fail(
        &checkpoint,
        &[],
        &[
            "model.safetensors",
            "model.layers.1.self_attn.q_proj.weight",
            "expected finite",
            "NaN",
        ],
    );
}

#[test]
fn empty_prompt_is_refused() {
    for arguments in [
        &["generate", "--prompt", ""][..],
        &["generate", "--prompt-file", "/dev/null"],
    ] {
        let message = fails(arguments);
        assert!(
            message.contains("prompt")
                && message.contains("expected")
                && message.contains("found none"),
            "{message}"
        );
    }
}

#[test]
fn prompt_beyond_the_context_is_refused() {
    let long = "x".repeat(8193);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prompt.txt");
    std::fs::write(&path, long).unwrap();
    let message = fails(&["generate", "--prompt-file", path.to_str().unwrap()]);
    assert!(
        message.contains("expected at most 8192") && message.contains("found 8193"),
        "{message}"
    );

    let ids = vec!["1"; CONTEXT + 1].join(",");
    logits_fail(
        &Checkpoint::new(),
        &["--tokens", &ids],
        &[
            &format!("expected at most {CONTEXT}"),
            &format!("found {}", CONTEXT + 1),
        ],
    );
}

#[test]
fn invalid_tokens_are_refused() {
    let checkpoint = Checkpoint::new();
    logits_fail(
        &checkpoint,
        &["--tokens", "1,32"],
        &[
            "input_ids[0, 1]",
            "expected a token ID of 0 to 31",
            "found 32",
        ],
    );
    logits_fail(
        &checkpoint,
        &["--tokens", "1,x"],
        &["--tokens", "expected", "found \"x\""],
    );
    let file = checkpoint.path().join("no.safetensors");
    logits_fail(
        &checkpoint,
        &["--tokens", file.to_str().unwrap()],
        &["no.safetensors"],
    );
    write_tensors(
        &file,
        &[("input_ids".to_owned(), (vec![1, 2], vec![0.0, 1.0]))].into(),
    );
    logits_fail(
        &checkpoint,
        &["--tokens", file.to_str().unwrap()],
        &[
            "no.safetensors",
            "input_ids",
            "expected type I64 or I32",
            "found F32",
        ],
    );
    logits_fail(
        &checkpoint,
        &["--decode-from", "4"],
        &["--decode-from", "expected at most 3", "found 4"],
    );
}

#[test]
fn rank_above_head_dim_is_refused() {
    let rank = (HEAD_DIM + 1).to_string();
    logits_fail(
        &Checkpoint::new(),
        &["--method", "sparq", "--rank", &rank],
        &[
            "rank",
            &format!("expected 1 to {HEAD_DIM}"),
            &format!("found {rank}"),
        ],
    );
    let message = fails(&["demo", "--rank", "65"]);
    assert!(
        message.contains("rank")
            && message.contains("expected 1 to 64")
            && message.contains("found 65"),
        "{message}"
    );
}

#[test]
fn top_k_of_zero_is_refused() {
    logits_fail(
        &Checkpoint::new(),
        &["--method", "sparq", "--top-k", "0"],
        &["top_k", "expected at least 1", "found 0"],
    );
    for arguments in [
        &["generate", "--prompt", "x", "--top-k", "0"][..],
        &["demo", "--top-k", "0"],
    ] {
        let message = fails(arguments);
        assert!(
            message.contains("top_k") && message.contains("found 0"),
            "{message}"
        );
    }
}

#[test]
fn missing_device_is_refused() {
    for (device, parts) in [
        ("rocm", &["this build has", "flex", "--features rocm"][..]),
        ("metal:1", &["this build has", "--features metal"]),
        ("abacus", &["expected one of", "flex", "abacus"]),
        ("flex:3", &["no device 3"]),
    ] {
        for arguments in [
            &["check", "--device", device][..],
            &["demo", "--device", device],
        ] {
            let message = fails(arguments);
            assert!(
                parts.iter().all(|part| message.contains(part)),
                "{device}: {message}"
            );
        }
    }
    let output = sparq()
        .arg("demo")
        .env("BURN_DEVICE", "rocm")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn unwritable_output_is_refused() {
    let checkpoint = Checkpoint::new();
    for out in ["/no/such/folder/out.safetensors", &checkpoint.argument()] {
        let message = fails(&words(&format!(
            "logits --model {} --tokens 1 --out {out}",
            checkpoint.argument()
        )));
        assert!(message.contains(out), "{message}");
    }
}

#[test]
fn settings_out_of_range_are_refused() {
    for (arguments, parts) in [
        (
            &["generate", "--prompt", "x", "--temperature=-1"][..],
            &["temperature", "expected", "found -1"][..],
        ),
        (
            &["generate", "--prompt", "x", "--stop", ""],
            &["stop", "empty"],
        ),
        (
            &["generate", "--chat", "hello"],
            &["chat template", "expected", "found none"],
        ),
        (
            &["demo", "--context", "100"],
            &["--context", "expected", "found 100"],
        ),
        (
            &["demo", "--context", "9000"],
            &["--context", "expected at most 8192", "found 9000"],
        ),
        (
            &["demo", "--needles", "1000"],
            &["--needles", "expected", "found 1000"],
        ),
        (
            &["check", "--fixtures", "./no/such/folder"],
            &["./no/such/folder"],
        ),
    ] {
        let message = fails(arguments);
        assert!(
            parts.iter().all(|part| message.contains(part)),
            "{arguments:?}: {message}"
        );
    }
}

#[test]
fn error_is_a_json_document() {
    let output = sparq()
        .args(["demo", "--top-k", "0", "--json"])
        .output()
        .unwrap();
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        document["error"].as_str().unwrap().contains("top_k"),
        "{document}"
    );
}
