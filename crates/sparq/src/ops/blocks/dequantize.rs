//! The weights of blocks, in the order of ggml's operations: the floats are the same.

use burn::tensor::f16;

use super::BlockFormat;

/// See [`BlockFormat::dequantize`].
pub(super) fn dequantize(format: BlockFormat, blocks: &[u8], weights: &mut [f32]) {
    match format {
        BlockFormat::Q8_0 => each_block(blocks, weights, q8_0),
        BlockFormat::Q4_0 => each_block(blocks, weights, q4_0),
        BlockFormat::Q4_1 => each_block(blocks, weights, q4_1),
        BlockFormat::Q5_0 => each_block(blocks, weights, q5_0),
        BlockFormat::Q5_1 => each_block(blocks, weights, q5_1),
        BlockFormat::Q4_K => each_block(blocks, weights, q4_k),
        BlockFormat::Q5_K => each_block(blocks, weights, q5_k),
        BlockFormat::Q6_K => each_block(blocks, weights, q6_k),
    }
}

fn each_block<const BYTES: usize, const WEIGHTS: usize>(
    blocks: &[u8],
    weights: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; WEIGHTS]),
) {
    let blocks = blocks.as_chunks().0.iter();
    for (block, weights) in blocks.zip(weights.as_chunks_mut().0) {
        decode(block, weights);
    }
}

fn q8_0(block: &[u8; 34], weights: &mut [f32; 32]) {
    let d = half(block, 0);
    for (weight, &code) in weights.iter_mut().zip(&block[2..]) {
        *weight = d * f32::from(code as i8);
    }
}

fn q4_0(block: &[u8; 18], weights: &mut [f32; 32]) {
    let d = half(block, 0);
    nibbles(&block[2..], |at, code| {
        weights[at] = d * (i32::from(code) - 8) as f32;
    });
}

fn q4_1(block: &[u8; 20], weights: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    nibbles(&block[4..], |at, code| {
        weights[at] = d * f32::from(code) + m;
    });
}

fn q5_0(block: &[u8; 22], weights: &mut [f32; 32]) {
    let (d, high) = (half(block, 0), word(block, 2));
    nibbles(&block[6..], |at, code| {
        weights[at] = d * (i32::from(code | fifth(high, at)) - 16) as f32;
    });
}

fn q5_1(block: &[u8; 24], weights: &mut [f32; 32]) {
    let (d, m, high) = (half(block, 0), half(block, 2), word(block, 4));
    nibbles(&block[8..], |at, code| {
        weights[at] = d * f32::from(code | fifth(high, at)) + m;
    });
}

fn q4_k(block: &[u8; 144], weights: &mut [f32; 256]) {
    let (scales, codes) = (&block[4..16], &block[16..]);
    scaled(block, scales, weights, |at| {
        let byte = codes[at / 64 * 32 + at % 32];
        if at % 64 < 32 { byte & 15 } else { byte >> 4 }
    });
}

fn q5_k(block: &[u8; 176], weights: &mut [f32; 256]) {
    let (scales, high, codes) = (&block[4..16], &block[16..48], &block[48..]);
    scaled(block, scales, weights, |at| {
        let byte = codes[at / 64 * 32 + at % 32];
        let low = if at % 64 < 32 { byte & 15 } else { byte >> 4 };
        low | (high[at % 32] >> (at / 32) & 1) << 4
    });
}

fn q6_k(block: &[u8; 210], weights: &mut [f32; 256]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half(block, 208);
    for (at, weight) in weights.iter_mut().enumerate() {
        // Each half of a block has four runs of 32 weights, whose upper bits share bytes.
        let (part, run, lane) = (at / 128, at % 128 / 32, at % 32);
        let byte = low[part * 64 + run % 2 * 32 + lane];
        let lower = if run < 2 { byte & 15 } else { byte >> 4 };
        let upper = high[part * 32 + lane] >> (2 * run) & 3;
        let code = i32::from(lower | upper << 4) - 32;
        *weight = d * f32::from(scales[at / 16] as i8) * code as f32;
    }
}

/// Decodes a block of Q4_K or Q5_K; `code` returns the code of a weight.
fn scaled(block: &[u8], scales: &[u8], weights: &mut [f32; 256], code: impl Fn(usize) -> u8) {
    let (d, m) = (half(block, 0), half(block, 2));
    for (run, weights) in weights.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = match run {
            0..4 => (scales[run] & 63, scales[run + 4] & 63),
            _ => (
                scales[run + 4] & 15 | scales[run - 4] >> 6 << 4,
                scales[run + 4] >> 4 | scales[run] >> 6 << 4,
            ),
        };
        let (d, m) = (d * f32::from(scale), m * f32::from(minimum));
        for (lane, weight) in weights.iter_mut().enumerate() {
            *weight = d * f32::from(code(run * 32 + lane)) - m;
        }
    }
}

/// Passes the 32 codes in 16 bytes to `place`, each with its index.
fn nibbles(bytes: &[u8], mut place: impl FnMut(usize, u8)) {
    for (at, byte) in bytes.iter().enumerate() {
        place(at, byte & 15);
        place(at + 16, byte >> 4);
    }
}

/// Returns bit 4 of the code `at`.
fn fifth(high: u32, at: usize) -> u8 {
    ((high >> at & 1) << 4) as u8
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn word(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}
