//! The buffers of a KV cache as plain tensors.

use std::ops::Range;

use burn::tensor::kind::{Basic, Numeric};
use burn::tensor::{DType, Device, FloatDType, Int, Tensor};

use super::{RowFormat, RowTensors};
use crate::Sketch;
use crate::ops::Spans;
use crate::sketch::codes_per_word;

/// The buffers of a KV cache, with a capacity of S_max positions.
#[derive(Clone, Debug)]
pub struct CacheTensors {
    /// Keys after RoPE.
    pub k: RowTensors,
    /// Values.
    pub v: RowTensors,
    /// Sum of V over the valid positions inside the sliding window, [B, H_kv, d] in fp32.
    pub v_sum: Tensor<3>,
    /// The span of valid positions of each sequence, for the kernels: [3, B] in u32.
    ///
    /// The rows are the first position, one past the last, and a counter that is 0 between
    /// operations. The host's copy of the first two is [`Spans`].
    pub spans: Tensor<2, Int>,
    /// The second copy of K, which the approximate scores read.
    pub sketch: SketchTensors,
    /// The bound of exact logits; see [`KvCacheConfig::softcap`](crate::KvCacheConfig::softcap).
    pub softcap: Option<f64>,
}

/// The key sketch: K with contiguous positions, so that one component of all keys is one streaming
/// read.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "a few handles per layer")]
pub enum SketchTensors {
    /// No sketch, for methods that read keys and values only.
    None,
    /// K transposed, [B, H_kv, d, S_max] in the cache's type.
    Full(Tensor<4>),
    /// Codes with one range per channel: a code n stands for zero_point + scale n.
    Codes {
        /// b: bits of a code, 4 or 8.
        bits: usize,
        /// u32 words of 32/b codes, [B, H_kv, d, S_max/(32/b)].
        codes: Tensor<4, Int>,
        /// The zero point of each channel, [B, H_kv, d] in fp32.
        zero_point: Tensor<3>,
        /// The scale of each channel, [B, H_kv, d] in fp32.
        scale: Tensor<3>,
    },
}

impl SketchTensors {
    /// Writes the columns of the first `len` positions of the sequences `from` of another sketch of
    /// the same kind, and their ranges, to the sequences from `to` on.
    fn copy(self, to: usize, other: &Self, from: &Range<usize>, len: usize) -> Self {
        match (self, other) {
            (SketchTensors::Full(all), SketchTensors::Full(kt)) => {
                SketchTensors::Full(copy(all, to, kt, from, (3, len)))
            }
            (
                SketchTensors::Codes {
                    bits,
                    codes,
                    zero_point,
                    scale,
                },
                SketchTensors::Codes {
                    codes: words,
                    zero_point: zero_points,
                    scale: scales,
                    ..
                },
            ) => {
                let (count, d) = (len.div_ceil(codes_per_word(bits)), scales.dims()[2]);
                SketchTensors::Codes {
                    bits,
                    codes: copy(codes, to, words, from, (3, count)),
                    zero_point: copy(zero_point, to, zero_points, from, (2, d)),
                    scale: copy(scale, to, scales, from, (2, d)),
                }
            }
            (none, _) => none,
        }
    }

    /// Buffers of zeros, for `[batch, kv_heads, capacity, head_dim]`.
    pub(crate) fn zeros(
        [batch, kv_heads, capacity, d]: [usize; 4],
        dtype: FloatDType,
        sketch: Option<Sketch>,
        device: &Device,
    ) -> Self {
        let Some(sketch) = sketch else {
            return SketchTensors::None;
        };
        let Some(bits) = sketch.bits() else {
            let shape = [batch, kv_heads, d, capacity];
            return SketchTensors::Full(zeros(shape, device, DType::from(dtype)));
        };
        let words = capacity.div_ceil(codes_per_word(bits));
        let per_channel = || zeros([batch, kv_heads, d], device, DType::F32);
        SketchTensors::Codes {
            bits,
            codes: zeros([batch, kv_heads, d, words], device, DType::U32),
            zero_point: per_channel(),
            scale: per_channel(),
        }
    }

    /// Makes the sketch of keys, in `dtype` if it is full. Codes have no ranges yet.
    pub(crate) fn of_keys(k: &RowTensors, dtype: FloatDType, sketch: Option<Sketch>) -> Self {
        match Self::zeros(k.dims(), dtype, sketch, &k.device()) {
            SketchTensors::Full(kt) => {
                let columns = k.floats().cast(dtype).swap_dims(2, 3);
                SketchTensors::Full(overwrite(kt, columns))
            }
            other => other,
        }
    }
}

impl CacheTensors {
    /// Buffers of zeros, for `[batch, kv_heads, capacity, head_dim]`, without a softcap.
    pub fn zeros(
        shape: [usize; 4],
        dtype: FloatDType,
        rows: RowFormat,
        sketch: Option<Sketch>,
        device: &Device,
    ) -> Self {
        let [batch, kv_heads, _, d] = shape;
        let rows = || RowTensors::zeros(shape, rows, dtype, device);
        Self {
            k: rows(),
            v: rows(),
            v_sum: zeros([batch, kv_heads, d], device, DType::F32),
            spans: Spans::empty(batch).to_tensor(device),
            sketch: SketchTensors::zeros(shape, dtype, sketch, device),
            softcap: None,
        }
    }

