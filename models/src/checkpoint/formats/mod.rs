//! The types that weights are stored in: [`StoredType`].
//!
//! The registry is the call of `formats!` below. A new type is one line there and its [`Format`]:
//! the block layout, how to decode it, its number in GGUF files, and how
//! [`Conversion`](super::Conversion) writes it.

mod bfloat16;
mod blocks;
mod float16;
mod float32;
mod ggml;
mod iq4_nl;
mod iq4_xs;
mod mxfp4;
mod q2_k;
mod q3_k;
mod q4;
mod q8;

use std::fmt;

use burn::tensor::{
    DType, FloatDType,
    quantization::{QuantScheme, QuantStore, QuantValue, ScaleDtype},
};
use safetensors::Dtype;
use sparq::ops::BlockFormat;

/// Everything that reading and writing have to know about one type.
#[derive(Debug)]
pub(super) struct Format {
    /// The smallest piece of the type.
    pub(super) block: Block,
    /// Decodes the bytes of whole blocks. For [`Encoding::Quantized`], the codes of all blocks come
    /// first, then their scales.
    pub(super) decode: Decode,
    /// The number of the type in GGUF files (`ggml_type`).
    gguf: Option<u32>,
    /// How a conversion writes the type; `None` for a type that is only read.
    written: Option<Written>,
}

/// The smallest piece of a type: a single weight for floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) weights: usize,
    pub(super) bytes: usize,
}

/// How a conversion writes a type.
#[derive(Debug)]
struct Written {
    /// The value of `sparq convert --dtype`.
    flag: &'static str,
    encoding: Encoding,
}

/// The values of a type that is written.
#[derive(Debug)]
enum Encoding {
    Float {
        burn: FloatDType,
        safetensors: Dtype,
    },
    Quantized(Quantized),
    /// Blocks of ggml, which products read as they are.
    Packed(BlockFormat),
}

/// burn's symmetric quantisation of a matrix, with an f16 scale for each block of a row.
#[derive(Debug)]
pub(super) struct Quantized {
    value: QuantValue,
    /// Writes the codes of all blocks.
    pub(super) pack: fn(&[i8]) -> Vec<u8>,
    /// The type of matrices that are no linear layer: embedding tables.
    pub(super) for_embeddings: StoredType,
}

/// Bytes of the scale of a quantised block.
pub(super) const SCALE_BYTES: usize = 2;

/// Decodes the bytes of whole blocks to as many weights as they have.
type Decode = fn(&[u8], &mut [f32]);

impl Format {
    /// Describes a float of `bytes` bytes.
    const fn float(
        flag: &'static str,
        gguf: u32,
        bytes: usize,
        (burn, safetensors): (FloatDType, Dtype),
        decode: Decode,
    ) -> Self {
        let encoding = Encoding::Float { burn, safetensors };
        Self {
            block: Block { weights: 1, bytes },
            decode,
            gguf: Some(gguf),
            written: Some(Written { flag, encoding }),
        }
    }

    /// Describes blocks of GGUF files that products read as they are.
    const fn packed(flag: &'static str, gguf: u32, packed: BlockFormat, decode: Decode) -> Self {
        let encoding = Encoding::Packed(packed);
        Self {
            block: Block {
                weights: packed.weights(),
                bytes: packed.bytes(),
            },
            decode,
            gguf: Some(gguf),
            written: Some(Written { flag, encoding }),
        }
    }

    /// Describes blocks of GGUF files that become floats. The type of `_block`, which decodes one
    /// block, determines the size of a block.
    const fn ggml<const BYTES: usize, const WEIGHTS: usize>(
        gguf: u32,
        _block: fn(&[u8; BYTES], &mut [f32; WEIGHTS]),
        decode: Decode,
    ) -> Self {
        Self {
            block: Block {
                weights: WEIGHTS,
                bytes: BYTES,
            },
            decode,
            gguf: Some(gguf),
            written: None,
        }
    }

    /// Describes quantised blocks of a converted model, with sizes as in [`ggml`](Self::ggml).
    const fn quantized<const BYTES: usize, const WEIGHTS: usize>(
        flag: &'static str,
        quantized: Quantized,
        _block: fn(&[u8; BYTES], f32, &mut [f32; WEIGHTS]),
        decode: Decode,
    ) -> Self {
        let encoding = Encoding::Quantized(quantized);
        Self {
            block: Block {
                weights: WEIGHTS,
                bytes: BYTES + SCALE_BYTES,
            },
            decode,
            gguf: None,
            written: Some(Written { flag, encoding }),
        }
    }
}

