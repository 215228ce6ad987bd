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
mod format;
mod quantize;
mod weight;

pub use format::BlockFormat;
pub use weight::PackedWeight;
