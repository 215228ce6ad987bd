//! F32: little-endian.

use burn::tensor::FloatDType;
use safetensors::Dtype;

use super::{Format, each_block};

pub(super) const FORMAT: Format = Format::float(
    "f32",
    0,
    4,
    (FloatDType::F32, Dtype::F32),
    |bytes, weights| {
        each_block(bytes, weights, |&bytes, [weight]| {
            *weight = f32::from_le_bytes(bytes);
        });
    },
);