/// The registry: for each type its name, its format, and its documentation.
macro_rules! formats {
    ($($name:ident: $format:path, $about:literal;)*) => {
        /// The type that a tensor is stored in: a float, blocks of a GGUF file or of a converted
        /// model, or another type, which is not read.
        ///
        /// A block holds the codes of its weights and the scales that they share. The layouts of
        /// GGUF are those of ggml (`ggml-common.h`).
        #[derive(Clone, Copy, PartialEq, Eq)]
        #[non_exhaustive]
        #[allow(non_camel_case_types, reason = "the names by which the types are known")]
        pub enum StoredType {
            $(#[doc = $about] $name,)*
            /// A type of safetensors that weights are not read from.
            Other(Dtype),
        }

        impl StoredType {
            /// Every type that is read.
            pub(super) const ALL: &[Self] = &[$(Self::$name),*];

            /// Returns the format; `None` for a type that is not read.
            pub(super) fn format(self) -> Option<&'static Format> {
                match self {
                    $(Self::$name => Some(&$format),)*
                    Self::Other(_) => None,
                }
            }
        }

        impl fmt::Display for StoredType {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$name => f.write_str(stringify!($name)),)*
                    Self::Other(dtype) => write!(f, "{dtype}"),
                }
            }
        }
    };
}

formats! {
    F32: float32::FORMAT, "32 bits.";
    F16: float16::FORMAT, "16 bits, IEEE.";
    BF16: bfloat16::FORMAT, "The upper 16 bits of an F32.";
    Q4_0: blocks::Q4_0, "Blocks of 32 codes of 4 bits with a scale.";
    Q4_1: blocks::Q4_1, "Blocks of 32 codes of 4 bits with a scale and a minimum.";
    Q5_0: blocks::Q5_0, "Blocks of 32 codes of 5 bits with a scale.";
    Q5_1: blocks::Q5_1, "Blocks of 32 codes of 5 bits with a scale and a minimum.";
    Q8_0: blocks::Q8_0, "Blocks of 32 codes of 8 bits with a scale.";
    Q4_K: blocks::Q4_K, "Blocks of 256 codes of 4 bits with eight scales and minima of 6 bits.";
    Q5_K: blocks::Q5_K, "Blocks of 256 codes of 5 bits with eight scales and minima of 6 bits.";
    Q6_K: blocks::Q6_K, "Blocks of 256 codes of 6 bits with sixteen scales of 8 bits.";
    Q2_K: q2_k::FORMAT, "Blocks of 256 codes of 2 bits with sixteen scales and minima of 4 bits.";
    Q3_K: q3_k::FORMAT, "Blocks of 256 codes of 3 bits with sixteen scales of 6 bits.";
    IQ4_NL: iq4_nl::FORMAT, "Blocks of 32 codes of 4 bits, numbers of a table, with a scale.";
    IQ4_XS: iq4_xs::FORMAT, "Blocks of 256 codes as in IQ4_NL with eight scales of 6 bits.";
    MXFP4: mxfp4::FORMAT, "Blocks of 32 floats of 4 bits with a power of two as scale.";
    Q8: q8::FORMAT, "Codes of 8 bits of a converted model, then a scale for each 32 of them.";
    Q4: q4::FORMAT, "Codes of 4 bits of a converted model, then a scale for each 32 of them.";
}

impl StoredType {
    /// Returns the types that a [`Conversion`](super::Conversion) writes, each with its value of
    /// `sparq convert --dtype`.
    pub fn written() -> impl Iterator<Item = (&'static str, Self)> {
        let written = |dtype: &Self| Some((dtype.format()?.written.as_ref()?.flag, *dtype));
        Self::ALL.iter().filter_map(written)
    }

    /// Returns whether a block holds more than one weight.
    pub fn is_quantized(self) -> bool {
        self.format().is_some_and(|format| format.block.weights > 1)
    }

    /// Returns the type with the number `number` in GGUF files.
    pub(super) fn from_gguf(number: u32) -> Option<Self> {
        let is_it = |dtype: &Self| dtype.gguf() == Some(number);
        Self::ALL.iter().copied().find(is_it)
    }

    /// Returns the number of the type in GGUF files, if they have it.
    pub(super) fn gguf(self) -> Option<u32> {
        self.format()?.gguf
    }

    /// Returns the format of the blocks if products read them as they are.
    pub(super) fn packed(self) -> Option<BlockFormat> {
        match self.format()?.written.as_ref()?.encoding {
            Encoding::Packed(format) => Some(format),
            Encoding::Float { .. } | Encoding::Quantized(_) => None,
        }
    }

    /// Returns the types of burn and of safetensors for a float.
    pub(super) fn float(self) -> Option<(FloatDType, Dtype)> {
        match self.format()?.written.as_ref()?.encoding {
            Encoding::Float { burn, safetensors } => Some((burn, safetensors)),
            Encoding::Quantized(_) | Encoding::Packed(_) => None,
        }
    }

