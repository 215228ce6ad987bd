//! The key sketch in few bits: codes with one range per channel, packed along the positions.
//!
//! For b bits, a channel's range is lo = min and hi = max of K over the valid positions and its step a = (hi - lo) / (2^b - 1). The code of a key is
//! n = clamp(round half to even((K - lo) / a), 0, 2^b - 1), and 0 where a = 0. Each u32 holds 32/b codes of consecutive positions, the
//! lowest position in the lowest bits.
//!
//! Infinities and NaN do not enter a range; their codes are clamped like any other, and 0 for NaN.

use std::ops::Range;

use burn::tensor::{Bool, DType, Device, FloatDType, Int, IntDType, Tensor};

/// Codes in one u32 word.
pub(crate) fn codes_per_word(bits: usize) -> usize {
    32 / bits
}

/// The range of every channel over the valid positions. K [B, H_kv, S, d] and a mask [B, 1, S] -> lo and step, [B, H_kv, d] each, in fp32.
pub fn range(k: Tensor<4>, valid: Option<Tensor<3, Bool>>, bits: usize) -> (Tensor<3>, Tensor<3>) {
    let shape = k.dims();
    let k = k.cast(FloatDType::F32);
    let outside = k.clone().is_finite().bool_not();
    let outside = match valid {
        Some(valid) => outside.bool_or(valid.bool_not().unsqueeze_dim::<4>(3).expand(shape)),
        None => outside,
    };
    let lo = k
        .clone()
        .mask_fill(outside.clone(), f32::MAX)
        .min_dim(2)
        .squeeze_dim::<3>(2);
    let hi = k
        .mask_fill(outside, f32::MIN)
        .max_dim(2)
        .squeeze_dim::<3>(2);
    let empty = lo.clone().greater(hi.clone());
    let levels = ((1u32 << bits) - 1) as f32;
    let step = (hi - lo.clone()) / levels;
    let unusable = step.clone().is_finite().bool_not().bool_or(empty.clone());
    (lo.mask_fill(empty, 0.0), step.mask_fill(unusable, 0.0))
}

/// The codes of keys, K [B, H_kv, T, d] -> [B, H_kv, d, T], for ranges lo and step [B, H_kv, d].
pub fn encode(k: Tensor<4>, lo: Tensor<3>, step: Tensor<3>, bits: usize) -> Tensor<4, Int> {
    let keys = k.cast(FloatDType::F32).swap_dims(2, 3);
    let shape = keys.dims();
    let column = |t: Tensor<3>| t.unsqueeze_dim::<4>(3).expand(shape);
    let code = (keys - column(lo)) / column(step.clone());
    let none = code.clone().is_nan().bool_or(column(step).equal_elem(0.0));
    let levels = ((1u32 << bits) - 1) as f32;
    code.mask_fill(none, 0.0)
        .round()
        .clamp(0.0, levels)
        .int()
        .cast(IntDType::U32)
}

/// Packs codes [B, H_kv, d, T] into words [B, H_kv, d, ceil(T / (32/b))]; missing codes of the last word are 0.
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
    // The codes' bits do not overlap, so that their sum is their union.
    shifted.sum_dim(4).squeeze_dim::<4>(4)
}

/// Writes codes [B', H_kv, d, T] at position `at` of the sequences `batch`, in place where `words` is not shared.
///
/// Codes behind the last one written, in its word, become 0: they belong to positions that hold no token.
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

/// The codes of words: [B, H_kv, d, W] -> [B, H_kv, d, W (32/b)].
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
