//! Appends few tokens to each sequence, in place. Tokens in codes may be many.

use std::ops::Range;

use burn::backend::Flex;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::DType;

use super::element::{Element, RowElement, Rows, convert};
use super::simd::{Kernel, Level, Simd};
use crate::cache::rows::LARGEST_CODE;
use crate::ops::Spans;
use crate::ops::{CacheBuffers, RowBuffers, SketchBuffers};
use crate::sketch::codes_per_word;

/// The most tokens of a sequence that are appended one by one, as decode steps append them.
pub(super) const FEW: usize = 16;

/// Appends the first `counts[b]` of T keys and values [B, H_kv, T, d] to each sequence b, as
/// [`write::append`](crate::ops::reference::append::append) does. Copies the buffers that another
/// tensor shares.
///
/// `T` is the type of the cache. The tokens have this type, or fp32 if the rows are codes.
///
/// Writes nothing and returns `None` if a buffer is not contiguous from the start of its storage.
pub(super) fn append_few<T: Element>(
    cache: &mut CacheBuffers<Flex>,
    [k, v]: [&FloatTensor<Flex>; 2],
    spans: &Spans,
    counts: &[usize],
    encode: bool,
) -> Option<()> {
    let types = [(&cache.k, k), (&cache.v, v)];
    let fits = types.map(|(rows, tokens)| match rows {
        RowBuffers::Float(_) => T::slice(tokens).is_some(),
        RowBuffers::Int8 { .. } => f32::slice(tokens).is_some(),
    });
    if !is_contiguous::<T>(cache) || fits != [true; 2] {
        return None;
    }
    let [_, kv_heads, len, dim] = k.layout().shape().dims::<4>();
    let capacity = capacity(&cache.k);
    let heads = spans.batch() * kv_heads;
    let targets: Vec<Target> = (0..heads)
        .flat_map(|head| (0..counts[head / kv_heads]).map(move |token| (head, token)))
        .map(|(head, token)| {
            let sequence = head / kv_heads;
            let position = spans.end[sequence] + token;
            Target {
                position,
                padding: position < spans.start[sequence],
                channels: head * dim..(head + 1) * dim,
                source: (head * len + token) * dim..(head * len + token + 1) * dim,
            }
        })
        .collect();

    let level = Level::detect();
    let keys = store::<T>(level, &mut cache.k, k, &targets)?;
    let values = store::<T>(level, &mut cache.v, v, &targets)?;
    let v_sum = f32::storage_mut(&mut cache.v_sum);
    for target in targets.iter().filter(|target| !target.padding) {
        let sums = &mut v_sum[target.channels.clone()];
        for (sum, value) in sums.iter_mut().zip(&values[target.source.clone()]) {
            *sum += value;
        }
    }
    append_to_sketch::<T>(level, &mut cache.sketch, keys, capacity, &targets, encode);
    Some(())
}

/// Returns S_max.
fn capacity(rows: &RowBuffers<Flex>) -> usize {
    match rows {
        RowBuffers::Float(rows) => rows.layout().shape()[2],
        RowBuffers::Int8 { scale, .. } => scale.layout().shape()[2],
    }
}

/// Writes tokens to their rows. Returns all tokens in fp32, those of targets as they are stored.
fn store<T: Element>(
    level: Level,
    rows: &mut RowBuffers<Flex>,
    tokens: &FloatTensor<Flex>,
    targets: &[Target],
) -> Option<Vec<f32>> {
    let capacity = capacity(rows);
    match rows {
        RowBuffers::Float(rows) => {
            let tokens = T::slice(tokens)?;
            let rows = T::storage_mut(rows);
            for target in targets {
                let at = target.row(capacity) * target.source.len();
                let row = &mut rows[at..at + target.source.len()];
                row.copy_from_slice(&tokens[target.source.clone()]);
            }
            Some(convert(level, tokens))
        }
        RowBuffers::Int8 { codes, scale } => {
            let mut tokens = f32::slice(tokens)?.to_vec();
            let words = codes.layout().shape()[3];
            let codes = codes.storage_mut::<u32>();
            let scales = f32::storage_mut(scale);
            for target in targets {
                let row = target.row(capacity);
                let token = &mut tokens[target.source.clone()];
                let scale = level.run(Quantize { row: token });
                scales[row] = scale;
                let words = &mut codes[row * words..(row + 1) * words];
                for (word, codes) in words.iter_mut().zip(token.chunks_exact(4)) {
                    let code = |i: usize| codes[i] as i8 as u8;
                    *word = u32::from_le_bytes(std::array::from_fn(code));
                }
                token.iter_mut().for_each(|code| *code *= scale);
            }
            Some(tokens)
        }
    }
}

