//! `pytorch_model.bin`: tensors equal those that PyTorch loads, without running code of the file.

mod malformed;
mod writer;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Device, FloatDType};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};
use sparq_models::checkpoint::{Checkpoint, Conversion, StoredType};
use sparq_tests::*;
use tempfile::TempDir;
use writer::{Pickle, View, file};

/// Makes a folder with an empty config.json and this weight file.
fn folder(weights: &[u8]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), b"{}").unwrap();
    fs::write(folder.path().join("pytorch_model.bin"), weights).unwrap();
    folder
}

/// Opens a file that PyTorch wrote. An open file stays readable after its folder is deleted.
fn open(name: &str) -> Checkpoint {
    let weights = fs::read(fixture(&format!("torch/{name}.bin"))).unwrap();
    Checkpoint::open(folder(&weights).path()).unwrap()
}

/// Reads a tensor of one to three dimensions, in row-major order.
fn read(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let (device, dtype) = (Device::default(), FloatDType::F32);
    match *checkpoint.entry(name).unwrap().shape {
        [a] => values(checkpoint.tensor(name, [a], dtype, &device).unwrap()),
        [a, b] => values(checkpoint.tensor(name, [a, b], dtype, &device).unwrap()),
        [a, b, c] => values(checkpoint.tensor(name, [a, b, c], dtype, &device).unwrap()),
        _ => panic!("{name}"),
    }
}

