//! BF16: the upper half of an F32, little-endian.

use burn::tensor::FloatDType;
use safetensors::Dtype;

use super::{Block, Encoding, Format, Written, each_block};

pub(super) const FORMAT: Format = Format {
    block: Block {
        weights: 1,
        bytes: 2,
    },
    decode: |bytes, weights| {
        each_block(bytes, weights, |&bytes, [weight]| {
            *weight = f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16);
        });
    },
    gguf: Some(30),
    written: Some(Written {
        flag: "bf16",
        encoding: Encoding::Float {
            burn: FloatDType::BF16,
            safetensors: Dtype::BF16,
        },
    }),
};
