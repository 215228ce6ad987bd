//! Q6_K of ggml: 128 bytes of lower and 64 of upper bits, sixteen scales of 8 bits, scale d of the
//! scales; weight = d scale (code - 32).

use super::ggml::half;
use super::{Format, each_block};

pub(super) const FORMAT: Format = Format::ggml(14, decode, |bytes, weights| {
    each_block(bytes, weights, decode)
});

fn decode(block: &[u8; 210], weights: &mut [f32; 256]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half(block, 208);
    for (at, weight) in weights.iter_mut().enumerate() {
        // Each half of a block has four runs of 32 weights, whose upper bits share bytes.
        let (part, run, lane) = (at / 128, at % 128 / 32, at % 32);
        let byte = low[part * 64 + run % 2 * 32 + lane];
        let lower = if run < 2 { byte & 15 } else { byte >> 4 };
        let upper = high[part * 32 + lane] >> (2 * run) & 3;
        let code = i32::from(lower | upper << 4) - 32;
        // The order of ggml's products, so that the floats are the same.
        *weight = d * f32::from(scales[at / 16] as i8) * code as f32;
    }
}
