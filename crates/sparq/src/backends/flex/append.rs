//! Appending one token to each sequence, in place.

use burn::backend::Flex;
use burn::backend::tensor::FloatTensor;

use super::element::Element;
use crate::ops::Spans;
use crate::ops::{CacheBuffers, SketchBuffers};
use crate::sketch::codes_per_word;

/// Writes keys and values [B, H_kv, 1, d] of the cache's type behind `rows` for each sequence b with `counts[b]` = 1, as
/// [`write::append`](crate::ops::reference::append::append) does. Copies the buffers that another tensor shares.
///
/// Returns false, with nothing written, where a buffer does not lie as it was made.
pub(super) fn token<T: Element>(
    cache: &mut CacheBuffers<Flex>,
    k: &[T],
    v: &[T],
    rows: &Spans,
    counts: &[usize],
    encode: bool,
) -> bool {
    let whole = |tensor: &FloatTensor<Flex>| {
        tensor
            .layout()
            .contiguous_offsets()
            .is_some_and(|(start, _)| start == 0)
    };
    let sketch_whole = match &cache.sketch {
        SketchBuffers::None => true,
        SketchBuffers::Full(kt) => whole(kt) && kt.dtype() == cache.k.dtype(),
        SketchBuffers::Codes { codes, .. } => whole(codes),
    };
    if !(whole(&cache.k) && whole(&cache.v) && whole(&cache.v_sum) && sketch_whole) {
        return false;
    }
    let shape = cache.k.layout().shape();
    let (kv_heads, capacity, dim) = (shape[1], shape[2], shape[3]);
    // Heads that get a token, with the position it is written to and whether that is left padding.
    let new: Vec<(usize, usize, bool)> = (0..rows.batch())
        .filter(|&row| counts[row] > 0)
        .flat_map(|row| (0..kv_heads).map(move |head| (row, row * kv_heads + head)))
        .map(|(row, head)| (head, rows.end[row], rows.end[row] < rows.start[row]))
        .collect();
    let part = |head: usize| head * dim..(head + 1) * dim;

    for (buffer, token) in [(&mut cache.k, k), (&mut cache.v, v)] {
        let buffer = T::storage_mut(buffer);
        for &(head, at, _) in &new {
            buffer[(head * capacity + at) * dim..][..dim].copy_from_slice(&token[part(head)]);
        }
    }
    let sum = f32::storage_mut(&mut cache.v_sum);
    for &(head, _, padding) in &new {
        if !padding {
            for (sum, value) in sum[part(head)].iter_mut().zip(&v[part(head)]) {
                *sum += value.widen();
            }
        }
    }
    match &mut cache.sketch {
        SketchBuffers::Full(kt) => {
            let kt = T::storage_mut(kt);
            for &(head, at, _) in &new {
                for (channel, &key) in part(head).zip(&k[part(head)]) {
                    kt[channel * capacity + at] = key;
                }
            }
        }
        SketchBuffers::Codes {
            bits,
            codes,
            zero_point: lo,
            scale: step,
        } if encode => {
            let (lo, step) = (lo.to_contiguous(), step.to_contiguous());
            let (Some(lo), Some(step)) = (f32::slice(&lo), f32::slice(&step)) else {
                unreachable!("ranges are made contiguous, in fp32")
            };
            let words = codes.layout().shape()[3];
            let codes = codes.storage_mut::<u32>();
            for &(head, at, _) in &new {
                let (word, shift) = (
                    at / codes_per_word(*bits),
                    at % codes_per_word(*bits) * *bits,
                );
                for (channel, key) in part(head).zip(&k[part(head)]) {
                    let word = &mut codes[channel * words + word];
                    let code = code(key.widen(), lo[channel], step[channel], *bits);
                    *word = *word & ((1 << shift) - 1) | code << shift;
                }
            }
        }
        _ => {}
    }
    true
}

/// The code of a key; see [`sketch`](crate::sketch).
fn code(key: f32, lo: f32, step: f32, bits: usize) -> u32 {
    let code = (key - lo) / step;
    if code.is_nan() || step == 0.0 {
        return 0;
    }
    let levels = ((1u32 << bits) - 1) as f32;
    code.round_ties_even().clamp(0.0, levels) as u32
}
