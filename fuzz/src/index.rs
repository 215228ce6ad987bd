//! `model.safetensors.index.json`, with two shards, and a file outside of the folder that must not
//! be opened.

use std::fs;

use sparq_models::checkpoint::Checkpoint;

use super::{accepted, tensors};

/// Returns a file of one tensor with one weight.
fn shard(name: &str) -> Vec<u8> {
    let header =
        format!(r#"{{"{name}": {{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}}}"#);
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(1_f32.to_le_bytes());
    bytes
}

pub(super) fn run(data: &[u8]) -> bool {
    let root = tempfile::tempdir().unwrap();
    let model = root.path().join("model");
    fs::create_dir_all(model.join("b")).unwrap();
    let files = [
        ("model/config.json", &b"{}"[..]),
        ("model/model.safetensors.index.json", data),
        ("model/a.safetensors", &shard("a")),
        ("model/b/b.safetensors", &shard("b")),
        ("secret.safetensors", &shard("secret")),
    ];
    for (name, bytes) in files {
        fs::write(root.path().join(name), bytes).unwrap();
    }
    let Some(checkpoint) = accepted(Checkpoint::open(&model), "model.safetensors.index.json")
    else {
        return false;
    };
    for name in checkpoint.names() {
        let file = checkpoint.entry(name).unwrap().file.canonicalize().unwrap();
        assert!(file.starts_with(model.canonicalize().unwrap()), "{file:?}");
    }
    tensors::read(&checkpoint);
    true
}
