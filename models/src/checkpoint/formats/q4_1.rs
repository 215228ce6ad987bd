//! Q4_1 of ggml: scale d, minimum m, 16 bytes of codes; weight = d code + m.

use super::ggml::{half, nibbles};
use super::{Format, each_block};

pub(super) const FORMAT: Format = Format::ggml(3, decode, |bytes, weights| {
    each_block(bytes, weights, decode)
});

fn decode(block: &[u8; 20], weights: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    nibbles(&block[4..], |at, code| {
        weights[at] = d * f32::from(code) + m;
    });
}
