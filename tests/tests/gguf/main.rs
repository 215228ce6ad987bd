//! GGUF files, compared with the checkpoints they were made from.
//!
//! | module | subject |
//! |---|---|
//! | this file | weights, configuration and logits |
//! | `parts` | models in several files |
//! | `tokenizers` | tokenizer and chat template from the metadata |
//! | `packed` | weights that stay in blocks, and conversions of them |
//! | `malformed` | truncated, changed and unsupported files |
//! | `real_model` | SmolLM2-135M, if `SPARQ_REAL_MODEL` is set |
//! | `writer`, `vocabularies` | GGUF files for the tests |

mod malformed;
mod packed;
mod parts;
mod real_model;
mod tokenizers;
mod vocabularies;
mod writer;

use std::path::PathBuf;

use burn::tensor::{Device, FloatDType};
use safetensors::SafeTensors;
use sparq_models::checkpoint::{Checkpoint, StoredType};
use sparq_tests::*;
use tempfile::TempDir;
use writer::{GgufFile, Meta};

/// Writes a file into a temporary folder, which the caller keeps.
fn write(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn open(file: &GgufFile) -> Checkpoint {
    let (_folder, path) = write(&file.bytes());
    // An open file stays readable after its folder is deleted.
    Checkpoint::open(&path).unwrap()
}

/// Reads a tensor in f32.
fn read<const D: usize>(checkpoint: &Checkpoint, name: &str, shape: [usize; D]) -> Vec<f32> {
    let tensor = checkpoint.tensor(name, shape, FloatDType::F32, &Device::flex());
    values(tensor.unwrap())
}

#[test]
fn blocks_equal_those_of_gguf_py() {
    const TYPES: [(&str, u32, StoredType); 13] = [
        ("Q4_0", 2, StoredType::Q4_0),
        ("Q4_1", 3, StoredType::Q4_1),
        ("Q5_0", 6, StoredType::Q5_0),
        ("Q5_1", 7, StoredType::Q5_1),
        ("Q8_0", 8, StoredType::Q8_0),
        ("Q4_K", 12, StoredType::Q4_K),
        ("Q5_K", 13, StoredType::Q5_K),
        ("Q6_K", 14, StoredType::Q6_K),
        ("Q2_K", 10, StoredType::Q2_K),
        ("Q3_K", 11, StoredType::Q3_K),
        ("IQ4_NL", 20, StoredType::IQ4_NL),
        ("IQ4_XS", 23, StoredType::IQ4_XS),
        ("MXFP4", 39, StoredType::MXFP4),
    ];
    let bytes = std::fs::read(fixture("gguf/blocks.safetensors")).unwrap();
    let blocks = SafeTensors::deserialize(&bytes).unwrap();
    let mut file = GgufFile::llama();
    for (name, kind, _) in TYPES {
        let [values, encoded] = ["values", "blocks"].map(|part| {
            let name = format!("{name}.{part}");
            blocks.tensor(&name).unwrap()
        });
        let shape: Vec<_> = values.shape().iter().map(|&size| size as u64).collect();
        file.push(name, &shape, kind, encoded.data().into());
    }
    let checkpoint = open(&file);
    for (name, _, stored) in TYPES {
        let expected = blocks.tensor(&format!("{name}.values")).unwrap();
        let shape: [usize; 2] = expected.shape().try_into().unwrap();
        assert_eq!(checkpoint.entry(name).unwrap().dtype, stored);
        let found = read(&checkpoint, name, shape);
        assert_eq!(found, floats(expected.data()), "{name}");
    }
}

#[test]
fn f16_and_bf16_are_read() {
    let numbers = [1.5_f32, -0.25, 3e-5, 100.0];
    let halves = numbers.map(half::f16::from_f32);
    let brains = numbers.map(half::bf16::from_f32);
    let mut file = GgufFile::llama();
    file.push(
        "half",
        &[4],
        1,
        halves.map(|half| half.to_le_bytes()).concat(),
    );
    file.push(
        "brain",
        &[4],
        30,
        brains.map(|brain| brain.to_le_bytes()).concat(),
    );
    let checkpoint = open(&file);
    assert_eq!(read(&checkpoint, "half", [4]), halves.map(f32::from));
    assert_eq!(read(&checkpoint, "brain", [4]), brains.map(f32::from));
}

#[test]
fn logits_equal_transformers() {
    for case in ["llama2", "llama3", "llama_tied_head_dim", "qwen2"] {
        let file = GgufFile::from_folder(&fixture(&format!("hf/{case}")));
        let checkpoint = open(&file);
        let expected = Expected::read(&format!("hf/{case}/expected.safetensors"));
        for device in devices() {
            let found = prefill_logits(&load(&checkpoint, &device), &expected);
            let worst = max_difference(&found, &expected.floats("logits").1);
            assert!(worst < 2e-4, "{case} on {device:?}: {worst}");
        }
        assert_eq!(checkpoint.unused().collect::<Vec<_>>(), [""; 0], "{case}");
    }
}

#[test]
fn rows_of_queries_and_keys_are_reordered() {
    let folder = fixture("hf/llama3");
    let original = Checkpoint::open(&folder).unwrap();
    let gguf = open(&GgufFile::from_folder(&folder));
    for name in ["q_proj", "k_proj", "v_proj"] {
        let name = format!("model.layers.1.self_attn.{name}.weight");
        let shape = original.entry(&name).unwrap().shape.try_into().unwrap();
        let read = |checkpoint: &Checkpoint| read::<2>(checkpoint, &name, shape);
        assert_eq!(read(&gguf), read(&original), "{name}");
    }
}

#[test]
fn rows_of_qwen2_keep_their_order() {
    let mut file = GgufFile::llama();
    for (key, _) in &mut file.metadata {
        *key = key.replace("llama.", "qwen2.");
    }
    file.set("general.architecture", Meta::Text("qwen2".into()));
    let rows: Vec<f32> = (0..32 * 32).map(|value| value as f32).collect();
    file.floats("blk.0.attn_q.weight", &[32, 32], &rows);
    file.floats("blk.0.attn_q.bias", &[32], &rows[..32]);
    let checkpoint = open(&file);
    assert_eq!(checkpoint.config()["architectures"][0], "Qwen2ForCausalLM");
    assert_eq!(checkpoint.config()["hidden_size"], 32);
    let name = "model.layers.0.self_attn.q_proj.weight";
    assert_eq!(read(&checkpoint, name, [32, 32]), rows);
    assert!(checkpoint.contains("model.layers.0.self_attn.q_proj.bias"));
}

#[test]
fn folder_with_one_gguf_file_opens() {
    let (folder, path) = write(&GgufFile::llama().bytes());
    let [in_folder, alone] = [folder.path(), &path].map(|path| Checkpoint::open(path).unwrap());
    assert!(in_folder.names().eq(alone.names()));
    std::fs::copy(&path, folder.path().join("other.gguf")).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("config.json"), "{error}");
}
