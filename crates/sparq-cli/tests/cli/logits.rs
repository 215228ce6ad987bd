//! `sparq logits`: prefill and decode steps agree, and equal the logits of transformers.

use std::path::Path;

use crate::support::{Checkpoint, VOCAB, document, read_logits, write_ids};
use serde_json::json;

fn logits(model: &[&str], tokens: &Path, out: &Path, extra: &[&str]) -> (Vec<usize>, Vec<f32>) {
    let fixed = [
        "logits",
        "--tokens",
        tokens.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
    ];
    document(&[&fixed, model, extra].concat());
    read_logits(out)
}

fn max_diff(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

#[test]
fn decode_steps_equal_a_prefill() {
    let checkpoint = Checkpoint::new();
    let model = checkpoint.argument();
    let (tokens, out) = (
        checkpoint.path().join("ids.safetensors"),
        checkpoint.path().join("logits.safetensors"),
    );
    let ids: Vec<i64> = (0..80).map(|index| index * 37 % VOCAB as i64).collect();
    write_ids(&tokens, [2, 40], &ids);
    let (shape, prefill) = logits(&["--model", &model], &tokens, &out, &[]);
    assert_eq!(shape, [2, 40, VOCAB]);
    assert!(
        prefill.iter().any(|logit| logit.abs() > 0.1),
        "expected logits other than 0"
    );
    for from in ["0", "1", "17"] {
        let (_, decode) = logits(
            &["--model", &model],
            &tokens,
            &out,
            &["--decode-from", from],
        );
        let diff = max_diff(&prefill, &decode);
        assert!(diff < 1e-4, "from {from}: {diff}");
    }
}

#[test]
fn sparq_changes_only_decoded_positions() {
    let checkpoint = Checkpoint::new();
    let model = checkpoint.argument();
    let (tokens, out) = (
        checkpoint.path().join("ids.safetensors"),
        checkpoint.path().join("logits.safetensors"),
    );
    let ids: Vec<i64> = (0..40).map(|index| index * 37 % VOCAB as i64).collect();
    write_ids(&tokens, [1, 40], &ids);
    let (_, dense) = logits(&["--model", &model], &tokens, &out, &[]);
    let settings = [
        "--method",
        "sparq",
        "--rank",
        "2",
        "--top-k",
        "4",
        "--decode-from",
        "20",
    ];
    let (_, sparq) = logits(&["--model", &model], &tokens, &out, &settings);
    let split = 20 * VOCAB;
    assert!(max_diff(&dense[..split], &sparq[..split]) < 1e-4);
    assert!(max_diff(&dense[split..], &sparq[split..]) > 1e-3);
    let all = ["--method", "sparq", "--top-k", "64", "--decode-from", "20"];
    let (_, all) = logits(&["--model", &model], &tokens, &out, &all);
    assert!(
        max_diff(&dense, &all) < 1e-4,
        "expected dense attention if k covers all positions"
    );
}

#[test]
fn embedded_model_reads_a_list_of_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("logits.safetensors");
    let tokens: Vec<String> = b"In the beginning God created the heaven and the eart"
        .iter()
        .map(u8::to_string)
        .collect();
    let written = document(&[
        "logits",
        "--tokens",
        &tokens.join(","),
        "--out",
        out.to_str().unwrap(),
        "--decode-from",
        "40",
    ]);
    assert_eq!(written["shape"], json!([1, tokens.len(), 256]));
    assert_eq!(
        (&written["prefilled"], &written["decoded"]),
        (&json!(40), &json!(tokens.len() - 40))
    );
    let (_, logits) = read_logits(&out);
    let last = &logits[logits.len() - 256..];
    let best = (0..256)
        .max_by(|&a, &b| last[a].total_cmp(&last[b]))
        .unwrap();
    assert_eq!(best, usize::from(b'h'));
}

#[test]
fn families_have_the_logits_of_transformers() {
    let hf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/hf");
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("logits.safetensors");
    for family in [
        "llama2",
        "mistral_sliding",
        "gemma_mqa",
        "gpt_neox",
        "qwen2",
        "qwen3",
    ] {
        let model = hf.join(family);
        let expected = std::fs::read(model.join("expected.safetensors")).unwrap();
        let expected = safetensors::SafeTensors::deserialize(&expected).unwrap();
        let (ids, logits_of) = (
            expected.tensor("input_ids").unwrap(),
            expected.tensor("logits").unwrap(),
        );
        let ids: Vec<i64> = ids
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|&b| i64::from_le_bytes(b))
            .collect();
        let logits_of: Vec<f32> = logits_of
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|&b| f32::from_le_bytes(b))
            .collect();
        let tokens = folder.path().join("ids.safetensors");
        write_ids(&tokens, [2, ids.len() / 2], &ids);
        let model = ["--model", model.to_str().unwrap()];
        let (_, found) = logits(&model, &tokens, &out, &["--decode-from", "30"]);
        let diff = max_diff(&found, &logits_of);
        assert!(diff < 2e-4, "{family}: {diff}");
    }
}
