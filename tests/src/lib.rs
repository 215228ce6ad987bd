//! What the tests that cross crates share: the devices, fixtures, and comparisons.
#![deny(missing_docs)]

mod real_model;

pub use real_model::{Thoroughness, real_model};

use std::path::PathBuf;

use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};
use safetensors::SafeTensors;
use sparq_device::DeviceChoice;
use sparq_models::checkpoint::Checkpoint;
use sparq_models::{Decoder, DecoderConfig};

/// The device that BURN_DEVICE names, or else every one of this build that answers.
pub fn devices() -> Vec<Device> {
    let devices = sparq_device::for_tests().unwrap();
    devices.iter().map(DeviceChoice::open).collect()
}

/// How far logits of a tiny model may be from transformers' on a device.
///
/// With CUDA, burn multiplies matrices of f32 in TF32, which keeps 11 bits of a number.
pub fn tolerance(device: &Device) -> f32 {
    match format!("{device:?}").contains("Cuda(") {
        true => 5e-3,
        false => 2e-4,
    }
}

/// A path under this package's `fixtures`.
pub fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(path)
}

/// A model of the checkpoint in f32, of whatever family it is.
pub fn load(checkpoint: &Checkpoint, device: &Device) -> Decoder {
    let config = DecoderConfig::from_checkpoint(checkpoint).unwrap();
    Decoder::load(checkpoint, &config, FloatDType::F32, device).unwrap()
}

/// The tensors of a safetensors file of expected results.
pub struct Expected(Vec<u8>);

impl Expected {
    /// Reads `fixtures/{path}`.
    pub fn read(path: &str) -> Self {
        Self(std::fs::read(fixture(path)).unwrap())
    }

    fn tensor(&self, name: &str) -> (Vec<usize>, Vec<u8>) {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap();
        (view.shape().to_vec(), view.data().to_vec())
    }

    /// An entry of the file's metadata.
    pub fn text(&self, key: &str) -> String {
        let (_, metadata) = SafeTensors::read_metadata(&self.0).unwrap();
        metadata.metadata().as_ref().unwrap()[key].clone()
    }

    /// A tensor of integers, of 32 or 64 bits, and its shape.
    pub fn ints(&self, name: &str) -> (Vec<usize>, Vec<i64>) {
        let (shape, bytes) = self.tensor(name);
        let long = |b: &[u8]| i64::from_le_bytes(b.try_into().unwrap());
        let short = |b: &[u8]| i64::from(i32::from_le_bytes(b.try_into().unwrap()));
        let ints = match bytes.len() / shape.iter().product::<usize>().max(1) {
            4 => bytes.chunks_exact(4).map(short).collect(),
            _ => bytes.chunks_exact(8).map(long).collect(),
        };
        (shape, ints)
    }

    /// A tensor of 32-bit floats and its shape.
    pub fn floats(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let (shape, bytes) = self.tensor(name);
        (
            shape,
            bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect(),
        )
    }
}

/// Token ids as a tensor [batch, len].
pub fn tokens(ids: &[i64], batch: usize, device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(
        TensorData::new(ids.to_vec(), [batch, ids.len() / batch]),
        device,
    )
}

/// The largest absolute difference; NaN if there is one.
pub fn max_difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |worst, d| if d.is_nan() { d } else { worst.max(d) })
}

/// The elements of a tensor, in order.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec::<f32>().unwrap()
}

/// The index of the largest element.
pub fn argmax(values: &[f32]) -> i64 {
    (0..values.len())
        .max_by(|&a, &b| values[a].total_cmp(&values[b]).then(b.cmp(&a)))
        .unwrap() as i64
}
