//! Q4_0 of ggml: scale d, 16 bytes of codes; weight = d (code - 8).

use super::ggml::{half, nibbles};
use super::{Format, each_block};

pub(super) const FORMAT: Format = Format::ggml(2, decode, |bytes, weights| {
    each_block(bytes, weights, decode)
});

fn decode(block: &[u8; 18], weights: &mut [f32; 32]) {
    let d = half(block, 0);
    nibbles(&block[2..], |at, code| {
        weights[at] = d * (i32::from(code) - 8) as f32;
    });
}
