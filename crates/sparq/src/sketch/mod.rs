//! The key sketch: how it is stored, and its codes of 8 or 4 bits.
//!
//! A sketch in codes has one range per channel, taken from the valid positions. For b bits:
//!
//! ```text
//! zero_point = min K                      scale = (max K - min K) / (2^b - 1)
//! code       = clamp(round((K - zero_point) / scale), 0, 2^b - 1), or 0 where scale = 0
//! ```
//!
//! Rounding is half to even. Each u32 word holds 32/b codes of consecutive positions, the first
//! position in the lowest bits. Infinities and NaN do not enter a range. Their codes are clamped
//! like all others, and NaN becomes code 0.

use std::ops::Range;

use burn::tensor::{Bool, DType, Device, FloatDType, Int, IntDType, Tensor};
use serde::{Deserialize, Serialize};

/// How the key sketch is stored: the second copy of K, from which stage 1 ranks the positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sketch {
    /// K transposed in the cache's own type, as in the paper. Adds half of the cache's memory.
    Full,
    /// Codes of 8 bits, one range per channel. Adds a quarter of a 16-bit cache's memory.
    #[serde(rename = "8bits")]
    Bits8,
    /// Codes of 4 bits, one range per channel. Adds an eighth of a 16-bit cache's memory.
    #[serde(rename = "4bits")]
    Bits4,
}

impl Sketch {
    /// Bits of one code, or `None` for [`Sketch::Full`], whose elements have the cache's type.
    pub fn bits(self) -> Option<usize> {
        match self {
            Sketch::Full => None,
            Sketch::Bits8 => Some(8),
            Sketch::Bits4 => Some(4),
        }
    }
}

/// The number of codes in one u32 word.
pub(crate) fn codes_per_word(bits: usize) -> usize {
    32 / bits
}

/// The largest code.
fn levels(bits: usize) -> f32 {
    ((1u32 << bits) - 1) as f32
}

/// Returns the zero point and the scale of every channel, [B, H_kv, d] each in fp32.
///
/// Takes K [B, H_kv, S, d] and a mask [B, 1, S] of the valid positions, all of them if `None`.
pub fn range(k: Tensor<4>, valid: Option<Tensor<3, Bool>>, bits: usize) -> (Tensor<3>, Tensor<3>) {
    let shape = k.dims();
    let k = k.cast(FloatDType::F32);
    let outside = k.clone().is_finite().bool_not();
    let outside = match valid {
        Some(valid) => outside.bool_or(valid.bool_not().unsqueeze_dim::<4>(3).expand(shape)),
        None => outside,
    };
    let least = k.clone().mask_fill(outside.clone(), f32::MAX).min_dim(2);
    let largest = k.mask_fill(outside, f32::MIN).max_dim(2);
    let (zero_point, largest) = (least.squeeze_dim::<3>(2), largest.squeeze_dim::<3>(2));
    let empty = zero_point.clone().greater(largest.clone());
    let scale = (largest - zero_point.clone()) / levels(bits);
    let unusable = scale.clone().is_finite().bool_not().bool_or(empty.clone());
    (
        zero_point.mask_fill(empty, 0.0),
        scale.mask_fill(unusable, 0.0),
    )
}

/// Returns the codes of keys, K [B, H_kv, T, d] -> [B, H_kv, d, T], for ranges [B, H_kv, d].
pub fn encode(
    k: Tensor<4>,
    zero_point: Tensor<3>,
    scale: Tensor<3>,
    bits: usize,
) -> Tensor<4, Int> {
    let keys = k.cast(FloatDType::F32).swap_dims(2, 3);
    let shape = keys.dims();
    let column = |t: Tensor<3>| t.unsqueeze_dim::<4>(3).expand(shape);
    let code = (keys - column(zero_point)) / column(scale.clone());
    let none = code.clone().is_nan().bool_or(column(scale).equal_elem(0.0));
    code.mask_fill(none, 0.0)
        .round()
        .clamp(0.0, levels(bits))
        .int()
        .cast(IntDType::U32)
}

/// Packs codes [B, H_kv, d, T] into words [B, H_kv, d, ceil(T / (32/b))].
///
/// The codes that the last word lacks are 0.
pub fn pack(codes: Tensor<4, Int>, bits: usize) -> Tensor<4, Int> {
    let ([batch, heads, d, len], device) = (codes.dims(), codes.device());
    let per_word = codes_per_word(bits);
    let words = len.div_ceil(per_word);
    let missing = words * per_word - len;
    let codes = if missing > 0 {
        let zeros = Tensor::<4, Int>::zeros([batch, heads, d, missing], (&device, DType::U32));
        Tensor::cat(vec![codes, zeros], 3)
    } else {
        codes
    };
    let shape = [batch, heads, d, words, per_word];
    let shifted = codes
        .reshape(shape)
        .bitwise_left_shift(shifts(bits, &device).expand(shape));
    // The bits of different codes do not overlap, so their sum is their union.
    shifted.sum_dim(4).squeeze_dim::<4>(4)
}

/// Writes codes [B', H_kv, d, T] at position `at` of the sequences `batch`.
///
/// Writes in place if `words` is not shared. Later codes in the last written word become 0: they
/// belong to positions without a token.
pub(crate) fn write(
    words: Tensor<4, Int>,
    codes: Tensor<4, Int>,
    batch: Range<usize>,
    at: usize,
    bits: usize,
) -> Tensor<4, Int> {
    let [_, heads, d, len] = codes.dims();
    let per_word = codes_per_word(bits);
    let (first, kept) = (at / per_word, at % per_word);
    let codes = if kept > 0 {
        let word = words
            .clone()
            .slice([batch.clone(), 0..heads, 0..d, first..first + 1]);
        Tensor::cat(vec![unpack(word, bits).slice_dim(3, 0..kept), codes], 3)
    } else {
        codes
    };
    let last = (at + len).div_ceil(per_word);
    words.slice_assign([batch, 0..heads, 0..d, first..last], pack(codes, bits))
}

/// Returns the codes of words, [B, H_kv, d, N] -> [B, H_kv, d, N (32/b)].
pub fn unpack(words: Tensor<4, Int>, bits: usize) -> Tensor<4, Int> {
    let ([batch, heads, d, len], device) = (words.dims(), words.device());
    let per_word = codes_per_word(bits);
    let shape = [batch, heads, d, len, per_word];
    let words = words.unsqueeze_dim::<5>(4).expand(shape);
    let codes = words.bitwise_right_shift(shifts(bits, &device).expand(shape));
    codes
        .bitwise_and_scalar((1u32 << bits) - 1)
        .reshape([batch, heads, d, len * per_word])
}

/// The shift of each code in a word, [1, 1, 1, 1, 32/b].
fn shifts(bits: usize, device: &Device) -> Tensor<5, Int> {
    let shifts: Vec<u32> = (0..codes_per_word(bits))
        .map(|code| (code * bits) as u32)
        .collect();
    let count = shifts.len();
    Tensor::<1, Int>::from_data(shifts.as_slice(), (device, DType::U32))
        .reshape([1, 1, 1, 1, count])
}
