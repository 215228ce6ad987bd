//! Q5_1 of ggml: scale d, minimum m, the codes as in Q5_0; weight = d code + m.

use super::ggml::{fifth, half, nibbles, word};
use super::{Block, Format, each_block};

const BLOCK: Block = Block {
    weights: 32,
    bytes: 24,
};

pub(super) const FORMAT: Format = Format {
    block: BLOCK,
    decode: |bytes, weights| each_block(bytes, weights, decode),
    gguf: Some(7),
    written: None,
};

fn decode(block: &[u8; BLOCK.bytes], weights: &mut [f32; BLOCK.weights]) {
    let (d, m, high) = (half(block, 0), half(block, 2), word(block, 4));
    nibbles(&block[8..], |at, code| {
        weights[at] = d * f32::from(code | fifth(high, at)) + m;
    });
}
