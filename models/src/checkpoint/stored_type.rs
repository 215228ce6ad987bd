//! The types that weights are stored in: [`StoredType`].

use std::fmt;

use safetensors::Dtype;

/// The type that a tensor is stored in: a float, blocks of a GGUF file or a converted model, or another type, which is not read.
///
/// A block holds the codes of its weights and the scales that they share. The layouts of GGUF are those of ggml (`ggml-common.h`).
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[allow(
    non_camel_case_types,
    reason = "these are the names by which the types are known"
)]
pub enum StoredType {
    /// 32 bits.
    F32,
    /// 16 bits, IEEE.
    F16,
    /// The upper 16 bits of an F32.
    BF16,
    /// Blocks of 32 codes of 4 bits with a scale.
    Q4_0,
    /// Blocks of 32 codes of 4 bits with a scale and a minimum.
    Q4_1,
    /// Blocks of 32 codes of 5 bits with a scale.
    Q5_0,
    /// Blocks of 32 codes of 5 bits with a scale and a minimum.
    Q5_1,
    /// Blocks of 32 codes of 8 bits with a scale.
    Q8_0,
    /// Blocks of 256 codes of 4 bits with eight scales and minima of 6 bits.
    Q4_K,
    /// Blocks of 256 codes of 5 bits with eight scales and minima of 6 bits.
    Q5_K,
    /// Blocks of 256 codes of 6 bits with sixteen scales of 8 bits.
    Q6_K,
    /// Codes of 8 bits of a converted model, behind all of them a scale for each 32.
    Q8,
    /// Codes of 4 bits of a converted model, behind all of them a scale for each 32.
    Q4,
    /// A type of safetensors that weights are not read from.
    Other(Dtype),
}

/// The smallest piece that a type is stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) weights: usize,
    pub(super) bytes: usize,
}

impl StoredType {
    /// The names of the types of GGUF that weights are read from, for messages.
    pub(super) const GGUF: &str =
        "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or Q6_K";

    /// The type's block, a single weight for floats; `None` for a type that is not read.
    pub(super) fn block(self) -> Option<Block> {
        let (weights, bytes) = match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q4_K => (256, 144),
            Self::Q5_K => (256, 176),
            Self::Q6_K => (256, 210),
            Self::Q8 => (32, 34),
            Self::Q4 => (32, 18),
            Self::Other(_) => return None,
        };
        Some(Block { weights, bytes })
    }

    /// Bytes of the scale of a block, where the scales lie behind the codes of all blocks.
    pub(super) fn scale_bytes(self) -> usize {
        match self {
            Self::Q8 | Self::Q4 => 2,
            _ => 0,
        }
    }

    /// Whether a block holds more than one weight, so that the floats it stands for are those of no type.
    pub fn is_quantized(self) -> bool {
        self.block().is_some_and(|block| block.weights > 1)
    }
}

impl From<Dtype> for StoredType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::BF16,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
            Self::Q8 => "Q8",
            Self::Q4 => "Q4",
            Self::Other(dtype) => return write!(f, "{dtype}"),
        };
        f.write_str(name)
    }
}

impl fmt::Debug for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
