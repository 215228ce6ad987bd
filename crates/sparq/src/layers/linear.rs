//! A linear layer whose weight is floats or blocks: [`LinearLayer`].

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{Device, FloatDType, Tensor};

use crate::ops::{Norm, PackedWeight, Projection, Projections, Weight, decode_linear};

/// A linear layer: x W^T + bias, with W as floats that can be trained or in blocks of a few bits.
///
/// Records name its parameters as those of burn's [`Linear`]. Of a packed layer they hold the bias
/// alone; see [`PackedWeight`].
///
/// ```
/// use burn::nn::LinearConfig;
/// use burn::tensor::{Bytes, Device, Tensor};
/// use sparq::LinearLayer;
/// use sparq::ops::{BlockFormat, PackedWeight};
///
/// let device = Device::default();
/// let float = LinearLayer::from(LinearConfig::new(32, 2).init(&device));
/// let zeros = Bytes::from_bytes_vec(vec![0; 2 * 34]);
/// let packed = PackedWeight::new(zeros, BlockFormat::Q8_0, [2, 32], &device)?;
/// let packed = LinearLayer::packed(packed, None);
///
/// let x = Tensor::<2>::ones([3, 32], &device);
/// assert_eq!(float.forward(x.clone()).dims(), packed.forward(x).dims());
/// # Ok::<(), sparq::SparqError>(())
/// ```
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "a few handles in a large model")]
pub enum LinearLayer {
    /// A matrix of floats, which can be trained.
    Float(Linear),
    /// A matrix in blocks.
    Packed(PackedLinear),
}

/// A linear layer with a weight in blocks.
#[derive(Module, Debug)]
pub struct PackedLinear {
    /// W, [out, in].
    pub weight: PackedWeight,
    /// The bias of each output, `[out]`.
    pub bias: Option<Param<Tensor<1>>>,
}

transparent_module!(LinearLayer);

impl LinearLayer {
    /// Makes a layer of a weight in blocks [out, in] and a bias `[out]`.
    pub fn packed(weight: PackedWeight, bias: Option<Tensor<1>>) -> Self {
        Self::Packed(PackedLinear {
            weight,
            bias: bias.map(Param::from_tensor),
        })
    }

    /// Returns [in, out], as the weight of burn's [`Linear`].
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Float(linear) => linear.weight.dims(),
            Self::Packed(linear) => {
                let [outputs, inputs] = linear.weight.dims();
                [inputs, outputs]
            }
        }
    }

    /// Returns the device of the weight.
    pub fn device(&self) -> Device {
        match self {
            Self::Float(linear) => linear.weight.device(),
            Self::Packed(linear) => linear.weight.device(),
        }
    }

    /// Returns the type of a weight of floats.
    pub fn dtype(&self) -> Option<FloatDType> {
        self.float()
            .map(|linear| FloatDType::from(linear.weight.val().dtype()))
    }

    /// Returns the bias, `[out]`.
    pub fn bias(&self) -> Option<Tensor<1>> {
        let bias = match self {
            Self::Float(linear) => linear.bias.as_ref(),
            Self::Packed(linear) => linear.bias.as_ref(),
        };
        bias.map(|bias| bias.val())
    }

    /// Returns whether products may be differentiated with respect to the parameters.
    pub fn is_autodiff(&self) -> bool {
        match self {
            Self::Float(linear) => linear.weight.val().is_autodiff(),
            Self::Packed(linear) => {
                let bias = linear.bias.as_ref();
                bias.is_some_and(|bias| bias.val().is_autodiff())
            }
        }
    }

    /// Returns the layer of floats; `None` if the weight is packed.
    pub fn float(&self) -> Option<&Linear> {
        match self {
            Self::Float(linear) => Some(linear),
            Self::Packed(_) => None,
        }
    }

    /// As [`float`](Self::float), to change it.
    pub fn float_mut(&mut self) -> Option<&mut Linear> {
        match self {
            Self::Float(linear) => Some(linear),
            Self::Packed(_) => None,
        }
    }

    /// Maps x [.., in] to [.., out].
    ///
    /// # Panics
    /// If the sizes or the types do not fit together.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let ([inputs, outputs], mut shape) = (self.dims(), x.dims());
        let rows = shape.iter().take(D - 1).product::<usize>();
        let x = x.reshape([rows, inputs]);
        let y = decode_linear(x, Norm::None, Projections::One(self.into()), None);
        shape[D - 1] = outputs;
        y.reshape(shape)
    }
}

impl From<Linear> for LinearLayer {
    fn from(linear: Linear) -> Self {
        Self::Float(linear)
    }
}

impl From<&LinearLayer> for Projection {
    fn from(layer: &LinearLayer) -> Self {
        match layer {
            LinearLayer::Float(linear) => linear.into(),
            LinearLayer::Packed(linear) => Self {
                weight: Weight::Packed(linear.weight.clone()),
                bias: linear.bias.as_ref().map(|bias| bias.val()),
            },
        }
    }
}
