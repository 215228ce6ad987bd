//! Q5_1 of ggml: scale d, minimum m, the codes as in Q5_0; weight = d code + m.

use super::ggml::{fifth, half, nibbles, word};
use super::{Format, each_block};

pub(super) const FORMAT: Format = Format::ggml(7, decode, |bytes, weights| {
    each_block(bytes, weights, decode)
});

fn decode(block: &[u8; 24], weights: &mut [f32; 32]) {
    let (d, m, high) = (half(block, 0), half(block, 2), word(block, 4));
    nibbles(&block[8..], |at, code| {
        weights[at] = d * f32::from(code | fifth(high, at)) + m;
    });
}