    /// Returns how the blocks of a converted model are written; `None` for other types.
    pub(super) fn quantized(self) -> Option<&'static Quantized> {
        match &self.format()?.written.as_ref()?.encoding {
            Encoding::Quantized(quantized) => Some(quantized),
            Encoding::Float { .. } | Encoding::Packed(_) => None,
        }
    }

    /// Returns the type of these blocks.
    pub(super) fn from_packed(format: BlockFormat) -> Self {
        let is_it = |dtype: &&Self| dtype.packed() == Some(format);
        let found = Self::ALL.iter().find(is_it);
        *found.expect("every format of blocks is registered")
    }

    /// Returns the type of a tensor in burnpack; `None` for a type that is not written. Blocks of
    /// ggml are bytes, and the manifest names their format.
    pub(super) fn burn_type(self) -> Option<DType> {
        if let Some((float, _)) = self.float() {
            return Some(float.into());
        }
        if self.packed().is_some() {
            return Some(DType::U8);
        }
        let scheme = QuantScheme::default()
            .with_value(self.quantized()?.value)
            .with_store(QuantStore::PackedU32(0));
        let weights = self.format()?.block.weights as u8;
        Some(DType::QFloat(
            scheme.per_block([1, weights], ScaleDtype::F16),
        ))
    }

    /// Returns the bytes of a tensor of the shape `shape`. `None` if its rows are not whole blocks,
    /// or if the tensor does not fit into memory as stored or in the widest float.
    pub(super) fn bytes(self, shape: &[usize]) -> Option<usize> {
        let Block { weights, bytes } = self.format()?.block;
        if !shape.last().copied().unwrap_or(1).is_multiple_of(weights) {
            return None;
        }
        let mut sizes = shape.iter();
        let count = sizes.try_fold(1_usize, |count, &size| count.checked_mul(size))?;
        isize::try_from(count.checked_mul(size_of::<f64>())?).ok()?;
        let bytes = (count / weights).checked_mul(bytes)?;
        isize::try_from(bytes).ok().map(|_| bytes)
    }

    /// Returns the names of the types that `wanted` accepts, for messages: "A, B or C".
    pub(super) fn names(wanted: impl Fn(Self) -> bool) -> String {
        let types = Self::ALL.iter().filter(|dtype| wanted(**dtype));
        let names: Vec<_> = types.map(Self::to_string).collect();
        match names.split_last() {
            Some((last, others)) if !others.is_empty() => {
                format!("{} or {last}", others.join(", "))
            }
            _ => names.concat(),
        }
    }
}

impl From<Dtype> for StoredType {
    fn from(dtype: Dtype) -> Self {
        let is_it = |own: &Self| own.float().is_some_and(|(_, other)| other == dtype);
        let own = Self::ALL.iter().copied().find(is_it);
        own.unwrap_or(Self::Other(dtype))
    }
}

impl fmt::Debug for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Decodes block after block.
fn each_block<const BYTES: usize, const WEIGHTS: usize>(
    bytes: &[u8],
    weights: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; WEIGHTS]),
) {
    let blocks = bytes.as_chunks().0.iter();
    for (block, weights) in blocks.zip(weights.as_chunks_mut().0) {
        decode(block, weights);
    }
}

/// Decodes blocks whose scales follow the codes of all of them.
fn each_scaled_block<const BYTES: usize, const WEIGHTS: usize>(
    bytes: &[u8],
    weights: &mut [f32],
    decode: impl Fn(&[u8; BYTES], f32, &mut [f32; WEIGHTS]),
) {
    let weights = weights.as_chunks_mut().0;
    let (codes, scales) = bytes.split_at(weights.len() * BYTES);
    let scales = scales.as_chunks::<SCALE_BYTES>().0.iter();
    let scales = scales.map(|&scale| half::f16::from_le_bytes(scale).to_f32());
    for ((codes, scale), weights) in codes.as_chunks().0.iter().zip(scales).zip(weights) {
        decode(codes, scale, weights);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_have_distinct_numbers_names_and_types() {
        for (at, one) in StoredType::ALL.iter().enumerate() {
            for other in &StoredType::ALL[..at] {
                let differ = |a: Option<u32>, b: Option<u32>| a.is_none() || a != b;
                assert!(differ(one.gguf(), other.gguf()), "{one} and {other}");
                let types = (one.burn_type(), other.burn_type());
                let differ = types.0.is_none() || types.0 != types.1;
                let packed = one.packed().is_some() && one.packed() != other.packed();
                assert!(differ || packed, "{one} and {other}");
            }
        }
        let flags: Vec<_> = StoredType::written().map(|(flag, _)| flag).collect();
        let blocks = "q4_0 q4_1 q5_0 q5_1 q8_0 q4_k q5_k q6_k";
        assert_eq!(flags.join(" "), format!("f32 f16 bf16 {blocks} q8 q4"));
    }

    #[test]
    fn bytes_refuse_partial_blocks_and_overflow() {
        assert_eq!(StoredType::Q4_0.bytes(&[2, 64]), Some(72));
        assert_eq!(StoredType::Q4_0.bytes(&[64, 2]), None);
        assert_eq!(StoredType::Q8.bytes(&[]), None);
        assert_eq!(StoredType::F16.bytes(&[]), Some(2));
        assert_eq!(StoredType::F16.bytes(&[1 << 32, 1 << 28]), None);
        assert_eq!(StoredType::Other(Dtype::I8).bytes(&[1]), None);
    }
}
