//! BF16: the upper half of an F32, little-endian.

use burn::tensor::FloatDType;
use safetensors::Dtype;

use super::{Format, each_block};

pub(super) const FORMAT: Format = Format::float(
    "bf16",
    30,
    2,
    (FloatDType::BF16, Dtype::BF16),
    |bytes, weights| {
        each_block(bytes, weights, |&bytes, [weight]| {
            *weight = f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16);
        });
    },
);
