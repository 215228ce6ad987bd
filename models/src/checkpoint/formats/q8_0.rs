//! Q8_0 of ggml: scale d, 32 signed codes; weight = d code.

use super::ggml::{half};
use super::{Block, Format, each_block};

const BLOCK: Block = Block {
    weights: 32,
    bytes: 34,
};

pub(super) const FORMAT: Format = Format {
    block: BLOCK,
    decode: |bytes, weights| each_block(bytes, weights, decode),
    gguf: Some(8),
    written: None,
};

fn decode(block: &[u8; BLOCK.bytes], weights: &mut [f32; BLOCK.weights]) {
    let d = half(block, 0);
    for (weight, &code) in weights.iter_mut().zip(&block[2..]) {
        *weight = d * f32::from(code as i8);
    }
}
