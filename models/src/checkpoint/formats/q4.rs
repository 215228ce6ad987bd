//! Q4 of a converted model: signed codes, two in a byte, the lower half first; weight = scale code.

use burn::tensor::quantization::QuantValue;

use super::{Format, Quantized, StoredType, each_scaled_block};

const QUANTIZED: Quantized = Quantized {
    value: QuantValue::Q4S,
    pack,
    for_embeddings: StoredType::Q8,
};

pub(super) const FORMAT: Format = Format::quantized("q4", QUANTIZED, decode, |bytes, weights| {
    each_scaled_block(bytes, weights, decode);
});

fn decode(codes: &[u8; 16], scale: f32, weights: &mut [f32; 32]) {
    for (pair, &byte) in weights.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
        *pair = [(byte << 4) as i8 >> 4, byte as i8 >> 4].map(|code| scale * f32::from(code));
    }
}

fn pack(codes: &[i8]) -> Vec<u8> {
    let pairs = codes.as_chunks::<2>().0.iter();
    pairs
        .map(|[low, high]| (low & 15 | high << 4) as u8)
        .collect()
}
