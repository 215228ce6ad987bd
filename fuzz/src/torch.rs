//! `pytorch_model.bin`: opens it and reads every tensor.

use std::fs;

use sparq_models::checkpoint::Checkpoint;

use super::{accepted, tensors};

pub(super) fn run(data: &[u8]) -> bool {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), b"{}").unwrap();
    fs::write(folder.path().join("pytorch_model.bin"), data).unwrap();
    let checkpoint = accepted(Checkpoint::open(folder.path()), "pytorch_model.bin");
    checkpoint.as_ref().map(tensors::read).is_some()
}
