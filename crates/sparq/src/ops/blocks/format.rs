//! The formats of blocks: [`BlockFormat`].

use std::fmt;

use burn::tensor::f16;

use super::{dequantize, quantize};
use crate::SparqError;

/// The layout of a block of weights. The [module](super) describes the bytes.
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

    /// Returns the blocks of weights, whole blocks of them. Weights that are left over are not
    /// written.
    ///
    /// The weights must be finite.
    pub fn quantize(self, weights: &[f32]) -> Vec<u8> {
        quantize::quantize(self, weights)
    }

    /// Returns the format of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
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
