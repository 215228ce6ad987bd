//! Q4_1 of ggml: scale d, minimum m, 16 bytes of codes; weight = d code + m.

use super::ggml::{half, nibbles};
use super::{Block, Format, each_block};

const BLOCK: Block = Block {
    weights: 32,
    bytes: 20,
};

pub(super) const FORMAT: Format = Format {
    block: BLOCK,
    decode: |bytes, weights| each_block(bytes, weights, decode),
    gguf: Some(3),
    written: None,
};

fn decode(block: &[u8; BLOCK.bytes], weights: &mut [f32; BLOCK.weights]) {
    let (d, m) = (half(block, 0), half(block, 2));
    nibbles(&block[4..], |at, code| {
        weights[at] = d * f32::from(code) + m;
    });
}