/// Replaces the elements of a row by their codes, and returns the scale; see
/// [`rows`](crate::cache::rows).
struct Quantize<'a> {
    row: &'a mut [f32],
}

impl Kernel for Quantize<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let zero = simd.splat(0.0);
        let (mut largest, mut unusable) = (zero, zero);
        for at in (0..self.row.len()).step_by(S::LANES) {
            let x = f32::load_at(simd, self.row, at);
            largest = simd.max(simd.max(x, simd.sub(zero, x)), largest);
            // 0 x is 0, or NaN for an infinity or NaN.
            unusable = simd.mul_add(x, zero, unusable);
        }
        let scale = simd.largest(largest) / LARGEST_CODE + simd.sum(unusable);
        if scale.is_nan() || scale == 0.0 {
            self.row.fill(0.0);
            return scale;
        }
        let (of_row, most) = (simd.splat(scale), simd.splat(LARGEST_CODE));
        for at in (0..self.row.len()).step_by(S::LANES) {
            let code = simd.round(simd.div(f32::load_at(simd, self.row, at), of_row));
            let code = simd.max(simd.min(code, most), simd.sub(zero, most));
            // Turns -0 into 0, as which it is stored.
            let code = simd.add(code, zero);
            f32::store_at(simd, code, self.row, at);
        }
        scale
    }
}

/// Adds the values that a roll back keeps to the sum of V at the mark, [B, H_kv, d], in the order
/// of their positions, and copies it to the sum of the cache. Writes nothing and returns `None` if
/// a sum is not contiguous from the start of its storage.
pub(super) fn add_kept<T: RowElement>(
    [sum, of_cache]: [&mut FloatTensor<Flex>; 2],
    values: Rows<'_, T>,
    mark: &Spans,
    spans: &Spans,
) -> Option<()> {
    let len = mark.batch() * values.kv_heads * values.dim;
    let whole = |tensor: &FloatTensor<Flex>| {
        tensor.dtype() == DType::F32 && tensor.layout().contiguous_offsets() == Some((0, len))
    };
    if !whole(sum) || !whole(of_cache) {
        return None;
    }
    let sum = &mut f32::storage_mut(sum)[..len];
    for (head, sums) in sum.chunks_exact_mut(values.dim).enumerate() {
        let sequence = head / values.kv_heads;
        let first = mark.end[sequence].max(mark.start[sequence]);
        for position in first..spans.end[sequence] {
            let value = values.row(head * values.capacity + position);
            for (component, sum) in sums.iter_mut().enumerate() {
                *sum += value.widen(component);
            }
        }
    }
    f32::storage_mut(of_cache)[..len].copy_from_slice(sum);
    Some(())
}

/// Writes the spans of a cache [3, B] in place. Returns false, and writes nothing, for a tensor
/// that [`Spans::to_tensor`] did not make.
pub(super) fn set_spans(tensor: &mut IntTensor<Flex>, spans: &Spans) -> bool {
    let batch = spans.batch();
    let whole = tensor.layout().contiguous_offsets() == Some((0, 3 * batch));
    if !whole || tensor.dtype() != DType::U32 {
        return false;
    }
    let (starts, rest) = tensor.storage_mut::<u32>().split_at_mut(batch);
    let (ends, counters) = rest.split_at_mut(batch);
    for (to, &from) in starts.iter_mut().zip(&spans.start) {
        *to = from as u32;
    }
    for (to, from) in ends.iter_mut().zip(spans.device_ends()) {
        *to = from as u32;
    }
    counters[..batch].fill(0);
    true
}

