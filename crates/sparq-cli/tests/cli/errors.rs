//! Bad input ends with exit code 2 and a message that names file, key, expected and found value.

use crate::support::{
    CONTEXT, Checkpoint, HEAD_DIM, VOCAB, contains, document, fails, run, sparq, write_tensors,
};
use serde_json::json;

/// Runs `logits`, which reads headers, weights and tokens, on a damaged checkpoint. The message has
/// to contain all `parts`, and no file may remain.
fn logits_fail(checkpoint: &Checkpoint, extra: &str, parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.safetensors");
    let tokens = match extra.contains("--tokens") {
        true => "",
        false => "--tokens 1,2,3",
    };
    let (model, out) = (checkpoint.argument(), out.display());
    fails(
        &format!("logits --model {model} --out {out} {tokens} {extra}"),
        parts,
    );
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn undamaged_checkpoint_is_read() {
    // The other tests rely on this one: their commands fail only because of the damage.
    let checkpoint = Checkpoint::new();
    let model = checkpoint.argument();
    let line = format!("logits --model {model} --tokens 1,2,3 --out {model}/out.safetensors");
    assert_eq!(document(&line)["shape"], json!([1, 3, VOCAB]));
}

#[test]
fn missing_folder_is_refused() {
    for command in ["inspect", "generate --prompt x --model"] {
        fails(
            &format!("{command} ./no/such/folder"),
            &["./no/such/folder", "expected"],
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
        logits_fail(&checkpoint, "", &["model.safetensors", "expected", "found"]);
    }
}

#[test]
fn header_length_beyond_the_file_is_refused() {
    let checkpoint = Checkpoint::new();
    let mut bytes = std::fs::read(checkpoint.path().join("model.safetensors")).unwrap();
    for length in [1_u64 << 63, u64::MAX] {
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        checkpoint.write_file("model.safetensors", &bytes);
        logits_fail(&checkpoint, "", &["model.safetensors", "expected", "found"]);
    }
}

#[test]
fn negative_number_is_refused_by_its_option() {
    let generate = "generate --prompt a --max-new-tokens";
    fails(
        &format!("{generate} 1 --temperature -1"),
        &[
            "temperature: expected a finite number, at least 0",
            "found -1",
        ],
    );
    fails(
        &format!("{generate} -1"),
        &["'-1' for '--max-new-tokens <N>'"],
    );
}

#[test]
fn messages_in_a_file_have_no_colours() {
    let mut checkpoint = Checkpoint::new();
    let other = (vec![1], vec![0.0]);
    checkpoint.tensors.insert("other.weight".into(), other);
    checkpoint.write();
    let model = checkpoint.argument();
    let line = format!("logits --model {model} --tokens 1 --out /dev/null");
    for line in [line.as_str(), "generate --no-such-option"] {
        let output = run(line);
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.contains("other.weight") || message.contains("no-such"));
        assert!(!message.contains('\x1b'), "{message:?}");
    }
}

#[test]
fn missing_shard_is_refused() {
    let mut checkpoint = Checkpoint::new();
    checkpoint.shard();
    let shard = "model-00002-of-00002.safetensors";
    std::fs::remove_file(checkpoint.path().join(shard)).unwrap();
    let index = "model.safetensors.index.json";
    logits_fail(&checkpoint, "", &[index, shard, "expected", "found"]);
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
        let (file, tensor) = ("model.safetensors.index.json", "model.norm.weight");
        logits_fail(
            &checkpoint,
            "",
            &[file, tensor, "expected", "found", outside],
        );
    }
}

#[test]
fn wrong_shape_is_refused() {
    let mut checkpoint = Checkpoint::new();
    let name = "model.layers.1.mlp.up_proj.weight";
    checkpoint.tensors.get_mut(name).unwrap().0.reverse();
    checkpoint.write();
    logits_fail(
        &checkpoint,
        "",
        &[name, "expected shape [24, 16]", "found [16, 24]"],
    );
}

#[test]
fn missing_tensor_is_refused() {
    let mut checkpoint = Checkpoint::new();
    let name = "model.layers.0.self_attn.k_proj.weight";
    checkpoint.tensors.remove(name);
    checkpoint.write();
    logits_fail(&checkpoint, "", &[name, "expected", "found"]);
}

#[test]
fn unknown_architecture_is_refused() {
    let mut checkpoint = Checkpoint::new();
    checkpoint.config["architectures"] = json!(["MambaForCausalLM"]);
    checkpoint.config["model_type"] = json!("mamba");
    checkpoint.write();
    let names = ["LlamaForCausalLM", "MambaForCausalLM"];
    let parts = [&["config.json", "architectures", "expected"], &names[..]];
    logits_fail(&checkpoint, "", &parts.concat());
}

#[test]
fn nan_weights_are_refused() {
    let mut checkpoint = Checkpoint::new();
    let name = "model.layers.1.self_attn.q_proj.weight";
    checkpoint.tensors.get_mut(name).unwrap().1[5] = f32::NAN;
    checkpoint.write();
    logits_fail(
        &checkpoint,
        "",
        &["model.safetensors", name, "expected finite", "NaN"],
    );
}

