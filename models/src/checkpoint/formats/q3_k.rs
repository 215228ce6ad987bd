//! Q3_K of ggml: 32 bytes with the upper bits of the codes, 64 with the lower two, twelve with
//! sixteen scales of 6 bits, scale d of the scales; weight = d (scale - 32) (code - 4).

use super::ggml::half;
use super::{Format, each_block};

pub(super) const FORMAT: Format = Format::ggml(11, decode, |bytes, weights| {
    each_block(bytes, weights, decode)
});

fn decode(block: &[u8; 110], weights: &mut [f32; 256]) {
    let (upper, codes, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half(block, 108);
    for (at, weight) in weights.iter_mut().enumerate() {
        // Each half of a block has four runs of 32 weights, whose lower bits share bytes.
        let (part, run, lane) = (at / 128, at % 128 / 32, at % 32);
        let low = codes[part * 32 + lane] >> (2 * run) & 3;
        let code = low | (upper[lane] >> (at / 32) & 1) << 2;
        let scale = d * f32::from(scale(scales, at / 16));
        *weight = scale * f32::from(code as i8 - 4);
    }
}

/// Returns the scale `at`, less 32. The last four bytes have the upper two bits of the scales.
fn scale(scales: &[u8], at: usize) -> i8 {
    let low = scales[at % 8] >> (at / 8 * 4) & 15;
    let high = scales[8 + at % 4] >> (at / 4 * 2) & 3;
    (low | high << 4) as i8 - 32
}