/// The place of a new token of a batch head.
struct Target {
    position: usize,
    /// True if the position is left padding, which the sum of V leaves out.
    padding: bool,
    /// The channels of the batch head among those of all, [B, H_kv, d].
    channels: Range<usize>,
    /// The token's elements among those of all, [B, H_kv, T, d].
    source: Range<usize>,
}

impl Target {
    /// The row among those of all batch heads, [B, H_kv, S_max].
    fn row(&self, capacity: usize) -> usize {
        self.channels.start / self.channels.len() * capacity + self.position
    }
}

/// Returns whether all buffers to be written are contiguous from the start of their storage.
fn is_contiguous<T: Element>(cache: &CacheBuffers<Flex>) -> bool {
    let contiguous = |tensor: &FloatTensor<Flex>| {
        let offsets = tensor.layout().contiguous_offsets();
        offsets.is_some_and(|(start, _)| start == 0)
    };
    let sketch = match &cache.sketch {
        SketchBuffers::None => true,
        SketchBuffers::Full(kt) => contiguous(kt) && T::slice(kt).is_some(),
        SketchBuffers::Codes { codes, .. } => contiguous(codes),
    };
    let rows = [&cache.k, &cache.v].map(|rows| match rows {
        RowBuffers::Float(rows) => contiguous(rows) && T::slice(rows).is_some(),
        RowBuffers::Int8 { codes, scale } => contiguous(codes) && contiguous(scale),
    });
    sketch && rows == [true; 2] && contiguous(&cache.v_sum)
}

/// Writes the keys into the sketch. Codes are written only if `encode` is set.
fn append_to_sketch<T: Element>(
    level: Level,
    sketch: &mut SketchBuffers<Flex>,
    mut keys: Vec<f32>,
    capacity: usize,
    targets: &[Target],
    encode: bool,
) {
    match sketch {
        SketchBuffers::Full(kt) => {
            let (kt, keys) = (T::storage_mut(kt), convert::<f32, T>(level, &keys));
            for target in targets {
                for (channel, source) in target.channels.clone().zip(target.source.clone()) {
                    kt[channel * capacity + target.position] = keys[source];
                }
            }
        }
        SketchBuffers::Codes {
            bits,
            codes,
            zero_point,
            scale,
        } if encode => {
            let (zero_point, scale) = (zero_point.to_contiguous(), scale.to_contiguous());
            let (Some(zero_points), Some(scales)) = (f32::slice(&zero_point), f32::slice(&scale))
            else {
                unreachable!("to_contiguous returns contiguous fp32 tensors")
            };
            let words = codes.layout().shape()[3];
            let codes = codes.storage_mut::<u32>();
            for target in targets {
                level.run(Encode {
                    keys: &mut keys[target.source.clone()],
                    zero_points: &zero_points[target.channels.clone()],
                    scales: &scales[target.channels.clone()],
                    largest: ((1u32 << *bits) - 1) as f32,
                });
                let per_word = codes_per_word(*bits);
                let word = target.position / per_word;
                let shift = target.position % per_word * *bits;
                for (channel, source) in target.channels.clone().zip(target.source.clone()) {
                    let word = &mut codes[channel * words + word];
                    // A range of no width, whose keys all have code 0, is divided by.
                    let code = match scales[channel] == 0.0 {
                        true => 0,
                        false => keys[source] as u32,
                    };
                    *word = *word & ((1 << shift) - 1) | code << shift;
                }
            }
        }
        _ => {}
    }
}

/// Replaces keys by their codes; see [`sketch`](crate::sketch).
struct Encode<'a> {
    /// As many as zero points and scales.
    keys: &'a mut [f32],
    zero_points: &'a [f32],
    scales: &'a [f32],
    /// The largest code.
    largest: f32,
}

impl Kernel for Encode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for at in (0..self.keys.len()).step_by(S::LANES) {
            let offset = simd.sub(
                f32::load_at(simd, self.keys, at),
                f32::load_at(simd, self.zero_points, at),
            );
            let code = simd.round(simd.div(offset, f32::load_at(simd, self.scales, at)));
            // NaN becomes 0.
            let code = simd.max(code, simd.splat(0.0));
            let code = simd.min(code, simd.splat(self.largest));
            f32::store_at(simd, code, self.keys, at);
        }
    }
}
