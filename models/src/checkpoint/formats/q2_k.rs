//! Q2_K of ggml: sixteen scales and minima of 4 bits in a byte each, 64 bytes of codes, scale d of
//! the scales, scale m of the minima; weight = d scale code - m minimum.

use super::ggml::half;
use super::{Format, each_block};

pub(super) const FORMAT: Format = Format::ggml(10, decode, |bytes, weights| {
    each_block(bytes, weights, decode)
});

fn decode(block: &[u8; 84], weights: &mut [f32; 256]) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (d, m) = (half(block, 80), half(block, 82));
    for (at, weight) in weights.iter_mut().enumerate() {
        let scale = scales[at / 16];
        let (d, m) = (d * f32::from(scale & 15), m * f32::from(scale >> 4));
        // Each half of a block has four runs of 32 weights, whose codes share bytes.
        let (half, run, lane) = (at / 128, at % 128 / 32, at % 32);
        let code = codes[half * 32 + lane] >> (2 * run) & 3;
        *weight = d * f32::from(code) - m;
    }
}
