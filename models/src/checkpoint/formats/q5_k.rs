//! Q5_K of ggml: as Q4_K, with the fifth bits of the codes in 32 bytes before the other bits.

use super::ggml::{k_quants};
use super::{Block, Format, each_block};

const BLOCK: Block = Block {
    weights: 256,
    bytes: 176,
};

pub(super) const FORMAT: Format = Format {
    block: BLOCK,
    decode: |bytes, weights| each_block(bytes, weights, decode),
    gguf: Some(13),
    written: None,
};

fn decode(block: &[u8; BLOCK.bytes], weights: &mut [f32; BLOCK.weights]) {
    let (scales, high, codes) = (&block[4..16], &block[16..48], &block[48..]);
    k_quants(block, scales, weights, |at| {
        let byte = codes[at / 64 * 32 + at % 32];
        let low = if at % 64 < 32 { byte & 15 } else { byte >> 4 };
        low | (high[at % 32] >> (at / 32) & 1) << 4
    });
}
