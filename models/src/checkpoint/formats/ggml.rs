//! The parts that blocks of ggml share. Decoding gives the floats of ggml's `dequantize_row_*`.

use half::f16;

/// Decodes a block of Q4_K or Q5_K; `code` returns the code of a weight.
pub(super) fn k_quants(
    block: &[u8],
    scales: &[u8],
    weights: &mut [f32; 256],
    code: impl Fn(usize) -> u8,
) {
    let (d, m) = (half(block, 0), half(block, 2));
    for (run, weights) in weights.chunks_exact_mut(32).enumerate() {
        // The first four bytes also hold the upper two bits of the last four scales, the next four
        // those of the last four minima.
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

/// Passes the 32 codes in 16 bytes to `place`, each with its index. The lower halves of the bytes
/// are the first 16.
pub(super) fn nibbles(bytes: &[u8], mut place: impl FnMut(usize, u8)) {
    for (at, byte) in bytes.iter().enumerate() {
        place(at, byte & 15);
        place(at + 16, byte >> 4);
    }
}

/// Returns bit 4 of the code `at`.
pub(super) fn fifth(high: u32, at: usize) -> u8 {
    ((high >> at & 1) << 4) as u8
}

/// Reads an f16.
pub(super) fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Reads a u32.
pub(super) fn word(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}
