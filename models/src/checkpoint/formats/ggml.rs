//! The parts that blocks of ggml share. Decoding gives the floats of ggml's `dequantize_row_*`.

use half::f16;

/// The numbers that the codes of IQ4_NL and IQ4_XS stand for.
pub(super) const NONLINEAR: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// Writes the 32 weights whose codes are in 16 bytes: the lower halves of the bytes are the first
/// 16. A weight is d times the number in `table` that its code stands for.
pub(super) fn look_up(bytes: &[u8], table: &[i8; 16], d: f32, weights: &mut [f32]) {
    let (first, second) = weights.split_at_mut(bytes.len());
    for ((byte, first), second) in bytes.iter().zip(first).zip(second) {
        *first = d * f32::from(table[usize::from(byte & 15)]);
        *second = d * f32::from(table[usize::from(byte >> 4)]);
    }
}

/// Reads an f16.
pub(super) fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}
