//! GGUF files, compared with the checkpoints they were made from.
//!
//! | module | subject |
//! |---|---|
//! | this file | weights, configuration and logits |
//! | `families` | the families of llama.cpp |
//! | `parts` | models in several files |
//! | `tokenizers` | tokenizer and chat template from the metadata |
//! | `packed` | weights that stay in blocks, and conversions of them |
//! | `malformed` | truncated, changed and unsupported files |
//! | `real_model` | SmolLM2-135M, if `SPARQ_REAL_MODEL` is set |
//! | `writer`, `vocabularies` | GGUF files for the tests |

mod families;
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
use serde_json::json;
use sparq::ops::RotaryScaling;
use sparq_models::DecoderConfig;
use sparq_models::checkpoint::{Checkpoint, StoredType};
use sparq_models::text::TextTokenizer;
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
fn biases_may_be_those_of_queries_keys_and_values() {
    let mut file = GgufFile::from_folder(&fixture("hf/llama3"));
    for tensor in file.tensors.clone() {
        let biased = ["attn_q.", "attn_k.", "attn_v."];
        if biased.iter().any(|name| tensor.name.contains(name)) {
            let rows = tensor.shape[0];
            let name = tensor.name.replace("weight", "bias");
            file.floats(&name, &[rows], &vec![0.5; rows as usize]);
        }
    }
    let checkpoint = open(&file);
    let config = DecoderConfig::from_checkpoint(&checkpoint).unwrap();
    assert!(config.qkv_bias && !config.o_bias);
    load(&checkpoint, &Device::flex());
    assert_eq!(checkpoint.unused().count(), 0);
}

#[test]
fn rope_scaling_follows_llama_cpp() {
    let scaling = |entries: &[(&str, Meta)]| {
        let mut file = GgufFile::llama();
        for (key, value) in entries {
            file.set(&format!("llama.rope.{key}"), value.clone());
        }
        open(&file).config().get("rope_scaling").cloned()
    };
    let linear = Some(json!({"rope_type": "linear", "factor": 4.0}));
    let factor = ("scaling.factor", Meta::F32(4.0));
    let kind = |name: &str| ("scaling.type", Meta::text(name));
    assert_eq!(scaling(std::slice::from_ref(&factor)), linear);
    assert_eq!(scaling(&[factor.clone(), kind("linear")]), linear);
    assert_eq!(scaling(&[factor.clone(), kind("none")]), None);
    assert_eq!(scaling(&[("scale_linear", Meta::F32(4.0))]), linear);
    let both = [factor.clone(), ("scale_linear", Meta::F32(8.0))];
    assert_eq!(scaling(&both), linear);
    assert_eq!(scaling(&[("scaling.factor", Meta::F32(0.0))]), None);
    assert_eq!(scaling(&[("scaling.factor", Meta::F32(1.0))]), None);

    // A factor of queries and keys, which only LongRoPE has in a config.json.
    let attention = ("scaling.attn_factor", Meta::F32(1.5));
    let found = scaling(&[factor.clone(), attention.clone()]).unwrap();
    assert_eq!(found["rope_type"], "longrope");
    assert_eq!(found["attention_factor"], 1.5);
    assert_eq!(found["short_factor"], json!(vec![4.0; 8]));
    assert_eq!(found["long_factor"], found["short_factor"]);
    let found = scaling(&[factor, kind("yarn"), attention]).unwrap();
    assert_eq!(found["rope_type"], "yarn");
    let yarn = found["attention_factor"].as_f64().unwrap();
    assert!((yarn - 1.5 * (1.0 + 0.1 * 4.0_f64.ln())).abs() < 1e-6);
}

