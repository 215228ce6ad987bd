//! The rows of a cache: K or V as floats, or as codes of 8 bits with a scale for each row.
//!
//! A row is the key or the value of one position and KV head. In 8 bits:
//!
//! ```text
//! scale = max |x| / 127                   over the d elements of the row
//! code  = clamp(round(x / scale), -127, 127), or 0 where scale = 0
//! x     ~ scale code
//! ```
//!
//! Rounding is half to even. A row with a NaN or an infinity has a scale of NaN, and so reads as
//! NaN. Each u32 word holds four codes in two's complement, the first in the lowest bits.
//!
//! A cache rounds a row once, when the row is appended. All that is computed from it later is
//! computed from the rounded row: attention of the same prompt too, the key sketch, its ranges, and
//! the sum of V. Results then do not depend on how a prompt is divided, and a cache gives the
//! results of one in floats that holds the rounded rows.

use std::fmt;
use std::ops::Range;

use burn::tensor::kind::Basic;
use burn::tensor::{DType, Device, FloatDType, Int, IntDType, Tensor};
use serde::{Deserialize, Serialize};

use super::buffers::{copy, extend, zeros};
use crate::ops::reference::take_rows;
use crate::{SparqError, sketch};

/// How a cache stores K and V.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowFormat {
    /// Floats of the cache's type.
    #[default]
    Float,
    /// Codes of 8 bits, and one scale in fp32 for each position and KV head. About half the bytes
    /// of 16-bit floats.
    Int8,
}

impl RowFormat {
    /// Codes in one u32 word.
    pub(crate) const PER_WORD: usize = 4;

    /// Bits of a row of `head_dim` elements, its scale included. Floats have `element_bytes` bytes.
    pub fn row_bits(self, head_dim: usize, element_bytes: usize) -> usize {
        match self {
            RowFormat::Float => head_dim * element_bytes * 8,
            RowFormat::Int8 => head_dim * 8 + 32,
        }
    }

    /// Checks that rows of `head_dim` elements are whole words.
    pub(crate) fn check(self, head_dim: usize) -> Result<(), SparqError> {
        if self.is_float() || head_dim.is_multiple_of(Self::PER_WORD) {
            return Ok(());
        }
        let expected = "float, or a head_dim that is a multiple of 4";
        let found = format!("{self} with a head_dim of {head_dim}");
        Err(SparqError::value("rows", expected, found))
    }

    pub(crate) fn is_float(&self) -> bool {
        *self == RowFormat::Float
    }
}

/// Writes the name that command lines accept.
impl fmt::Display for RowFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RowFormat::Float => "float",
            RowFormat::Int8 => "int8",
        })
    }
}

/// K or V of a cache, with a capacity of S_max positions.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "a few handles per layer")]
pub enum RowTensors {
    /// Floats, [B, H_kv, S_max, d] in the cache's type.
    Float(Tensor<4>),
    /// Codes of 8 bits: a code n stands for scale n.
    Int8 {
        /// u32 words of four codes, [B, H_kv, S_max, d/4].
        codes: Tensor<4, Int>,
        /// The scale of each row, [B, H_kv, S_max] in fp32.
        scale: Tensor<3>,
    },
}

impl From<Tensor<4>> for RowTensors {
    fn from(rows: Tensor<4>) -> Self {
        RowTensors::Float(rows)
    }
}

impl RowTensors {
    /// Buffers of zeros, for `[batch, kv_heads, capacity, head_dim]`.
    pub(crate) fn zeros(
        shape: [usize; 4],
        format: RowFormat,
        dtype: FloatDType,
        device: &Device,
    ) -> Self {
        let [batch, kv_heads, capacity, d] = shape;
        match format {
            RowFormat::Float => RowTensors::Float(zeros(shape, device, DType::from(dtype))),
            RowFormat::Int8 => {
                let words = [batch, kv_heads, capacity, d / RowFormat::PER_WORD];
                RowTensors::Int8 {
                    codes: zeros(words, device, DType::U32),
                    scale: zeros([batch, kv_heads, capacity], device, DType::F32),
                }
            }
        }
    }

    /// Returns the same rows in 8 bits, in buffers of the same capacity.
    pub(crate) fn to_int8(&self) -> Self {
        match self {
            RowTensors::Int8 { .. } => self.clone(),
            RowTensors::Float(rows) => {
                let dtype = FloatDType::from(rows.dtype());
                let new = Self::zeros(rows.dims(), RowFormat::Int8, dtype, &rows.device());
                let everything = rows.dims().map(|size| 0..size);
                new.write(everything, rows.clone()).0
            }
        }
    }

