//! Devices, caches, noise and comparisons that the tests share.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::ops::Range;

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use sparq::methods::MeanValue;
use sparq::{KvCache, KvCacheConfig, Method, Sketch, SparqConfig};
use sparq_device::DeviceChoice;

/// Every kind of key sketch.
pub const SKETCHES: [Sketch; 3] = [Sketch::Full, Sketch::Bits8, Sketch::Bits4];

/// No sketch, and every kind.
pub const ALL_SKETCHES: [Option<Sketch>; 4] = {
    let [full, bits8, bits4] = SKETCHES;
    [None, Some(full), Some(bits8), Some(bits4)]
};

/// Returns the device that BURN_DEVICE names, or else every available device of this build.
pub fn devices() -> Vec<Device> {
    let devices = sparq_device::for_tests().unwrap();
    devices.iter().map(DeviceChoice::open).collect()
}

/// Returns the error by which products of f32 tensors in burn's operations exceed that of f32,
/// several times.
///
/// On CUDA burn multiplies in TF32, which has a significand of 11 bits.
pub fn tf32_error(device: &Device) -> f32 {
    match format!("{device:?}").contains("Cuda(") {
        true => 2e-3,
        false => 0.0,
    }
}

/// A deterministic generator of numbers that are nearly standard normal, so that a failing case can
/// be repeated.
pub struct Noise(pub u64);

impl Noise {
    fn uniform(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Returns standardised sums of six uniform numbers each.
    pub fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count)
            .map(|_| (0..6).map(|_| self.uniform()).sum::<f32>() * 1.414 - 4.243)
            .collect()
    }

    pub fn tensor(&mut self, shape: [usize; 4], device: &Device) -> Tensor<4> {
        let values = self.values(shape.iter().product());
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    /// Returns a query of `heads` heads, and keys and values [B, H_kv, S, d].
    pub fn problem(
        &mut self,
        shape: [usize; 4],
        heads: usize,
        device: &Device,
    ) -> (Tensor<4>, [Tensor<4>; 2]) {
        let keys_and_values = self.tensors(shape, device);
        let [batch, _, _, head_dim] = shape;
        (
            self.tensor([batch, heads, 1, head_dim], device),
            keys_and_values,
        )
    }

    /// Returns several tensors of one shape, such as keys and values.
    pub fn tensors<const N: usize>(
        &mut self,
        shape: [usize; 4],
        device: &Device,
    ) -> [Tensor<4>; N] {
        [(); N].map(|()| self.tensor(shape, device))
    }
}

/// Settings of an fp32 cache with the smallest capacity and no window, for a shape
/// [B, H_kv, d].
pub fn cache_config(
    [batch, kv_heads, head_dim]: [usize; 3],
    sketch: Option<Sketch>,
) -> KvCacheConfig {
    KvCacheConfig::new(batch, kv_heads, head_dim)
        .with_capacity(1)
        .with_dtype(FloatDType::F32)
        .with_sketch(sketch)
}

/// Returns an empty cache.
pub fn new_cache(config: &KvCacheConfig, device: &Device) -> KvCache {
    config.init(device).unwrap()
}

/// Returns a cache that holds the keys and values [B, H_kv, S, d].
pub fn cache_of(
    k: &Tensor<4>,
    v: &Tensor<4>,
    dtype: FloatDType,
    sketch: Option<Sketch>,
) -> KvCache {
    let [batch, kv_heads, len, head_dim] = k.dims();
    let config = cache_config([batch, kv_heads, head_dim], sketch)
        .with_capacity(len)
        .with_dtype(dtype);
    let mut cache = new_cache(&config, &k.device());
    cache.append(k.clone(), v.clone()).unwrap();
    cache
}

/// Returns [`cache_of`] in fp32.
pub fn cache_f32(k: &Tensor<4>, v: &Tensor<4>, sketch: Option<Sketch>) -> KvCache {
    cache_of(k, v, FloatDType::F32, sketch)
}

/// Returns SparQ on the sketch, always with the mean value, or dense attention without a sketch.
pub fn method_for(sketch: Option<Sketch>, rank: usize, top_k: usize) -> Method {
    sketch.map_or(Method::DENSE, |sketch| {
        SparqConfig::new(rank, top_k)
            .with_sketch(sketch)
            .with_mean_value(MeanValue::Always)
            .into()
    })
}

/// Returns some positions of keys or values [B, H_kv, S, d].
pub fn positions(tensor: &Tensor<4>, range: Range<usize>) -> Tensor<4> {
    tensor.clone().slice_dim(2, range)
}

/// Returns one sequence of a batch.
pub fn sequence<const D: usize>(tensor: &Tensor<D>, index: usize) -> Tensor<D> {
    tensor.clone().slice_dim(0, index..index + 1)
}

/// Reads a tensor as fp32.
pub fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor
        .clone()
        .cast(FloatDType::F32)
        .into_data()
        .try_to_vec::<f32>()
        .unwrap()
}

/// Returns whether every element is finite.
pub fn is_finite<const D: usize>(tensor: &Tensor<D>) -> bool {
    values(tensor).iter().all(|value| value.is_finite())
}

/// Returns the largest absolute difference, or NaN if any difference is NaN.
pub fn max_difference<const D: usize>(a: &Tensor<D>, b: &Tensor<D>) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let pairs = std::iter::zip(values(a), values(b));
    let differences: Vec<f32> = pairs.map(|(a, b)| (a - b).abs()).collect();
    match differences.iter().any(|difference| difference.is_nan()) {
        true => f32::NAN,
        false => differences.into_iter().fold(0.0, f32::max),
    }
}
