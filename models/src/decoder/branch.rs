//! The output of attention or MLP on its way to the residual stream: [`Branch`].

use burn::module::Module;
use burn::tensor::Tensor;
use sparq::ops::normalize;

use super::norm::Norm;

/// The operations between the last layer of attention or MLP and the residual stream. Most families
/// have none, and add the stream in that layer.
#[derive(Module, Debug)]
pub(super) struct Branch {
    norm: Option<Norm>,
    #[module(skip)]
    scale: Option<f64>,
}

impl Branch {
    pub(super) fn new(norm: Option<Norm>, scale: Option<f64>) -> Self {
        Self { norm, scale }
    }

    /// Returns whether there is no operation.
    pub(super) fn is_plain(&self) -> bool {
        self.norm.is_none() && self.scale.is_none()
    }

    /// Adds an output y to the residual stream x, [B, T, D] each.
    pub(super) fn add(&self, x: Tensor<3>, y: Tensor<3>) -> Tensor<3> {
        let [batch, len, width] = y.dims();
        let y = match &self.norm {
            Some(norm) => {
                let y = normalize(y.reshape([batch * len, width]), norm.into());
                y.reshape([batch, len, width])
            }
            None => y,
        };
        match self.scale {
            Some(scale) => x + y * scale,
            None => x + y,
        }
    }
}
