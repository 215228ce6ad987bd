//! Products with many rows: burn's matrix product.

use burn::backend::TensorMetadata;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::tensor::CubeTensor;

use super::launch::Launcher;
use crate::ops::primitive::Primitive;

/// Returns x W^T for x [rows, in] and a weight [out, in], contiguous.
///
/// The kernel is chosen by a rule. Autotune would time every candidate for every size of a prompt:
/// it only takes sizes that the rule's kernel refuses.
pub(super) fn product(launcher: &Launcher, x: &CubeTensor, weight: &CubeTensor) -> CubeTensor {
    let [rows, outputs] = [x.shape()[0], weight.shape()[0]];
    let out = launcher.empty([rows, outputs], x.dtype);
    let weight = CubeBackend::float::<2>(weight.clone()).transpose();
    let weight = CubeBackend::float_primitive(weight);
    let multiply = |strategy| {
        let (x, weight, out) = (x.clone(), weight.clone(), out.clone());
        let dtype = x.dtype;
        matmul(x, weight, Some(out), strategy, dtype)
    };
    multiply(MatmulStrategy::Cube)
        .or_else(|_| multiply(MatmulStrategy::default()))
        .expect("burn multiplies matrices of every size")
}
