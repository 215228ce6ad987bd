//! MXFP4 of ggml: the exponent e of the scale 2^(e - 127), 16 bytes of codes; a code is a float of
//! 4 bits with a sign, two bits of exponent and one of mantissa.

use super::ggml::look_up;
use super::{Format, each_block};

/// The numbers of the codes, doubled.
const DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

pub(super) const FORMAT: Format = Format::ggml(39, decode, |bytes, weights| {
    each_block(bytes, weights, decode)
});

fn decode(block: &[u8; 17], weights: &mut [f32; 32]) {
    look_up(&block[1..], &DOUBLED, half_scale(block[0]), weights);
}

/// Returns 2^(exponent - 128), half of the scale.
fn half_scale(exponent: u8) -> f32 {
    match exponent {
        // Subnormal.
        0 | 1 => f32::from_bits(0x0020_0000 << exponent),
        _ => f32::from_bits((u32::from(exponent) - 1) << 23),
    }
}
