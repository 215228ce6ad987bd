//! IQ4_XS of ggml: scale d of the scales, the upper two bits of eight scales in a u16, their lower
//! four bits in four bytes, 128 bytes of codes; weight = d (scale - 32) number, the number from the
//! table of IQ4_NL.

use super::ggml::{NONLINEAR, half, look_up};
use super::{Format, each_block};

pub(super) const FORMAT: Format = Format::ggml(23, decode, |bytes, weights| {
    each_block(bytes, weights, decode)
});

fn decode(block: &[u8; 136], weights: &mut [f32; 256]) {
    let (d, upper) = (half(block, 0), u16::from_le_bytes([block[2], block[3]]));
    let runs = block[8..]
        .chunks_exact(16)
        .zip(weights.chunks_exact_mut(32));
    for (run, (codes, weights)) in runs.enumerate() {
        let lower = block[4 + run / 2] >> (run % 2 * 4) & 15;
        let scale = i32::from(lower) | i32::from(upper >> (2 * run) & 3) << 4;
        look_up(codes, &NONLINEAR, d * (scale - 32) as f32, weights);
    }
}