#[test]
fn views_equal_those_of_pytorch() {
    let bytes = fs::read(fixture("torch/views.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let expected_values = Checkpoint::from_bytes("expected", b"{}", bytes.clone()).unwrap();
    for name in ["views", "protocol_5", "without_checksums"] {
        let checkpoint = open(name);
        assert!(checkpoint.names().eq(expected_values.names()), "{name}");
        for (tensor, view) in expected.tensors() {
            let entry = checkpoint.entry(&tensor).unwrap();
            assert_eq!(entry.dtype, view.dtype().into(), "{tensor}");
            assert_eq!(entry.shape, view.shape(), "{tensor}");
            if matches!(view.shape().len(), 1..=3) {
                let [found, expected] =
                    [&checkpoint, &expected_values].map(|file| read(file, &tensor));
                assert_eq!(found, expected, "{tensor} in {name}");
            }
        }
    }
}

#[test]
fn row_and_column_major_matrices_convert() {
    let checkpoint = open("views");
    let converted = tempfile::tempdir().unwrap();
    // Covers weights stored in row-major and in column-major order.
    Conversion::new(Arc::new(checkpoint))
        .write_safetensors(converted.path())
        .unwrap();
    let found = fs::read(converted.path().join("model.safetensors")).unwrap();
    let found = SafeTensors::deserialize(&found).unwrap();
    let expected = fs::read(fixture("torch/views.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&expected).unwrap();
    assert_eq!(found.len(), expected.len());
    for (name, view) in expected.tensors() {
        assert_eq!(found.tensor(&name).unwrap().data(), view.data(), "{name}");
    }
}

#[test]
fn state_dict_is_found_beside_other_objects() {
    let names = [
        "embed.weight",
        "head.weight",
        "mask",
        "norm.bias",
        "norm.weight",
        "steps",
    ];
    for name in ["module", "training"] {
        let checkpoint = open(name);
        assert!(checkpoint.names().eq(names), "{name}");
        let embed = read(&checkpoint, "embed.weight");
        assert_eq!(read(&checkpoint, "head.weight"), embed);
        assert!(checkpoint.are_one("head.weight", "embed.weight"));
        assert!(!checkpoint.are_one("norm.weight", "norm.bias"));
        assert!(!checkpoint.are_one("missing", "missing"));
        assert_eq!(read(&checkpoint, "norm.weight"), [1.0; 4]);
        assert!(embed.iter().any(|&weight| weight != 0.0));
        let dtype = |name| checkpoint.entry(name).unwrap().dtype;
        assert_eq!(dtype("steps"), StoredType::Other(Dtype::I64));
        assert_eq!(dtype("mask"), StoredType::Other(Dtype::BOOL));
    }
    let head = read(&open("parameters"), "head.weight");
    assert_eq!(head, read(&open("module"), "embed.weight"));
}

/// Converts a folder of safetensors to `count` files in PyTorch's format, with an index if there
/// are several.
fn rewrite(source: &Path, target: &Path, count: usize) {
    let mut tensors = BTreeMap::new();
    for entry in fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            let bytes = fs::read(&path).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            for (name, view) in file.tensors() {
                let storage = match view.dtype() {
                    Dtype::F32 => "FloatStorage",
                    Dtype::F16 => "HalfStorage",
                    Dtype::BF16 => "BFloat16Storage",
                    other => panic!("{other}"),
                };
                let shape: Vec<_> = view.shape().iter().map(|&size| size as u64).collect();
                tensors.insert(name, (storage, shape, view.data().to_vec()));
            }
        }
    }
    fs::copy(source.join("config.json"), target.join("config.json")).unwrap();
    let tensors: Vec<_> = tensors.into_iter().collect();
    let mut map = Map::new();
    for (at, shard) in tensors.chunks(tensors.len().div_ceil(count)).enumerate() {
        let file_name = match count {
            1 => "pytorch_model.bin".to_owned(),
            _ => format!("pytorch_model-{:05}-of-{count:05}.bin", at + 1),
        };
        let keys: Vec<_> = (0..shard.len()).map(|key| key.to_string()).collect();
        let (mut views, mut storages) = (Vec::new(), Vec::new());
        for ((name, (storage, shape, bytes)), key) in shard.iter().zip(&keys) {
            map.insert(name.clone(), Value::from(&*file_name));
            views.push((name.clone(), View::whole(storage, key, shape)));
            storages.push((&**key, &**bytes));
        }
        let bytes = file(Pickle::default().state_dict(&views), &storages);
        fs::write(target.join(file_name), bytes).unwrap();
    }
    if count > 1 {
        let index = json!({"metadata": {}, "weight_map": map}).to_string();
        fs::write(target.join("pytorch_model.bin.index.json"), index).unwrap();
    }
}

#[test]
fn single_files_and_shards_equal_transformers() {
    for device in devices() {
        for (case, count) in [
            ("llama2", 3),
            ("llama_tied_head_dim", 1),
            ("gpt_neox", 2),
            ("gemma", 1),
        ] {
            let folder = tempfile::tempdir().unwrap();
            rewrite(&fixture(&format!("hf/{case}")), folder.path(), count);
            let model = load(&Checkpoint::open(folder.path()).unwrap(), &device);
            let expected = Expected::read(&format!("hf/{case}/expected.safetensors"));
            let found = prefill_logits(&model, &expected);
            let worst = max_difference(&found, &expected.floats("logits").1);
            assert!(worst < 2e-4, "{case} on {device:?}: {worst}");
        }
    }
}

#[test]
fn missing_shard_is_named() {
    let folder = tempfile::tempdir().unwrap();
    rewrite(&fixture("hf/llama2"), folder.path(), 3);
    fs::remove_file(folder.path().join("pytorch_model-00002-of-00003.bin")).unwrap();
    let message = Checkpoint::open(folder.path()).unwrap_err().to_string();
    let missing = "pytorch_model-00002-of-00003.bin, found no such file";
    assert_contains(&message, &["pytorch_model.bin.index.json", missing]);
}

#[test]
fn safetensors_take_precedence() {
    let folder = folder(b"not read");
    let weights = fs::read(fixture("torch/views.safetensors")).unwrap();
    fs::write(folder.path().join("model.safetensors"), weights).unwrap();
    assert!(Checkpoint::open(folder.path()).unwrap().contains("whole"));
}
