//! Q5_0 of ggml: scale d, the fifth bits of the codes in a u32, 16 bytes of the other bits;
//! weight = d (code - 16).

use super::ggml::{fifth, half, nibbles, word};
use super::{Block, Format, each_block};

const BLOCK: Block = Block {
    weights: 32,
    bytes: 22,
};

pub(super) const FORMAT: Format = Format {
    block: BLOCK,
    decode: |bytes, weights| each_block(bytes, weights, decode),
    gguf: Some(6),
    written: None,
};

fn decode(block: &[u8; BLOCK.bytes], weights: &mut [f32; BLOCK.weights]) {
    let (d, high) = (half(block, 0), word(block, 2));
    nibbles(&block[6..], |at, code| {
        weights[at] = d * (i32::from(code | fifth(high, at)) - 16) as f32;
    });
}