#[test]
fn empty_prompt_is_refused() {
    for prompt in ["--prompt ''", "--prompt-file /dev/null"] {
        fails(
            &format!("generate {prompt}"),
            &["prompt", "expected", "found none"],
        );
    }
}

#[test]
fn prompt_beyond_the_context_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prompt.txt");
    std::fs::write(&path, "x".repeat(8193)).unwrap();
    let line = format!("generate --prompt-file {}", path.display());
    fails(&line, &["expected at most 8192", "found 8193"]);

    let ids = vec!["1"; CONTEXT + 1].join(",");
    let expected = format!("expected at most {CONTEXT}");
    let found = format!("found {}", CONTEXT + 1);
    logits_fail(
        &Checkpoint::new(),
        &format!("--tokens {ids}"),
        &[&expected, &found],
    );
}

#[test]
fn invalid_tokens_are_refused() {
    let checkpoint = Checkpoint::new();
    let id = "expected a token ID of 0 to 31";
    logits_fail(
        &checkpoint,
        "--tokens 1,32",
        &["input_ids[0, 1]", id, "found 32"],
    );
    logits_fail(
        &checkpoint,
        "--tokens 1,x",
        &["--tokens", "expected", "found \"x\""],
    );
    let file = checkpoint.path().join("no.safetensors");
    let tokens = format!("--tokens {}", file.display());
    logits_fail(&checkpoint, &tokens, &["no.safetensors"]);
    let floats = ("input_ids".to_owned(), (vec![1, 2], vec![0.0, 1.0]));
    write_tensors(&file, &[floats].into());
    let parts = [
        "no.safetensors",
        "input_ids",
        "expected type I64 or I32",
        "found F32",
    ];
    logits_fail(&checkpoint, &tokens, &parts);
    let parts = ["--decode-from", "expected at most 3", "found 4"];
    logits_fail(&checkpoint, "--decode-from 4", &parts);
}

#[test]
fn rank_above_head_dim_is_refused() {
    let rank = HEAD_DIM + 1;
    let (expected, found) = (format!("expected 1 to {HEAD_DIM}"), format!("found {rank}"));
    let method = format!("--method sparq --rank {rank}");
    logits_fail(&Checkpoint::new(), &method, &["rank", &expected, &found]);
    fails("demo --rank 65", &["rank", "expected 1 to 64", "found 65"]);
}

#[test]
fn top_k_of_zero_is_refused() {
    let parts = ["top_k", "expected at least 1", "found 0"];
    logits_fail(&Checkpoint::new(), "--method sparq --top-k 0", &parts);
    for command in ["generate --prompt x", "demo"] {
        fails(&format!("{command} --top-k 0"), &["top_k", "found 0"]);
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
        for command in ["check", "demo"] {
            fails(&format!("{command} --device {device}"), parts);
        }
    }
    sparq()
        .arg("demo")
        .env("BURN_DEVICE", "rocm")
        .assert()
        .code(2);
}

#[test]
fn unwritable_output_is_refused() {
    let checkpoint = Checkpoint::new();
    let model = checkpoint.argument();
    for out in ["/no/such/folder/out.safetensors", &model] {
        fails(
            &format!("logits --model {model} --tokens 1 --out {out}"),
            &[out],
        );
    }
}

#[test]
fn settings_out_of_range_are_refused() {
    for (line, parts) in [
        (
            "generate --prompt x --temperature=-1",
            &["temperature", "expected", "found -1"][..],
        ),
        ("generate --prompt x --stop ''", &["stop", "empty"]),
        (
            "generate --prompt x --draft-tokens 3",
            &["--draft-tokens", "expected --method lossless"],
        ),
        (
            "generate --prompt x --draft-model y",
            &["--draft-model", "expected --method lossless"],
        ),
        (
            "generate --prompt x --method lossless --draft-tokens 16",
            &["draft tokens", "expected 1 to 15", "found 16"],
        ),
        (
            "generate --chat hello",
            &["chat template", "expected", "found none"],
        ),
        (
            "demo --context 100",
            &["--context", "expected", "found 100"],
        ),
        (
            "demo --context 9000",
            &["--context", "expected at most 8192", "found 9000"],
        ),
        (
            "demo --needles 1000",
            &["--needles", "expected", "found 1000"],
        ),
        ("check --fixtures ./no/such/folder", &["./no/such/folder"]),
    ] {
        fails(line, parts);
    }
}

#[test]
fn error_is_a_json_document() {
    let failed = sparq()
        .args(["demo", "--top-k", "0", "--json"])
        .assert()
        .code(2);
    let document: serde_json::Value = serde_json::from_slice(&failed.get_output().stdout).unwrap();
    contains(document["error"].as_str().unwrap(), &["top_k"]);
}
