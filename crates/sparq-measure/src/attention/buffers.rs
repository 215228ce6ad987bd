//! Caches to read, several of each: no call finds in the processor's cache the data of the call
//! before.

use anyhow::Result;
use burn::tensor::kind::Basic;
use burn::tensor::{Device, Distribution, FloatDType, Tensor};
use sparq::ops::{CacheTensors, RowTensors, SketchTensors, Spans};
use sparq::{KvCacheConfig, RowFormat, Sketch};

use super::case::Case;

/// The largest number of random numbers to draw at once, unless one batch head has more.
const DRAWN_AT_ONCE: usize = 1 << 26;

/// The tensors that every buffer set of a case copies.
#[derive(Debug)]
pub struct Source {
    /// The query, [B, H, 1, d], in the element type of the cache.
    pub q: Tensor<4>,
    /// Keys, [B, H_kv, S, d], in the element type of the cache.
    pub k: Tensor<4>,
    /// Values, [B, H_kv, S, d], in the element type of the cache.
    pub v: Tensor<4>,
    /// g: number of query heads per KV head.
    pub group_size: usize,
}

impl Source {
    /// Draws normally distributed queries, keys and values, the same in every run.
    pub fn new(case: &Case, device: &Device) -> Self {
        device.seed(0);
        let shape = &case.shape;
        let dtype = FloatDType::from(case.dtype);
        let random = |heads, len| random([shape.batch, heads, len, shape.head_dim], dtype, device);
        Self {
            q: random(shape.heads, 1),
            k: random(shape.kv_heads, shape.seq_len),
            v: random(shape.kv_heads, shape.seq_len),
            group_size: shape.group_size(),
        }
    }

    /// Makes `count` separate caches with these keys and values and their sketch.
    ///
    /// # Errors
    /// If the device cannot hold such a cache.
    pub fn caches(&self, rows: RowFormat, sketch: Option<Sketch>, count: usize) -> Result<Caches> {
        let [batch, kv_heads, len, head_dim] = self.k.dims();
        let config = KvCacheConfig::new(batch, kv_heads, head_dim)
            .with_capacity(len)
            .with_dtype(FloatDType::from(self.k.dtype()))
            .with_rows(rows)
            .with_sketch(sketch);
        let mut cache = config.init(&self.k.device())?;
        cache.append(self.k.clone(), self.v.clone())?;
        cache.refresh_sketch();
        let spans = cache.spans().clone();
        let mut sets = vec![cache.tensors().clone()];
        while sets.len() < count {
            sets.push(copied(&sets[0]));
        }
        Ok(Caches { sets, spans })
    }
}

/// Draws normally distributed numbers in f32, some batch heads at a time: one buffer for all of
/// them could exceed the buffer limit of the device.
fn random(shape: [usize; 4], dtype: FloatDType, device: &Device) -> Tensor<4> {
    let [batch, heads, len, head_dim] = shape;
    let (batch_heads, size) = (batch * heads, len * head_dim);
    let at_once = (DRAWN_AT_ONCE / size).clamp(1, batch_heads);
    let mut all = Tensor::<2>::empty([batch_heads, size], (device, dtype.into()));
    for first in (0..batch_heads).step_by(at_once) {
        let end = batch_heads.min(first + at_once);
        let part = Tensor::<2>::random([end - first, size], Distribution::Normal(0.0, 1.0), device);
        all = all.slice_assign([first..end, 0..size], part.cast(dtype));
    }
    all.reshape(shape)
}

/// Caches with equal contents in separate memory.
#[derive(Debug)]
pub struct Caches {
    /// The buffer sets.
    pub sets: Vec<CacheTensors>,
    /// The valid positions, the same in every set.
    pub spans: Spans,
}

fn copied(cache: &CacheTensors) -> CacheTensors {
    CacheTensors {
        k: copied_rows(&cache.k),
        v: copied_rows(&cache.v),
        v_sum: copy(&cache.v_sum),
        spans: copy(&cache.spans),
        softcap: cache.softcap,
        sketch: match &cache.sketch {
            SketchTensors::None => SketchTensors::None,
            SketchTensors::Full(kt) => SketchTensors::Full(copy(kt)),
            SketchTensors::Codes {
                bits,
                codes,
                zero_point,
                scale,
            } => SketchTensors::Codes {
                bits: *bits,
                codes: copy(codes),
                zero_point: copy(zero_point),
                scale: copy(scale),
            },
        },
    }
}

fn copied_rows(rows: &RowTensors) -> RowTensors {
    match rows {
        RowTensors::Float(rows) => RowTensors::Float(copy(rows)),
        RowTensors::Int8 { codes, scale } => RowTensors::Int8 {
            codes: copy(codes),
            scale: copy(scale),
        },
    }
}

/// Copies a tensor into separate memory; a clone would share it.
pub fn copy<const D: usize, K: Basic>(tensor: &Tensor<D, K>) -> Tensor<D, K> {
    let all = tensor.dims().map(|size| 0..size);
    Tensor::zeros(tensor.dims(), (&tensor.device(), tensor.dtype()))
        .slice_assign(all, tensor.clone())
}
