//! From blocks to floats: those of a GGUF file as ggml's `dequantize_row_*` do it, those of a converted model as burn does it.

use half::f16;

/// Q4_0: scale d, 16 bytes of codes; weight = d (code - 8). The low halves of the bytes are the first 16 weights.
pub(super) fn q4_0(block: &[u8; 18], weights: &mut [f32; 32]) {
    let d = half(block, 0);
    nibbles(&block[2..], |at, code| {
        weights[at] = d * (i32::from(code) - 8) as f32;
    });
}

/// Q4_1: scale d, minimum m, 16 bytes of codes; weight = d code + m.
pub(super) fn q4_1(block: &[u8; 20], weights: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    nibbles(&block[4..], |at, code| {
        weights[at] = d * f32::from(code) + m
    });
}

/// Q5_0: scale d, the fifth bits of the codes in a u32, 16 bytes of the other bits; weight = d (code - 16).
pub(super) fn q5_0(block: &[u8; 22], weights: &mut [f32; 32]) {
    let (d, high) = (half(block, 0), word(block, 2));
    nibbles(&block[6..], |at, code| {
        weights[at] = d * (i32::from(code | fifth(high, at)) - 16) as f32;
    });
}

/// Q5_1: scale d, minimum m, the codes as in Q5_0; weight = d code + m.
pub(super) fn q5_1(block: &[u8; 24], weights: &mut [f32; 32]) {
    let (d, m, high) = (half(block, 0), half(block, 2), word(block, 4));
    nibbles(&block[8..], |at, code| {
        weights[at] = d * f32::from(code | fifth(high, at)) + m;
    });
}

/// Q8_0: scale d, 32 signed codes; weight = d code.
pub(super) fn q8_0(block: &[u8; 34], weights: &mut [f32; 32]) {
    let d = half(block, 0);
    for (weight, &code) in weights.iter_mut().zip(&block[2..]) {
        *weight = d * f32::from(code as i8);
    }
}

/// Q4_K: scales d of the scales and m of the minima, eight of each in 6 bits, 128 bytes of codes; weight = d scale code - m minimum.
pub(super) fn q4_k(block: &[u8; 144], weights: &mut [f32; 256]) {
    let (scales, codes) = (&block[4..16], &block[16..]);
    k_quants(block, scales, weights, |at| {
        let byte = codes[at / 64 * 32 + at % 32];
        if at % 64 < 32 { byte & 15 } else { byte >> 4 }
    });
}

/// Q5_K: as Q4_K, with the fifth bits of the codes in 32 bytes before the others.
pub(super) fn q5_k(block: &[u8; 176], weights: &mut [f32; 256]) {
    let (scales, high, codes) = (&block[4..16], &block[16..48], &block[48..]);
    k_quants(block, scales, weights, |at| {
        let byte = codes[at / 64 * 32 + at % 32];
        let low = if at % 64 < 32 { byte & 15 } else { byte >> 4 };
        low | (high[at % 32] >> (at / 32) & 1) << 4
    });
}

/// Q6_K: 128 bytes of lower and 64 of upper bits, sixteen scales of 8 bits, scale d of the scales; weight = d scale (code - 32).
pub(super) fn q6_k(block: &[u8; 210], weights: &mut [f32; 256]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half(block, 208);
    for (at, weight) in weights.iter_mut().enumerate() {
        // Half a block at a time: four runs of 32 weights, whose upper bits share bytes.
        let (part, run, lane) = (at / 128, at % 128 / 32, at % 32);
        let byte = low[part * 64 + run % 2 * 32 + lane];
        let lower = if run < 2 { byte & 15 } else { byte >> 4 };
        let upper = high[part * 32 + lane] >> (2 * run) & 3;
        let code = i32::from(lower | upper << 4) - 32;
        // In the order of ggml's products, so that the floats are the same ones.
        *weight = d * f32::from(scales[at / 16] as i8) * code as f32;
    }
}

/// Q8 of a converted model: weight = scale code.
pub(super) fn q8(codes: &[u8; 32], scale: f32, weights: &mut [f32; 32]) {
    for (weight, &code) in weights.iter_mut().zip(codes) {
        *weight = scale * f32::from(code as i8);
    }
}

/// Q4 of a converted model: weight = scale code, the codes signed and two in a byte, the lower half first.
pub(super) fn q4(codes: &[u8; 16], scale: f32, weights: &mut [f32; 32]) {
    for (pair, &byte) in weights.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
        *pair = [(byte << 4) as i8 >> 4, byte as i8 >> 4].map(|code| scale * f32::from(code));
    }
}

/// What Q4_K and Q5_K share: `code` gives the code of a weight.
fn k_quants(block: &[u8], scales: &[u8], weights: &mut [f32; 256], code: impl Fn(usize) -> u8) {
    let (d, m) = (half(block, 0), half(block, 2));
    for (run, weights) in weights.chunks_exact_mut(32).enumerate() {
        // The upper two bits of the last four scales and minima lie above those of the first four.
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

/// Gives the 32 codes in 16 bytes, each with its place.
fn nibbles(bytes: &[u8], mut place: impl FnMut(usize, u8)) {
    for (at, byte) in bytes.iter().enumerate() {
        place(at, byte & 15);
        place(at + 16, byte >> 4);
    }
}

/// Bit 4 of the code at `at`.
fn fifth(high: u32, at: usize) -> u8 {
    ((high >> at & 1) << 4) as u8
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn word(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}
