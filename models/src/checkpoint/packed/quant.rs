//! Weights in 8 and 4 bits: burn's quantisation, symmetric, with a scale for each block of 32
//! weights of a row. Blocks keep a large weight from making the codes of the whole tensor coarse.
//!
//! They are decoded to floats when a model is loaded. burn's CPU backends can also multiply by
//! quantised weights, but dequantise the whole matrix for every product: on `flex` a row times
//! 2048 x 8192 took 195 ms in either type, and 4.2 ms in floats.

use burn::tensor::{DType, Device, Tensor, TensorData, quantization::QuantizedBytes};
use half::f16;

use super::super::formats::StoredType;

/// Quantises a matrix of floats. Returns the codes, then the scales, in burn's layout.
pub(super) fn quantize(data: TensorData, dtype: StoredType, device: &Device) -> Option<Vec<u8>> {
    let DType::QFloat(scheme) = dtype.burn_type()? else {
        return None;
    };
    let shape = data.shape().clone();
    let quantized = Tensor::<2>::from_data(data, device).quantize_dynamic(&scheme);
    let data = quantized.try_into_data().ok()?;
    let DType::QFloat(scheme) = data.dtype() else {
        return None;
    };
    let quantized = QuantizedBytes {
        bytes: data.into_bytes(),
        scheme,
        shape,
    };
    let (codes, scales) = quantized.into_vec_i8();
    let mut bytes = (dtype.quantized()?.pack)(&codes);
    let scales = scales.block.iter();
    bytes.extend(scales.flat_map(|&scale| f16::from_f32(scale).to_le_bytes()));
    Some(bytes)
}
