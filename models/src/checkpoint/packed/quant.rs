//! Weights in 8 and 4 bits: burn's quantisation, symmetric, with a scale for each block of 32 weights of a row.
//!
//! They are read as floats and computed with as such. burn's CPU backends multiply by quantised weights, too, but dequantise the whole matrix for every
//! product: on `flex` a row times 2048 x 8192 took 195 ms in either type where that of the floats took 4.2.

use burn::tensor::{
    Device, Tensor, TensorData,
    quantization::{QuantScheme, QuantStore, QuantValue, QuantizedBytes, ScaleDtype},
};
use half::f16;

use super::super::stored_type::StoredType;

/// Weights of a block. In blocks a large weight makes its neighbours coarse, and not the whole tensor.
pub(super) const BLOCK: usize = 32;

/// What burn calls a type; `None` for one that is not quantised.
pub(super) fn scheme(dtype: StoredType) -> Option<QuantScheme> {
    let value = match dtype {
        StoredType::Q8 => QuantValue::Q8S,
        StoredType::Q4 => QuantValue::Q4S,
        _ => return None,
    };
    let scheme = QuantScheme::default()
        .with_value(value)
        .with_store(QuantStore::PackedU32(0));
    Some(scheme.per_block([1, BLOCK as u8], ScaleDtype::F16))
}

/// The bytes of a matrix of floats in such a type, as burn writes them: codes, then scales.
pub(super) fn quantize(data: TensorData, dtype: StoredType, device: &Device) -> Option<Vec<u8>> {
    let shape = data.shape().clone();
    let quantized = Tensor::<2>::from_data(data, device).quantize_dynamic(&scheme(dtype)?);
    let data = quantized.try_into_data().ok()?;
    let burn::tensor::DType::QFloat(scheme) = data.dtype() else {
        return None;
    };
    let quantized = QuantizedBytes {
        bytes: data.into_bytes(),
        scheme,
        shape,
    };
    let (codes, scales) = quantized.into_vec_i8();
    let mut bytes: Vec<u8> = match dtype {
        StoredType::Q4 => {
            let pairs = codes.as_chunks::<2>().0.iter();
            pairs
                .map(|[low, high]| (low & 15 | high << 4) as u8)
                .collect()
        }
        _ => codes.iter().map(|code| *code as u8).collect(),
    };
    bytes.extend(
        scales
            .block
            .iter()
            .flat_map(|&scale| f16::from_f32(scale).to_le_bytes()),
    );
    Some(bytes)
}
