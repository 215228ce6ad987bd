//! Checkpoints for tests, well-formed and malformed.
#![allow(dead_code)]

use std::{fs, path::PathBuf};

use half::{bf16, f16};
use safetensors::{Dtype, tensor::TensorView};
use tempfile::TempDir;

/// Returns a folder of Hugging Face fixtures.
pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/hf")).join(name)
}

/// Returns the bytes of a safetensors file with these tensors.
pub fn safetensors(tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) -> Vec<u8> {
    let view = |(name, dtype, shape, bytes): &'_ (&str, Dtype, &[usize], Vec<u8>)| {
        let bytes: &'static [u8] = bytes.clone().leak();
        let view = TensorView::new(*dtype, shape.to_vec(), bytes);
        (name.to_string(), view.unwrap())
    };
    safetensors::serialize(tensors.iter().map(view), None).unwrap()
}

/// Returns the bytes of a safetensors file with this header, correct or not.
pub fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// Makes a folder with these files.
pub fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    dir
}

/// Makes a folder with an empty configuration and these weights.
pub fn checkpoint(weights: &[u8]) -> TempDir {
    folder(&[("config.json", b"{}"), ("model.safetensors", weights)])
}

/// Asserts that `text` contains all of `parts`.
#[track_caller]
pub fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes());
    bytes.collect()
}

pub fn f16_bytes(values: &[f32]) -> Vec<u8> {
    let halves = values.iter().map(|&value| f16::from_f32(value));
    halves.flat_map(|half| half.to_le_bytes()).collect()
}

pub fn bf16_bytes(values: &[f32]) -> Vec<u8> {
    let halves = values.iter().map(|&value| bf16::from_f32(value));
    halves.flat_map(|half| half.to_le_bytes()).collect()
}
