//! F32: little-endian.

use burn::tensor::FloatDType;
use safetensors::Dtype;

use super::{Block, Encoding, Format, Written, each_block};

pub(super) const FORMAT: Format = Format {
    block: Block {
        weights: 1,
        bytes: 4,
    },
    decode: |bytes, weights| {
        each_block(bytes, weights, |&bytes, [weight]| {
            *weight = f32::from_le_bytes(bytes);
        });
    },
    gguf: Some(0),
    written: Some(Written {
        flag: "f32",
        encoding: Encoding::Float {
            burn: FloatDType::F32,
            safetensors: Dtype::F32,
        },
    }),
};
