//! F16: IEEE half precision, little-endian.

use burn::tensor::FloatDType;
use half::{f16, slice::HalfFloatSliceExt};
use safetensors::Dtype;

use super::Format;

pub(super) const FORMAT: Format = Format::float("f16", 1, 2, (FloatDType::F16, Dtype::F16), decode);

fn decode(bytes: &[u8], weights: &mut [f32]) {
    // The CPU's instructions for f16 convert slices: one value at a time costs ten times as much.
    const BATCH: usize = 1024;
    let mut halves = [f16::ZERO; BATCH];
    let batches = bytes.as_chunks::<2>().0.chunks(BATCH);
    for (bytes, weights) in batches.zip(weights.chunks_mut(BATCH)) {
        for (half, &bytes) in halves.iter_mut().zip(bytes) {
            *half = f16::from_le_bytes(bytes);
        }
        halves[..weights.len()].convert_to_f32_slice(weights);
    }
}
