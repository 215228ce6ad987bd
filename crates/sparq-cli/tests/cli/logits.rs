//! `sparq logits`: prefill and decode steps agree, and equal the logits of transformers.

use std::path::Path;

use crate::support::{Checkpoint, VOCAB, document, floats, has_fields, read_logits, write_ids};
use serde_json::json;

/// Returns the logits of the tokens `ids.safetensors` in a folder, and their shape.
fn logits(model: &str, folder: &Path, options: &str) -> (Vec<usize>, Vec<f32>) {
    let out = folder.join("logits.safetensors");
    document(&format!(
        "logits --model {model} --tokens {}/ids.safetensors --out {} {options}",
        folder.display(),
        out.display()
    ));
    read_logits(&out)
}

/// Writes `ids.safetensors`, token IDs [sequences, 40], beside a small checkpoint.
fn checkpoint_with_ids(sequences: usize) -> Checkpoint {
    let checkpoint = Checkpoint::new();
    let ids = (0..40 * sequences as i64).map(|index| index * 37 % VOCAB as i64);
    let path = checkpoint.path().join("ids.safetensors");
    write_ids(&path, [sequences, 40], &ids.collect::<Vec<_>>());
    checkpoint
}

fn max_diff(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, f32::max)
}

#[test]
fn decode_steps_equal_a_prefill() {
    let checkpoint = checkpoint_with_ids(2);
    let of = |options: &str| logits(&checkpoint.argument(), &checkpoint.path(), options);
    let (shape, prefill) = of("");
    assert_eq!(shape, [2, 40, VOCAB]);
    let nonzero = prefill.iter().any(|logit| logit.abs() > 0.1);
    assert!(nonzero, "expected logits other than 0");
    for from in [0, 1, 17] {
        let (_, decode) = of(&format!("--decode-from {from}"));
        let diff = max_diff(&prefill, &decode);
        assert!(diff < 1e-4, "from {from}: {diff}");
    }
}

#[test]
fn sparq_changes_only_decoded_positions() {
    let checkpoint = checkpoint_with_ids(1);
    let of = |options: &str| logits(&checkpoint.argument(), &checkpoint.path(), options).1;
    let dense = of("");
    let sparq = of("--method sparq --kv-rows float --rank 2 --top-k 4 --decode-from 20");
    let split = 20 * VOCAB;
    assert!(max_diff(&dense[..split], &sparq[..split]) < 1e-4);
    assert!(max_diff(&dense[split..], &sparq[split..]) > 1e-3);
    let all = of("--method sparq --kv-rows float --top-k 64 --decode-from 20");
    let diff = max_diff(&dense, &all);
    assert!(
        diff < 1e-4,
        "expected dense attention if k covers all positions: {diff}"
    );
}

#[test]
fn embedded_model_reads_a_list_of_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("logits.safetensors");
    let text = b"In the beginning God created the heaven and the eart";
    let tokens = text.map(|byte| byte.to_string()).join(",");
    let written = document(&format!(
        "logits --tokens {tokens} --out {} --decode-from 40",
        out.display()
    ));
    let decoded = text.len() - 40;
    let expected = json!({"shape": [1, text.len(), 256], "prefilled": 40, "decoded": decoded});
    has_fields(&written, &expected);
    let (_, logits) = read_logits(&out);
    let last = &logits[logits.len() - 256..];
    let most_probable = (0..256).max_by(|&a, &b| last[a].total_cmp(&last[b]));
    assert_eq!(most_probable, Some(usize::from(b'h')));
}

#[test]
fn families_have_the_logits_of_transformers() {
    let hf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/hf");
    let folder = tempfile::tempdir().unwrap();
    for family in [
        "llama2",
        "mistral_sliding",
        "gemma_mqa",
        "gpt_neox",
        "qwen2",
        "qwen3",
        "gemma2",
        "phi3",
        "mixtral",
    ] {
        let model = hf.join(family);
        let expected = std::fs::read(model.join("expected.safetensors")).unwrap();
        let expected = safetensors::SafeTensors::deserialize(&expected).unwrap();
        let ids = expected.tensor("input_ids").unwrap();
        let ids = ids.data().as_chunks().0.iter();
        let ids: Vec<i64> = ids.map(|&bytes| i64::from_le_bytes(bytes)).collect();
        let tokens = folder.path().join("ids.safetensors");
        write_ids(&tokens, [2, ids.len() / 2], &ids);
        let model = model.display().to_string();
        let (_, found) = logits(&model, folder.path(), "--decode-from 30");
        let diff = max_diff(&found, &floats(&expected.tensor("logits").unwrap()));
        assert!(diff < 2e-4, "{family}: {diff}");
    }
}