#[test]
fn divisors_and_factors_of_rope_multiply() {
    let file = || GgufFile::from_folder(&fixture("hf/llama3"));
    let scaling = |file: &GgufFile| open(file).config()["rope_scaling"].clone();
    assert_eq!(scaling(&file())["rope_type"], "llama3");
    let mut tensors = file().tensors.into_iter();
    let divisors = tensors.find(|tensor| tensor.name == "rope_freqs.weight");
    let divisors = floats(&divisors.unwrap().bytes);

    let mut both = file();
    both.set("llama.rope.scaling.factor", Meta::F32(4.0));
    both.set("llama.rope.scaling.attn_factor", Meta::F32(1.5));
    let found = scaling(&both);
    let expected: Vec<_> = divisors
        .iter()
        .map(|&divisor| 4.0 * f64::from(divisor))
        .collect();
    assert_eq!(found["rope_type"], "longrope");
    assert_eq!(found["short_factor"], json!(expected));
    assert_eq!(found["long_factor"], json!(expected));
    assert_eq!(found["attention_factor"], 1.5);
    let checkpoint = open(&both);
    let rope = DecoderConfig::from_checkpoint(&checkpoint).unwrap().rotary;
    let RotaryScaling::LongRope {
        short_factor,
        attention_factor,
        ..
    } = rope.scaling
    else {
        panic!("{rope:?}");
    };
    assert_eq!((short_factor, attention_factor), (expected, 1.5));

    // Divisors that no settings of Llama 3 give.
    let mut other = GgufFile::llama();
    let divisors = [3.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0];
    other.floats("rope_freqs.weight", &[8], &divisors);
    let found = scaling(&other);
    assert_eq!(found["short_factor"], json!(divisors.map(f64::from)));
    assert_eq!(found["attention_factor"], 1.0);
}

#[test]
fn errors_name_the_keys_of_gguf() {
    let message = |key: &str, value: Meta| {
        let mut file = GgufFile::llama();
        file.set(key, value);
        let (_folder, path) = write(&file.bytes());
        match Checkpoint::open(&path) {
            Err(error) => error.to_string(),
            Ok(checkpoint) => {
                let error = DecoderConfig::from_checkpoint(&checkpoint).unwrap_err();
                error.to_string()
            }
        }
    };
    for (key, value) in [
        ("llama.block_count", Meta::U32(0)),
        ("llama.attention.head_count_kv", Meta::U32(3)),
        ("llama.rope.freq_base", Meta::F32(-1.0)),
    ] {
        let message = message(key, value);
        assert_contains(&message, &["model.gguf: ", key, "expected"]);
    }
    // The file has no weights.
    let checkpoint = open(&GgufFile::llama());
    let name = "model.layers.0.mlp.up_proj.weight";
    let tensor = checkpoint.tensor(name, [1, 1], FloatDType::F32, &Device::flex());
    let expected = "tensor \"blk.0.ffn_up.weight\": expected shape";
    assert_contains(&tensor.unwrap_err().to_string(), &[expected]);
}

#[test]
fn gguf_file_of_any_name_opens() {
    let (folder, path) = write(&GgufFile::llama().bytes());
    let renamed = folder.path().join("model.bin.1");
    std::fs::rename(path, &renamed).unwrap();
    Checkpoint::open(&renamed).unwrap();
    let error = TextTokenizer::from_folder(&renamed).unwrap_err();
    assert_contains(&error.to_string(), &["GGUF: \"tokenizer.ggml.tokens\""]);
}

#[test]
fn folder_with_one_gguf_file_opens() {
    let (folder, path) = write(&GgufFile::llama().bytes());
    let [in_folder, alone] = [folder.path(), &path].map(|path| Checkpoint::open(path).unwrap());
    assert!(in_folder.names().eq(alone.names()));
    // The projector of a vision model is no second model, and no model alone.
    let projector = folder.path().join("mmproj-F16.gguf");
    std::fs::copy(&path, &projector).unwrap();
    Checkpoint::open(folder.path()).unwrap();
    std::fs::copy(&path, folder.path().join("other.gguf")).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    let expected = "expected one GGUF model, found model.gguf, other.gguf; name one of the files";
    assert_contains(&error, &[expected]);
    let error = TextTokenizer::from_folder(folder.path()).unwrap_err();
    assert_contains(&error.to_string(), &[expected]);
    for name in ["model.gguf", "other.gguf"] {
        std::fs::remove_file(folder.path().join(name)).unwrap();
    }
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert_contains(&error, &["found the projector mmproj-F16.gguf"]);
}
