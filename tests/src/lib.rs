//! Devices, fixtures and comparisons for the tests that cross crates.
#![deny(missing_docs)]

mod real_model;

pub use real_model::{Thoroughness, real_model};

use std::path::PathBuf;

use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};
use safetensors::SafeTensors;
use sparq::Method;
use sparq_device::DeviceChoice;
use sparq_models::checkpoint::Checkpoint;
use sparq_models::{CausalLm, Decoder, DecoderConfig, ModelCache};

/// Returns the device that BURN_DEVICE names, or else every available device of this build.
pub fn devices() -> Vec<Device> {
    let devices = sparq_device::for_tests().unwrap();
    devices.iter().map(DeviceChoice::open).collect()
}

/// Returns the largest accepted difference of a tiny model's logits from transformers.
///
/// On CUDA, burn multiplies f32 matrices in TF32, which has a significand of 11 bits.
pub fn tolerance(device: &Device) -> f32 {
    match format!("{device:?}").contains("Cuda(") {
        true => 5e-3,
        false => 2e-4,
    }
}

/// Returns a path in the `fixtures` of this package.
pub fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(path)
}

/// Loads a checkpoint of any family in f32.
pub fn load(checkpoint: &Checkpoint, device: &Device) -> Decoder {
    let config = DecoderConfig::from_checkpoint(checkpoint).unwrap();
    Decoder::load(checkpoint, &config, FloatDType::F32, device).unwrap()
}

/// A safetensors file with expected results.
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

    /// Returns an entry of the metadata.
    pub fn text(&self, key: &str) -> String {
        let (_, metadata) = SafeTensors::read_metadata(&self.0).unwrap();
        metadata.metadata().as_ref().unwrap()[key].clone()
    }

    /// Returns the shape and the elements of a tensor of 32- or 64-bit integers.
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

    /// Returns the shape and the elements of an f32 tensor.
    pub fn floats(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let (shape, bytes) = self.tensor(name);
        (shape, floats(&bytes))
    }
}

/// Returns the f32 numbers in little-endian bytes.
pub fn floats(bytes: &[u8]) -> Vec<f32> {
    let floats = bytes.as_chunks().0.iter();
    floats.map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

/// Asserts that `text` contains all of `parts`.
#[track_caller]
pub fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

/// Makes a tensor [batch, len] of token ids.
pub fn tokens(ids: &[i64], batch: usize, device: &Device) -> Tensor<2, Int> {
    let ids = TensorData::new(ids.to_vec(), [batch, ids.len() / batch]);
    Tensor::from_data(ids, device)
}

/// Makes an f32 cache for `batch` sequences and `capacity` positions.
pub fn new_cache(model: &Decoder, batch: usize, capacity: usize, method: &Method) -> ModelCache {
    let cache = model.new_cache(batch, capacity, FloatDType::F32, method);
    cache.unwrap()
}

/// Decodes the positions `range` of `ids` [batch, len], one by one. Returns their logits
/// [batch, positions, vocab].
pub fn decode(
    model: &Decoder,
    ids: &Tensor<2, Int>,
    range: std::ops::Range<usize>,
    cache: &mut ModelCache,
    method: &Method,
) -> Vec<f32> {
    let steps = range.map(|position| {
        let token = ids.clone().slice_dim(1, position..position + 1);
        model.decode(token, cache, method).unwrap()
    });
    values(Tensor::cat(steps.collect(), 1))
}

/// Returns the logits [batch, len, vocab] of `input_ids` after one prefill.
pub fn prefill_logits(model: &Decoder, expected: &Expected) -> Vec<f32> {
    let (shape, ids) = expected.ints("input_ids");
    let mut cache = new_cache(model, shape[0], 16, &Method::DENSE);
    let ids = tokens(&ids, shape[0], &model.device());
    let logits = model.prefill(ids, &mut cache, shape[1]);
    values(logits.unwrap())
}

/// Returns the largest absolute difference, or NaN if one is NaN.
pub fn max_difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |worst, d| if d.is_nan() { d } else { worst.max(d) })
}

/// Returns the elements of a tensor in row-major order.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec::<f32>().unwrap()
}

/// Returns the index of the largest element, the first of equal ones.
pub fn argmax(values: &[f32]) -> i64 {
    (0..values.len())
        .max_by(|&a, &b| values[a].total_cmp(&values[b]).then(b.cmp(&a)))
        .unwrap() as i64
}
