//! Q4_0 of ggml: scale d, 16 bytes of codes; weight = d (code - 8).

use super::ggml::{half, nibbles};
use super::{Block, Format, each_block};

const BLOCK: Block = Block {
    weights: 32,
    bytes: 18,
};

pub(super) const FORMAT: Format = Format {
    block: BLOCK,
    decode: |bytes, weights| each_block(bytes, weights, decode),
    gguf: Some(2),
    written: None,
};

fn decode(block: &[u8; BLOCK.bytes], weights: &mut [f32; BLOCK.weights]) {
    let d = half(block, 0);
    nibbles(&block[2..], |at, code| {
        weights[at] = d * (i32::from(code) - 8) as f32;
    });
}