    /// How the rows are stored.
    pub fn format(&self) -> RowFormat {
        match self {
            RowTensors::Float(_) => RowFormat::Float,
            RowTensors::Int8 { .. } => RowFormat::Int8,
        }
    }

    /// [B, H_kv, S_max, d].
    pub fn dims(&self) -> [usize; 4] {
        match self {
            RowTensors::Float(rows) => rows.dims(),
            RowTensors::Int8 { codes, .. } => {
                let [batch, kv_heads, capacity, words] = codes.dims();
                [batch, kv_heads, capacity, words * RowFormat::PER_WORD]
            }
        }
    }

    /// The device of the buffers.
    pub fn device(&self) -> Device {
        match self {
            RowTensors::Float(rows) => rows.device(),
            RowTensors::Int8 { scale, .. } => scale.device(),
        }
    }

    /// All rows as floats, [B, H_kv, S_max, d]: in the cache's type, or in fp32 from codes.
    pub fn floats(&self) -> Tensor<4> {
        match self {
            RowTensors::Float(rows) => rows.clone(),
            RowTensors::Int8 { codes, scale } => dequantize(codes.clone(), scale.clone()),
        }
    }

    /// The rows of some positions as floats, [B, H_kv, n, d]; see [`RowTensors::floats`].
    pub fn at(&self, positions: Range<usize>) -> Tensor<4> {
        match self {
            RowTensors::Float(rows) => rows.clone().slice_dim(2, positions),
            RowTensors::Int8 { codes, scale } => dequantize(
                codes.clone().slice_dim(2, positions.clone()),
                scale.clone().slice_dim(2, positions),
            ),
        }
    }

    /// The rows at an index [B, H_kv, n] of positions as floats, [B, H_kv, n, d].
    pub(crate) fn take(&self, index: &Tensor<3, Int>) -> Tensor<4> {
        match self {
            RowTensors::Float(rows) => take_rows(rows.clone(), index),
            RowTensors::Int8 { codes, scale } => dequantize(
                take_rows(codes.clone(), index),
                scale.clone().gather(2, index.clone()),
            ),
        }
    }

    /// As [`RowTensors::take`], by operations that a captured step can contain.
    pub(crate) fn gather(&self, index: &Tensor<3, Int>) -> Tensor<4> {
        fn rows<K: Basic>(all: &Tensor<4, K>, index: &Tensor<3, Int>) -> Tensor<4, K> {
            let ([batch, heads, n], elements) = (index.dims(), all.dims()[3]);
            let index = index.clone().unsqueeze_dim::<4>(3);
            all.clone()
                .gather(2, index.expand([batch, heads, n, elements]))
        }
        match self {
            RowTensors::Float(all) => rows(all, index),
            RowTensors::Int8 { codes, scale } => {
                dequantize(rows(codes, index), scale.clone().gather(2, index.clone()))
            }
        }
    }

    /// The rows as floats of the sequences and positions in `place`, [B', H_kv, n, d].
    pub(crate) fn slice(&self, place: [Range<usize>; 4]) -> Tensor<4> {
        match self {
            RowTensors::Float(rows) => rows.clone().slice(place),
            RowTensors::Int8 { codes, scale } => {
                let [batch, heads, positions, _] = place;
                let of_scale = [batch.clone(), heads.clone(), positions.clone()];
                let words = 0..codes.dims()[3];
                dequantize(
                    codes.clone().slice([batch, heads, positions, words]),
                    scale.clone().slice(of_scale),
                )
            }
        }
    }

    /// Writes rows [B', H_kv, T, d] at `place`, in place if the buffers are not shared. Returns the
    /// rows as they are stored, too.
    pub(crate) fn write(self, place: [Range<usize>; 4], rows: Tensor<4>) -> (Self, Tensor<4>) {
        match self {
            RowTensors::Float(all) => {
                let rows = rows.cast(FloatDType::from(all.dtype()));
                let all = all.slice_assign(place, rows.clone());
                (RowTensors::Float(all), rows)
            }
            RowTensors::Int8 { codes, scale } => {
                let (new, of_rows) = quantize(rows);
                let stored = dequantize(new.clone(), of_rows.clone());
                let [batch, heads, positions, _] = place;
                let of_scale = [batch.clone(), heads.clone(), positions.clone()];
                let words = 0..codes.dims()[3];
                let written = RowTensors::Int8 {
                    codes: codes.slice_assign([batch, heads, positions, words], new),
                    scale: scale.slice_assign(of_scale, of_rows),
                };
                (written, stored)
            }
        }
    }

