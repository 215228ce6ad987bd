//! The rate of a large matrix product, measured in the same run as the figures related to it.

use anyhow::Result;
use burn::tensor::{DType, Distribution, FloatDType, Tensor};
use serde::{Deserialize, Serialize};
use sparq::ops::{Norm, Projection, Projections, Weight, decode_linear};
use sparq_device::DeviceChoice;

use crate::calls::{Calls, Kept};
use crate::shape::CacheType;
use crate::timing::{self, Pace};

/// Rows and columns of the matrices: on a CPU, and on a GPU, where the product has to fill all
/// processors many times.
const SIZES: [usize; 2] = [1024, 8192];

/// The rate of a product of two square matrices: the matrix peak.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MatrixRate {
    /// 10^12 floating-point operations per second, 2 n^3 for a product.
    pub tflops: f64,
    /// n: rows and columns of the matrices.
    pub size: usize,
}

impl MatrixRate {
    /// The time of this number of floating-point operations at this rate, in microseconds.
    pub fn us(&self, flops: f64) -> f64 {
        flops / self.tflops / 1e6
    }
}

/// Measures the product of two square matrices of this type, as linear layers multiply.
///
/// # Errors
/// If the device fails.
pub fn measure(device: &DeviceChoice, dtype: CacheType, pace: &Pace) -> Result<MatrixRate> {
    let size = SIZES[usize::from(device.is_gpu())];
    rate(device, dtype, size, pace)
}

fn rate(device: &DeviceChoice, dtype: CacheType, size: usize, pace: &Pace) -> Result<MatrixRate> {
    let opened = device.open();
    let options = (&opened, DType::from(FloatDType::from(dtype)));
    let random = || Tensor::<2>::random([size, size], Distribution::Normal(0.0, 0.02), options);
    let (a, b) = (random(), random());
    let product = move || {
        let projection = Projection {
            weight: Weight::Float(b.clone()),
            bias: None,
        };
        decode_linear(a.clone(), Norm::None, Projections::One(projection), None)
    };
    let calls: Calls = Box::new(move |_| Kept::rest(product()));
    let time = timing::eager(&opened, &calls, 1, pace)?;
    Ok(MatrixRate {
        tflops: 2.0 * (size as f64).powi(3) / time.median_us / 1e6,
        size,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrix_rate_is_operations_per_time() {
        let device = sparq_device::available()[0].clone();
        let found = rate(&device, CacheType::F32, 64, &Pace::QUICK).unwrap();
        assert!(found.tflops > 0.0 && found.size == 64);
        let flops = 2.0 * 64_f64.powi(3);
        let us = found.us(flops);
        assert!((flops / us / 1e6 / found.tflops - 1.0).abs() < 1e-9);
    }
}
