//! Q4_K of ggml: scale d of the scales, scale m of the minima, eight scales and minima in 6 bits,
//! 128 bytes of codes; weight = d scale code - m minimum.

use super::ggml::k_quants;
use super::{Format, each_block};

pub(super) const FORMAT: Format = Format::ggml(12, decode, |bytes, weights| {
    each_block(bytes, weights, decode)
});

fn decode(block: &[u8; 144], weights: &mut [f32; 256]) {
    let (scales, codes) = (&block[4..16], &block[16..]);
    k_quants(block, scales, weights, |at| {
        let byte = codes[at / 64 * 32 + at % 32];
        if at % 64 < 32 { byte & 15 } else { byte >> 4 }
    });
}
