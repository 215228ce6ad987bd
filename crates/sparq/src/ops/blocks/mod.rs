//! Weights in blocks of a few bits, as in GGUF files: [`BlockFormat`] and [`PackedWeight`].
//!
//! A block holds the codes of consecutive weights of one row, and the scales that they share. A row
//! is whole blocks. The layouts are those of ggml (`ggml-common.h`); all numbers are little-endian:
//!
//! | format | weights | bytes | content of a block, in order |
//! |---|--:|--:|---|
//! | Q8_0 | 32 | 34 | d in f16; 32 codes in i8: w = d code |
//! | Q4_0 | 32 | 18 | d in f16; 16 bytes of codes: w = d (code - 8) |
//! | Q4_1 | 32 | 20 | d and m in f16; 16 bytes of codes: w = d code + m |
//! | Q5_0 | 32 | 22 | d in f16; u32 of fifth bits; 16 bytes of codes: w = d (code - 16) |
//! | Q5_1 | 32 | 24 | d and m in f16; u32 of fifth bits; 16 bytes of codes: w = d code + m |
//! | Q4_K | 256 | 144 | d and m in f16; 12 bytes of scales; 128 bytes of codes |
//! | Q5_K | 256 | 176 | d and m in f16; 12 bytes of scales; 32 bytes of fifth bits; 128 of codes |
//! | Q6_K | 256 | 210 | 128 bytes of codes; 64 of their upper bits; 16 scales in i8; d in f16 |
//!
//! In the 16 bytes of codes of a block of 32, byte i holds code i in its lower half and code i + 16
//! in its upper half. Bit i of the fifth bits belongs to code i.
//!
//! Q4_K and Q5_K: w = d scale code - m minimum, with a scale and a minimum of 6 bits for each 32
//! weights. Bytes 0 to 3 of the scales hold scales 0 to 3 in their lower six bits, bytes 4 to 7 the
//! minima 0 to 3. Bytes 8 to 11 hold the lower four bits of scales 4 to 7 and, in their upper half,
//! of minima 4 to 7, whose upper two bits are those of bytes 0 to 3 and 4 to 7. Byte 32 j + i of
//! the codes holds codes 64 j + i and 64 j + 32 + i. Bit r of byte i of the fifth bits belongs to
//! code 32 r + i.
//!
//! Q6_K: w = d scale (code - 32), with a scale for each 16 weights. For each half h of 128 weights,
//! byte 64 h + i of the codes (i below 64) holds the lower four bits of codes 128 h + i and
//! 128 h + 64 + i. Bits 2 r and 2 r + 1 of byte 32 h + i of the upper bits belong to code
//! 128 h + 32 r + i.

mod dequantize;
mod weight;

use std::fmt;

use burn::tensor::f16;

use crate::SparqError;

pub use weight::PackedWeight;

/// The layout of a block of weights. The [module](self) describes the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(
    non_camel_case_types,
    reason = "the names by which the formats are known"
)]
pub enum BlockFormat {
    /// 32 codes of 8 bits with a scale.
    Q8_0,
    /// 32 codes of 4 bits with a scale.
    Q4_0,
    /// 32 codes of 4 bits with a scale and a minimum.
    Q4_1,
    /// 32 codes of 5 bits with a scale.
    Q5_0,
    /// 32 codes of 5 bits with a scale and a minimum.
    Q5_1,
    /// 256 codes of 4 bits with eight scales and minima of 6 bits.
    Q4_K,
    /// 256 codes of 5 bits with eight scales and minima of 6 bits.
    Q5_K,
    /// 256 codes of 6 bits with sixteen scales of 8 bits.
    Q6_K,
}

impl BlockFormat {
    /// Every format.
    pub const ALL: [Self; 8] = [
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
    ];

    /// Returns the name, as in GGUF: `Q4_0`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
        }
    }

    /// Returns the number of weights in a block.
    pub const fn weights(self) -> usize {
        match self {
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => 32,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
        }
    }

    /// Returns the number of bytes of a block.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// Returns the number of bytes of a row of `inputs` weights, whole blocks.
    pub const fn row_bytes(self, inputs: usize) -> usize {
        inputs / self.weights() * self.bytes()
    }

    /// Returns the number of bytes of a matrix [out, in].
    ///
    /// # Errors
    /// [`SparqError::Value`] if a row is not whole blocks, or if the matrix exceeds the address
    /// space.
    pub fn matrix_bytes(self, [outputs, inputs]: [usize; 2]) -> Result<usize, SparqError> {
        if !inputs.is_multiple_of(self.weights()) {
            let expected = format!("a multiple of {} ({self})", self.weights());
            return Err(SparqError::value("inputs of a weight", expected, inputs));
        }
        let bytes = outputs.checked_mul(self.row_bytes(inputs));
        bytes.ok_or_else(|| {
            let expected = "as many as fit in the address space";
            SparqError::value("outputs of a weight", expected, outputs)
        })
    }

    /// Returns whether the floats of all whole blocks are finite, and with them all weights.
    pub fn is_finite(self, blocks: &[u8]) -> bool {
        let floats: &[usize] = match self {
            Self::Q8_0 | Self::Q4_0 | Self::Q5_0 => &[0],
            Self::Q4_1 | Self::Q5_1 | Self::Q4_K | Self::Q5_K => &[0, 2],
            Self::Q6_K => &[208],
        };
        blocks.chunks_exact(self.bytes()).all(|block| {
            let float = |&at: &usize| f16::from_le_bytes([block[at], block[at + 1]]);
            floats.iter().all(|at| float(at).is_finite())
        })
    }

    /// Dequantises whole blocks to as many weights as they have: the floats of ggml's
    /// `dequantize_row_*`.
    ///
    /// Bytes after the last whole block, and blocks without room in `weights`, are left out.
    pub fn dequantize(self, blocks: &[u8], weights: &mut [f32]) {
        dequantize::dequantize(self, blocks, weights);
    }
}

impl fmt::Display for BlockFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
