//! `model.safetensors`: opens it and reads every tensor.

use sparq_models::checkpoint::Checkpoint;

use super::{accepted, tensors};

pub(super) fn run(data: &[u8]) -> bool {
    let checkpoint = Checkpoint::from_bytes("model", b"{}", data.to_vec());
    let checkpoint = accepted(checkpoint, "model.safetensors");
    checkpoint.as_ref().map(tensors::read).is_some()
}
