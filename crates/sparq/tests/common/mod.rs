//! What the tests of this crate share: the devices, random caches and comparisons.
#![allow(dead_code)] // each test binary uses a part

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use sparq::{KvCache, KvCacheConfig, Sketch};
use sparq_device::DeviceChoice;

/// The device that BURN_DEVICE names, or else every one of this build that answers.
pub fn devices() -> Vec<Device> {
    let devices = sparq_device::for_tests().unwrap();
    devices.iter().map(DeviceChoice::open).collect()
}

/// A small deterministic generator of standard-normal-like numbers (sum of uniforms), so that a failing case can be repeated.
pub struct Noise(pub u64);

impl Noise {
    fn uniform(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32
    }

    pub fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count)
            .map(|_| (0..6).map(|_| self.uniform()).sum::<f32>() * 1.414 - 4.243)
            .collect()
    }

    pub fn tensor(&mut self, shape: [usize; 4], device: &Device) -> Tensor<4> {
        Tensor::from_data(
            TensorData::new(self.values(shape.iter().product()), shape),
            device,
        )
    }
}

pub fn cache_of(
    k: &Tensor<4>,
    v: &Tensor<4>,
    dtype: FloatDType,
    sketch: Option<Sketch>,
) -> KvCache {
    let [batch, kv_heads, len, head_dim] = k.dims();
    let config = KvCacheConfig::new(batch, kv_heads, head_dim)
        .with_capacity(len)
        .with_dtype(dtype)
        .with_sketch(sketch);
    let mut cache = config.init(&k.device()).unwrap();
    cache.append(k.clone(), v.clone()).unwrap();
    cache
}

pub fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor
        .clone()
        .cast(FloatDType::F32)
        .into_data()
        .try_to_vec::<f32>()
        .unwrap()
}

pub fn max_difference<const D: usize>(a: &Tensor<D>, b: &Tensor<D>) -> f32 {
    assert_eq!(a.dims(), b.dims());
    values(a)
        .iter()
        .zip(values(b))
        .map(|(a, b)| (a - b).abs())
        .fold(
            0.0,
            |worst, d| if d.is_nan() { f32::NAN } else { worst.max(d) },
        )
}
