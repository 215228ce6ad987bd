//! Q4_K of ggml: scale d of the scales, scale m of the minima, eight scales and minima in 6 bits, 128
//! bytes of codes; weight = d scale code - m minimum.

use super::ggml::{k_quants};
use super::{Block, Format, each_block};

const BLOCK: Block = Block {
    weights: 256,
    bytes: 144,
};

pub(super) const FORMAT: Format = Format {
    block: BLOCK,
    decode: |bytes, weights| each_block(bytes, weights, decode),
    gguf: Some(12),
    written: None,
};

fn decode(block: &[u8; BLOCK.bytes], weights: &mut [f32; BLOCK.weights]) {
    let (scales, codes) = (&block[4..16], &block[16..]);
    k_quants(block, scales, weights, |at| {
        let byte = codes[at / 64 * 32 + at % 32];
        if at % 64 < 32 { byte & 15 } else { byte >> 4 }
    });
}