    /// Writes the first `len` rows of the sequences `from` of other rows in the same format to the
    /// sequences from `to` on, in place if the buffers are not shared.
    pub(crate) fn copy(self, to: usize, other: &Self, from: &Range<usize>, len: usize) -> Self {
        match (self, other) {
            (RowTensors::Float(all), RowTensors::Float(rows)) => {
                RowTensors::Float(copy(all, to, rows, from, (2, len)))
            }
            (
                RowTensors::Int8 { codes, scale },
                RowTensors::Int8 {
                    codes: of_rows,
                    scale: scales,
                },
            ) => RowTensors::Int8 {
                codes: copy(codes, to, of_rows, from, (2, len)),
                scale: copy(scale, to, scales, from, (2, len)),
            },
            _ => unreachable!("callers compare the formats"),
        }
    }

    /// Returns the same rows in buffers for `capacity` positions.
    pub(crate) fn grown(self, capacity: usize) -> Self {
        match self {
            RowTensors::Float(rows) => RowTensors::Float(extend(rows, 2, capacity)),
            RowTensors::Int8 { codes, scale } => RowTensors::Int8 {
                codes: extend(codes, 2, capacity),
                scale: extend(scale, 2, capacity),
            },
        }
    }

    /// Moves the buffers to another device.
    pub(crate) fn on_device(self, device: &Device) -> Self {
        match self {
            RowTensors::Float(rows) => RowTensors::Float(rows.to_device(device)),
            RowTensors::Int8 { codes, scale } => RowTensors::Int8 {
                codes: codes.to_device(device),
                scale: scale.to_device(device),
            },
        }
    }

    /// Bytes allocated.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            RowTensors::Float(rows) => rows.shape().num_elements() * rows.dtype().size(),
            RowTensors::Int8 { codes, scale } => {
                4 * (codes.shape().num_elements() + scale.shape().num_elements())
            }
        }
    }

    /// Returns whether nothing else shares the buffers.
    pub(crate) fn can_mut(&self) -> bool {
        match self {
            RowTensors::Float(rows) => rows.can_mut(),
            RowTensors::Int8 { codes, scale } => codes.can_mut() && scale.can_mut(),
        }
    }
}

/// Returns the words of four codes, [.., d/4], and the scales of rows [B, H_kv, T, d].
///
/// # Panics
/// If d is no multiple of 4.
pub fn quantize(rows: Tensor<4>) -> (Tensor<4, Int>, Tensor<3>) {
    let rows = rows.cast(FloatDType::F32);
    let shape = rows.dims();
    // 0 x is 0, or NaN for an infinity or NaN.
    let unusable = (rows.clone() * 0.0).sum_dim(3);
    let scale = rows.clone().abs().max_dim(3) / LARGEST_CODE + unusable;
    let usable = scale.clone().greater_elem(0.0).expand(shape);
    let codes = (rows / scale.clone().expand(shape))
        .mask_fill(usable.bool_not(), 0.0)
        .round()
        .clamp(-LARGEST_CODE, LARGEST_CODE);
    let negative = codes.clone().lower_elem(0.0);
    let bytes = codes.clone().mask_where(negative, codes + 256.0);
    let bytes = bytes.int().cast(IntDType::U32);
    (sketch::pack(bytes, 8), scale.squeeze_dim::<3>(3))
}

/// Returns the rows in fp32 that words [.., d/4] and scales [B, H_kv, T] stand for, [.., d].
pub fn dequantize(words: Tensor<4, Int>, scale: Tensor<3>) -> Tensor<4> {
    let [batch, heads, len, count] = words.dims();
    let shape = [batch, heads, len, count * RowFormat::PER_WORD];
    if len == 0 {
        return Tensor::empty(shape, (&words.device(), DType::F32));
    }
    // By numbers and not by a tensor of shifts: a captured step must not copy one from the host.
    let byte = |i: usize| {
        let shifted = words.clone().bitwise_right_shift_scalar((8 * i) as u32);
        shifted.bitwise_and_scalar(255u32).unsqueeze_dim::<5>(4)
    };
    let bytes = Tensor::cat((0..RowFormat::PER_WORD).map(byte).collect(), 4);
    let bytes = bytes.reshape(shape).float().cast(FloatDType::F32);
    // A byte from 128 on stands for a negative code.
    let negative = bytes.clone().greater_equal_elem(128.0);
    let codes = bytes.clone().mask_where(negative, bytes - 256.0);
    codes * scale.unsqueeze_dim::<4>(3).expand(shape)
}

/// The code of the largest magnitude of a row.
pub(crate) const LARGEST_CODE: f32 = 127.0;

#[cfg(test)]
mod tests;
