//! Q5_K of ggml: as Q4_K, with the fifth bits of the codes in 32 bytes before the other bits.

use super::ggml::k_quants;
use super::{Format, each_block};

pub(super) const FORMAT: Format = Format::ggml(13, decode, |bytes, weights| {
    each_block(bytes, weights, decode)
});

fn decode(block: &[u8; 176], weights: &mut [f32; 256]) {
    let (scales, high, codes) = (&block[4..16], &block[16..48], &block[48..]);
    k_quants(block, scales, weights, |at| {
        let byte = codes[at / 64 * 32 + at % 32];
        let low = if at % 64 < 32 { byte & 15 } else { byte >> 4 };
        low | (high[at % 32] >> (at / 32) & 1) << 4
    });
}