    /// Writes the first `len` positions of the sequences `from` of another cache of the same kind
    /// to the sequences from `to` on, in place if the buffers are not shared. The spans stay as
    /// they are.
    pub(super) fn copy(self, to: usize, other: &Self, from: &Range<usize>, len: usize) -> Self {
        let d = other.v_sum.dims()[2];
        Self {
            k: self.k.copy(to, &other.k, from, len),
            v: self.v.copy(to, &other.v, from, len),
            v_sum: copy(self.v_sum, to, &other.v_sum, from, (2, d)),
            sketch: self.sketch.copy(to, &other.sketch, from, len),
            ..self
        }
    }

    /// Moves the buffers to another device.
    pub fn to_device(self, device: &Device) -> Self {
        Self {
            k: self.k.on_device(device),
            v: self.v.on_device(device),
            v_sum: self.v_sum.to_device(device),
            spans: self.spans.to_device(device),
            softcap: self.softcap,
            sketch: match self.sketch {
                SketchTensors::None => SketchTensors::None,
                SketchTensors::Full(kt) => SketchTensors::Full(kt.to_device(device)),
                SketchTensors::Codes {
                    bits,
                    codes,
                    zero_point,
                    scale,
                } => SketchTensors::Codes {
                    bits,
                    codes: codes.to_device(device),
                    zero_point: zero_point.to_device(device),
                    scale: scale.to_device(device),
                },
            },
        }
    }

    /// Returns the same contents in buffers for `capacity` positions.
    pub fn grown(self, capacity: usize) -> Self {
        Self {
            k: self.k.grown(capacity),
            v: self.v.grown(capacity),
            v_sum: self.v_sum,
            spans: self.spans,
            softcap: self.softcap,
            sketch: match self.sketch {
                SketchTensors::None => SketchTensors::None,
                SketchTensors::Full(kt) => SketchTensors::Full(extend(kt, 3, capacity)),
                SketchTensors::Codes {
                    bits,
                    codes,
                    zero_point,
                    scale,
                } => SketchTensors::Codes {
                    bits,
                    codes: extend(codes, 3, capacity.div_ceil(codes_per_word(bits))),
                    zero_point,
                    scale,
                },
            },
        }
    }
}

/// Returns the same contents with at least `size` elements in a dimension; the new ones are 0.
pub(super) fn extend<const D: usize, K: Numeric>(
    old: Tensor<D, K>,
    dim: usize,
    size: usize,
) -> Tensor<D, K> {
    let mut shape = old.dims();
    if shape[dim] >= size {
        return old;
    }
    let filled = shape.map(|size| 0..size);
    shape[dim] = size;
    zeros(shape, &old.device(), old.dtype()).slice_assign(filled, old)
}

/// Zeros in a contiguous layout: a GPU may pad a tensor of several dimensions, which the kernels do
/// not expect.
///
/// They get memory of exactly their size. A GPU's allocator otherwise cuts buffers out of pages, of
/// which a large cache wastes up to half.
pub(super) fn zeros<const D: usize, K: Numeric>(
    shape: [usize; D],
    device: &Device,
    dtype: DType,
) -> Tensor<D, K> {
    let len = shape.iter().product::<usize>();
    device
        .memory_persistent_allocations(len, |len| Tensor::<1, K>::zeros([len], (device, dtype)))
        .reshape(shape)
}

/// Copies the first `len` elements along a dimension, `(dim, len)`, of the sequences `from` to
/// those from `to` on, in place if the buffer is not shared.
pub(super) fn copy<const D: usize, K: Basic>(
    all: Tensor<D, K>,
    to: usize,
    other: &Tensor<D, K>,
    from: &Range<usize>,
    (dim, len): (usize, usize),
) -> Tensor<D, K> {
    if len == 0 {
        return all;
    }
    let place = |first: usize| {
        let mut place = other.dims().map(|size| 0..size);
        place[0] = first..first + from.len();
        place[dim] = 0..len;
        place
    };
    all.slice_assign(place(to), other.clone().slice(place(from.start)))
}

/// Returns the same contents in a new buffer.
pub(crate) fn duplicate<const D: usize, K: Basic>(tensor: &Tensor<D, K>) -> Tensor<D, K> {
    let like = Tensor::empty(tensor.shape(), (&tensor.device(), tensor.dtype()));
    overwrite(like, tensor.clone())
}

/// Writes the contents of `from` into the buffer of `to`, or into a new one if that is shared.
pub(crate) fn overwrite<const D: usize, K: Basic>(
    to: Tensor<D, K>,
    from: Tensor<D, K>,
) -> Tensor<D, K> {
    let everything = to.dims().map(|size| 0..size);
    to.slice_assign(everything, from)
}
