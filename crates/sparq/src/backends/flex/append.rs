//! Appends few tokens to each sequence, in place.

use std::ops::Range;

use burn::backend::Flex;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::DType;

use super::element::{Element, convert};
use super::simd::{Kernel, Level, Simd};
use crate::ops::Spans;
use crate::ops::{CacheBuffers, SketchBuffers};
use crate::sketch::codes_per_word;

/// The most tokens of a sequence that are appended one by one, as decode steps append them.
pub(super) const FEW: usize = 16;

/// Appends the first `counts[b]` of T keys and values [B, H_kv, T, d] of the cache's type to each
/// sequence b, as [`write::append`](crate::ops::reference::append::append) does. Copies the buffers
/// that another tensor shares.
///
/// Writes nothing and returns false if a buffer is not contiguous from the start of its storage.
pub(super) fn append_few<T: Element>(
    cache: &mut CacheBuffers<Flex>,
    k: &[T],
    v: &[T],
    spans: &Spans,
    counts: &[usize],
    encode: bool,
) -> bool {
    if !is_contiguous(cache) {
        return false;
    }
    let shape = cache.k.layout().shape();
    let (kv_heads, capacity, dim) = (shape[1], shape[2], shape[3]);
    let heads = spans.batch() * kv_heads;
    let len = k.len() / (heads * dim).max(1);
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

    for (buffer, tokens) in [(&mut cache.k, k), (&mut cache.v, v)] {
        let buffer = T::storage_mut(buffer);
        for target in &targets {
            let at = target.channels.start * capacity + target.position * dim;
            buffer[at..at + dim].copy_from_slice(&tokens[target.source.clone()]);
        }
    }
    let level = Level::detect();
    let values: Vec<f32> = convert(level, v);
    let v_sum = f32::storage_mut(&mut cache.v_sum);
    for target in targets.iter().filter(|target| !target.padding) {
        let sums = &mut v_sum[target.channels.clone()];
        for (sum, value) in sums.iter_mut().zip(&values[target.source.clone()]) {
            *sum += value;
        }
    }
    append_to_sketch(level, &mut cache.sketch, k, capacity, &targets, encode);
    true
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
    for (to, from) in [(starts, &spans.start), (ends, &spans.end)] {
        for (to, &from) in to.iter_mut().zip(from) {
            *to = from as u32;
        }
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

/// Returns whether all buffers to be written are contiguous from the start of their storage.
fn is_contiguous(cache: &CacheBuffers<Flex>) -> bool {
    let contiguous = |tensor: &FloatTensor<Flex>| {
        let offsets = tensor.layout().contiguous_offsets();
        offsets.is_some_and(|(start, _)| start == 0)
    };
    let sketch = match &cache.sketch {
        SketchBuffers::None => true,
        SketchBuffers::Full(kt) => contiguous(kt) && kt.dtype() == cache.k.dtype(),
        SketchBuffers::Codes { codes, .. } => contiguous(codes),
    };
    sketch && contiguous(&cache.k) && contiguous(&cache.v) && contiguous(&cache.v_sum)
}

/// Writes the keys into the sketch. Codes are written only if `encode` is set.
fn append_to_sketch<T: Element>(
    level: Level,
    sketch: &mut SketchBuffers<Flex>,
    k: &[T],
    capacity: usize,
    targets: &[Target],
    encode: bool,
) {
    match sketch {
        SketchBuffers::Full(kt) => {
            let kt = T::storage_mut(kt);
            for target in targets {
                for (channel, source) in target.channels.clone().zip(target.source.clone()) {
                    kt[channel * capacity + target.position] = k[source];
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
            let mut new: Vec<f32> = convert(level, k);
            let words = codes.layout().shape()[3];
            let codes = codes.storage_mut::<u32>();
            for target in targets {
                level.run(Encode {
                    keys: &mut new[target.source.clone()],
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
                        false => new[source] as u32,
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
