//! Q8_0 of ggml: scale d, 32 signed codes; weight = d code.

use super::ggml::half;
use super::{Format, each_block};

pub(super) const FORMAT: Format = Format::ggml(8, decode, |bytes, weights| {
    each_block(bytes, weights, decode)
});

fn decode(block: &[u8; 34], weights: &mut [f32; 32]) {
    let d = half(block, 0);
    for (weight, &code) in weights.iter_mut().zip(&block[2..]) {
        *weight = d * f32::from(code as i8);
    }
}
