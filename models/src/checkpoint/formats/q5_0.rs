//! Q5_0 of ggml: scale d, the fifth bits of the codes in a u32, 16 bytes of the other bits;
//! weight = d (code - 16).

use super::ggml::{fifth, half, nibbles, word};
use super::{Format, each_block};

pub(super) const FORMAT: Format = Format::ggml(6, decode, |bytes, weights| {
    each_block(bytes, weights, decode)
});

fn decode(block: &[u8; 22], weights: &mut [f32; 32]) {
    let (d, high) = (half(block, 0), word(block, 2));
    nibbles(&block[6..], |at, code| {
        weights[at] = d * (i32::from(code | fifth(high, at)) - 16) as f32;
    });
}
