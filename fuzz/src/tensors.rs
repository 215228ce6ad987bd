//! Reads all tensors of a checkpoint.

use burn::tensor::{Device, FloatDType};
use sparq_models::checkpoint::{Checkpoint, Loader, Weights};

use super::accepted;

/// Reads every tensor, and matrices also transposed, as for a linear layer.
pub(super) fn read(checkpoint: &Checkpoint) {
    let device = Device::default();
    let loader = Loader::new(checkpoint, &device, FloatDType::F32).unwrap();
    for name in checkpoint.names() {
        let entry = checkpoint.entry(name).unwrap();
        let file = entry.file.to_str().unwrap();
        match *entry.shape {
            [a] => drop(accepted(loader.tensor(name, [a]), file)),
            [a, b] => {
                let tensor = accepted(loader.tensor(name, [a, b]), file);
                assert!(tensor.is_none_or(|tensor| tensor.dims() == [a, b]));
                if let Some(prefix) = name.strip_suffix(".weight") {
                    accepted(loader.linear(prefix, b, a, false), file);
                }
            }
            [a, b, c] => drop(accepted(loader.tensor(name, [a, b, c]), file)),
            _ => {}
        }
    }
    loader.finish();
}
