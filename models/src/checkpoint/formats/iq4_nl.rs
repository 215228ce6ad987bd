//! IQ4_NL of ggml: scale d, 16 bytes of codes; weight = d number, the number from a table.

use super::ggml::{NONLINEAR, half, look_up};
use super::{Format, each_block};

pub(super) const FORMAT: Format = Format::ggml(20, decode, |bytes, weights| {
    each_block(bytes, weights, decode)
});

fn decode(block: &[u8; 18], weights: &mut [f32; 32]) {
    look_up(&block[2..], &NONLINEAR, half(block, 0), weights);
}
