//! Linear layers with the operations around them, in plain tensor operations.
//!
//! Half types are computed in fp32, except for products on a GPU: its matrix products accumulate in
//! fp32 and round only the result. The products of a CPU backend may round every partial sum.
//! Packed weights are dequantised to the type of x.

use burn::tensor::{DType, FloatDType, Tensor};

use crate::ops::{Norm, Projection, Projections, Weight, has_kernels};

/// See [`ops::decode_linear`](crate::ops::decode_linear).
pub fn decode_linear(
    x: Tensor<2>,
    norm: &Norm,
    projections: &Projections,
    residual: Option<Tensor<2>>,
) -> Tensor<2> {
    let dtype = FloatDType::from(x.dtype());
    let x = normalize(x, norm);
    let product = |projection: &Projection| project(x.clone(), projection);
    let y = match projections {
        Projections::One(only) => product(only),
        Projections::Two(a, b) => Tensor::cat(vec![product(a), product(b)], 1),
        Projections::Three(a, b, c) => Tensor::cat(vec![product(a), product(b), product(c)], 1),
        Projections::Gated {
            gate,
            up,
            activation,
        } => activation.forward(product(gate)) * product(up),
        Projections::Activated { up, activation } => activation.forward(product(up)),
    };
    let y = match residual {
        None => y,
        Some(residual) => y + wide(residual),
    };
    y.cast(dtype)
}

/// See [`ops::normalize`](crate::ops::normalize).
pub fn normalize(x: Tensor<2>, norm: &Norm) -> Tensor<2> {
    let dtype = FloatDType::from(x.dtype());
    let normed = match norm {
        Norm::None => return x,
        Norm::Rms { weight, epsilon } => {
            let x = wide(x);
            let rms = (x.clone().square().mean_dim(1) + *epsilon).sqrt();
            x / rms * wide(weight.clone()).unsqueeze()
        }
        Norm::Layer {
            weight,
            bias,
            epsilon,
        } => {
            let x = wide(x);
            let centered = x.clone() - x.mean_dim(1);
            let variance = centered.clone().square().mean_dim(1);
            let scaled = centered / (variance + *epsilon).sqrt();
            scaled * wide(weight.clone()).unsqueeze() + wide(bias.clone()).unsqueeze()
        }
    };
    normed.cast(dtype)
}

/// x W^T + bias, in fp32 for half types.
fn project(x: Tensor<2>, projection: &Projection) -> Tensor<2> {
    let weight = match &projection.weight {
        Weight::Float(weight) => weight.clone(),
        Weight::Packed(weight) => {
            let weight = weight.dequantize(FloatDType::from(x.dtype()));
            match x.is_autodiff() {
                true => Tensor::from_inner(weight),
                false => weight,
            }
        }
    };
    let weight = weight.transpose();
    let product = match has_kernels(&x.device()) {
        true => wide(x.matmul(weight)),
        false => wide(x).matmul(wide(weight)),
    };
    match &projection.bias {
        None => product,
        Some(bias) => product + wide(bias.clone()).unsqueeze(),
    }
}

/// Casts a half type to fp32.
fn wide<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    match tensor.dtype() {
        DType::F16 | DType::BF16 => tensor.cast(FloatDType::F32),
        _ => tensor,
    }
}
