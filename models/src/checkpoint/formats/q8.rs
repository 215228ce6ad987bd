//! Q8 of a converted model: signed codes of 8 bits; weight = scale code.

use burn::tensor::quantization::QuantValue;

use super::{Format, Quantized, StoredType, each_scaled_block};

const QUANTIZED: Quantized = Quantized {
    value: QuantValue::Q8S,
    pack: |codes| codes.iter().map(|code| *code as u8).collect(),
    for_embeddings: StoredType::Q8,
};

pub(super) const FORMAT: Format = Format::quantized("q8", QUANTIZED, decode, |bytes, weights| {
    each_scaled_block(bytes, weights, decode);
});

fn decode(codes: &[u8; 32], scale: f32, weights: &mut [f32; 32]) {
    for (weight, &code) in weights.iter_mut().zip(codes) {
        *weight = scale * f32::from(code as i8);
    }
}
