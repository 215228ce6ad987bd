//! Linear layers with the operations around them: [`decode_linear`] and [`normalize`].
//!
//! ```text
//!     y = epilogue(norm(x) W^T + bias) + residual
//! ```
//!
//! One operation has a norm before the product, up to three weights that share x, and an activation
//! and the residual stream after it. A layer of a decoder is four of them: norm and q, k, v; o and
//! residual; norm, gate, up and activation; down and residual.
//!
//! The weights stay in the modules that own them. They are matrices [out, in], as in checkpoints,
//! and burn's [`Linear`] holds the transposed view: the conversion to a [`Projection`] transposes
//! it back, which moves no data.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, ExtensionType};
use burn::nn::{LayerNorm, Linear, RmsNorm};
use burn::tensor::{Device, FloatDType, Tensor, activation};

use super::blocks::{BlockFormat, PackedWeight};
use super::primitive::Primitive;
use super::{SparqBackend, has_kernels, reference};

/// The activation function of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x * sigmoid(x), also called swish.
    Silu,
    /// The Gaussian error linear unit, computed with the error function.
    Gelu,
    /// The tanh approximation of the Gaussian error linear unit.
    GeluTanh,
    /// max(x, 0).
    Relu,
}

impl Activation {
    /// Applies the function to every element, in plain tensor operations.
    pub fn forward<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Silu => activation::silu(x),
            Self::Gelu => activation::gelu(x),
            Self::GeluTanh => activation::gelu_approximate(x),
            Self::Relu => activation::relu(x),
        }
    }
}

/// A norm over the last dimension.
#[derive(Clone, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "a few handles, moved once per operation"
)]
pub enum Norm {
    /// The input itself.
    None,
    /// x / sqrt(mean(x^2) + epsilon) * weight.
    Rms {
        /// The scale of each feature, `[in]`.
        weight: Tensor<1>,
        /// Added to the mean.
        epsilon: f64,
    },
    /// (x - mean(x)) / sqrt(variance(x) + epsilon) * weight + bias.
    Layer {
        /// The scale of each feature, `[in]`.
        weight: Tensor<1>,
        /// The shift of each feature, `[in]`.
        bias: Tensor<1>,
        /// Added to the variance, which divides by the number of features.
        epsilon: f64,
    },
}

impl From<&RmsNorm> for Norm {
    fn from(norm: &RmsNorm) -> Self {
        Self::Rms {
            weight: norm.gamma.val(),
            epsilon: norm.epsilon,
        }
    }
}

impl Norm {
    /// Takes the parameters of burn's layer norm, which does not tell its epsilon.
    ///
    /// burn and PyTorch use 1e-5 unless it is set.
    pub fn layer(norm: &LayerNorm, epsilon: f64) -> Self {
        let weight = norm.gamma.val();
        let bias = norm.beta.as_ref().map(|beta| beta.val());
        Self::Layer {
            bias: bias.unwrap_or_else(|| weight.zeros_like()),
            weight,
            epsilon,
        }
    }
}

/// The weight of a linear layer.
#[derive(Clone, Debug)]
pub enum Weight {
    /// A matrix [out, in], of x's type.
    Float(Tensor<2>),
    /// A matrix [out, in] in blocks of a few bits, for an x of any type.
    Packed(PackedWeight),
}

impl Weight {
    /// Returns [out, in].
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Float(weight) => weight.dims(),
            Self::Packed(weight) => weight.dims(),
        }
    }
}

/// A linear layer: x W^T + bias.
#[derive(Clone, Debug)]
pub struct Projection {
    /// W, [out, in].
    pub weight: Weight,
    /// The bias of each output, `[out]`.
    pub bias: Option<Tensor<1>>,
}

impl From<&Linear> for Projection {
    fn from(linear: &Linear) -> Self {
        Self {
            weight: Weight::Float(linear.weight.val().transpose()),
            bias: linear.bias.as_ref().map(|bias| bias.val()),
        }
    }
}

/// The linear layers that share an input, and the operation on their outputs.
#[derive(Clone, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "a few handles, moved once per operation"
)]
pub enum Projections {
    /// One layer, [rows, out].
    One(Projection),
    /// The outputs of two layers side by side, [rows, out_0 + out_1].
    Two(Projection, Projection),
    /// The outputs of three layers side by side, [rows, out_0 + out_1 + out_2].
    Three(Projection, Projection, Projection),
    /// activation(gate(x)) * up(x), [rows, out].
    Gated {
        /// The layer under the activation function.
        gate: Projection,
        /// The layer that is scaled, of the same size.
        up: Projection,
        /// The activation function.
        activation: Activation,
    },
    /// activation(up(x)), [rows, out].
    Activated {
        /// The layer.
        up: Projection,
        /// The activation function.
        activation: Activation,
    },
}

impl Norm {
    fn is_autodiff(&self) -> bool {
        match self {
            Self::None => false,
            Self::Rms { weight, .. } | Self::Layer { weight, .. } => weight.is_autodiff(),
        }
    }
}

impl Projections {
    fn is_autodiff(&self) -> bool {
        let is_autodiff = |projection: &Projection| match &projection.weight {
            Weight::Float(weight) => weight.is_autodiff(),
            Weight::Packed(_) => false,
        };
        match self {
            Self::One(only) => is_autodiff(only),
            Self::Two(first, _) | Self::Three(first, ..) => is_autodiff(first),
            Self::Gated { up, .. } | Self::Activated { up, .. } => is_autodiff(up),
        }
    }
}

/// Returns whether the weights of one output are contiguous on this device, as in checkpoints: a
/// [`Linear`] then holds the transposed view of a matrix [out, in].
///
/// A product with few rows is a dot product per output, and reads such weights as one stream.
/// Devices without kernels of this crate, and training on CPUs, use burn's products, which on a CPU
/// copy a transposed view first. They take matrices [in, out].
pub fn is_output_major(device: &Device) -> bool {
    has_kernels(device) || is_flex(device)
}

fn is_flex(device: &Device) -> bool {
    #[cfg(feature = "flex")]
    return !device.is_autodiff() && *device == Device::flex();
    #[cfg(not(feature = "flex"))]
    {
        let _ = device;
        false
    }
}

/// Computes `epilogue(norm(x) W^T + bias) + residual` for x [rows, in], any number of rows.
///
/// All tensors have x's type, which is that of the result too. Sums are in fp32. Intermediate
/// results may be rounded to x's type. A backend may round the x of a [packed](Weight::Packed)
/// weight to 8 bits, with a scale for each 32 elements or, for blocks of 256 weights, each 256.
///
/// On an autodiff device the result is differentiable in x, the residual, and all parameters.
///
/// ```
/// use burn::nn::{LinearConfig, RmsNormConfig};
/// use burn::tensor::{Device, Tensor};
/// use sparq::ops::{Activation, Projections, decode_linear};
///
/// let device = Device::default();
/// let norm = RmsNormConfig::new(64).init(&device);
/// let linear = |from, to| LinearConfig::new(from, to).init(&device);
/// let (gate, up, down) = (linear(64, 96), linear(64, 96), linear(96, 64));
///
/// let x = Tensor::<2>::ones([2, 64], &device);
/// let projections = Projections::Gated {
///     gate: (&gate).into(),
///     up: (&up).into(),
///     activation: Activation::Silu,
/// };
/// let inner = decode_linear(x.clone(), (&norm).into(), projections, None);
/// let y = decode_linear(inner, sparq::ops::Norm::None, Projections::One((&down).into()), Some(x));
/// assert_eq!(y.dims(), [2, 64]);
/// ```
///
/// # Panics
/// If the sizes or the types do not fit together.
pub fn decode_linear(
    x: Tensor<2>,
    norm: Norm,
    projections: Projections,
    residual: Option<Tensor<2>>,
) -> Tensor<2> {
    let residual_is_autodiff = residual.as_ref().is_some_and(Tensor::is_autodiff);
    let parameters = norm.is_autodiff() || projections.is_autodiff();
    if x.is_autodiff() || parameters || residual_is_autodiff {
        return reference::decode_linear(x, &norm, &projections, residual);
    }
    let residual = residual.map_or(ResidualBuffers::None, |residual| {
        ResidualBuffers::Add(residual.into_dispatch())
    });
    Tensor::from_dispatch(Dispatch::decode_linear(
        x.into_dispatch(),
        norm.lower(),
        projections.lower(),
        residual,
    ))
}

/// Normalizes the rows of x [rows, in]; differentiable on an autodiff device.
///
/// # Panics
/// If the sizes or the types do not fit together.
pub fn normalize(x: Tensor<2>, norm: Norm) -> Tensor<2> {
    if x.is_autodiff() || norm.is_autodiff() {
        return reference::normalize(x, &norm);
    }
    Tensor::from_dispatch(Dispatch::normalize(x.into_dispatch(), norm.lower()))
}

/// Converts x [rows, width] to f32; differentiable on an autodiff device.
pub fn widen(x: Tensor<2>) -> Tensor<2> {
    if x.is_autodiff() {
        return x.cast(FloatDType::F32);
    }
    Tensor::from_dispatch(Dispatch::widen(x.into_dispatch()))
}

/// A [`Norm`] as primitives of a backend.
#[derive(ExtensionType)]
pub enum NormBuffers<B: Backend> {
    /// The input itself.
    None,
    /// An RMS norm.
    Rms {
        /// The scale of each feature.
        weight: FloatTensor<B>,
        /// Added to the mean.
        epsilon: f64,
    },
    /// A layer norm.
    Layer {
        /// The scale of each feature.
        weight: FloatTensor<B>,
        /// The shift of each feature.
        bias: FloatTensor<B>,
        /// Added to the variance.
        epsilon: f64,
    },
}

/// A [`Weight`] as primitives of a backend.
#[derive(ExtensionType)]
pub enum WeightBuffers<B: Backend> {
    /// A matrix [out, in].
    Float(FloatTensor<B>),
    /// A matrix in blocks.
    Packed {
        /// The blocks, in the layout of [`SparqBackend::store_blocks`].
        blocks: IntTensor<B>,
        /// The format of the blocks.
        format: BlockFormat,
        /// [out, in].
        dims: [usize; 2],
    },
}

/// The bias of a linear layer as a primitive of a backend.
#[derive(ExtensionType)]
pub enum BiasBuffers<B: Backend> {
    /// No bias.
    None,
    /// The bias of each output, `[out]`.
    Add(FloatTensor<B>),
}

/// A [`Projection`] as primitives of a backend.
#[derive(ExtensionType)]
pub struct LinearBuffers<B: Backend> {
    /// W.
    #[extension_type]
    pub weight: WeightBuffers<B>,
    /// The bias.
    #[extension_type]
    pub bias: BiasBuffers<B>,
}

/// [`Projections`] as primitives of a backend.
#[derive(ExtensionType)]
pub enum ProjectionBuffers<B: Backend> {
    /// One layer.
    One(#[extension_type] LinearBuffers<B>),
    /// The outputs of two layers side by side.
    Two(
        #[extension_type] LinearBuffers<B>,
        #[extension_type] LinearBuffers<B>,
    ),
    /// The outputs of three layers side by side.
    Three(
        #[extension_type] LinearBuffers<B>,
        #[extension_type] LinearBuffers<B>,
        #[extension_type] LinearBuffers<B>,
    ),
    /// activation(gate(x)) * up(x).
    Gated {
        /// The layer under the activation function.
        #[extension_type]
        gate: LinearBuffers<B>,
        /// The layer that is scaled.
        #[extension_type]
        up: LinearBuffers<B>,
        /// The activation function.
        activation: Activation,
    },
    /// activation(up(x)).
    Activated {
        /// The layer.
        #[extension_type]
        up: LinearBuffers<B>,
        /// The activation function.
        activation: Activation,
    },
}

/// The residual stream as a primitive of a backend.
#[derive(ExtensionType)]
pub enum ResidualBuffers<B: Backend> {
    /// Nothing is added.
    None,
    /// Added to the output, of the same shape.
    Add(FloatTensor<B>),
}

impl Norm {
    /// Returns a backend's primitives as plain tensors.
    pub(crate) fn lift<B: Primitive>(buffers: NormBuffers<B>) -> Self {
        match buffers {
            NormBuffers::None => Self::None,
            NormBuffers::Rms { weight, epsilon } => Self::Rms {
                weight: B::float(weight),
                epsilon,
            },
            NormBuffers::Layer {
                weight,
                bias,
                epsilon,
            } => Self::Layer {
                weight: B::float(weight),
                bias: B::float(bias),
                epsilon,
            },
        }
    }

    fn lower(self) -> NormBuffers<Dispatch> {
        match self {
            Self::None => NormBuffers::None,
            Self::Rms { weight, epsilon } => NormBuffers::Rms {
                weight: weight.into_dispatch(),
                epsilon,
            },
            Self::Layer {
                weight,
                bias,
                epsilon,
            } => NormBuffers::Layer {
                weight: weight.into_dispatch(),
                bias: bias.into_dispatch(),
                epsilon,
            },
        }
    }
}

impl Projection {
    fn lift<B: Primitive>(buffers: LinearBuffers<B>) -> Self {
        let weight = match buffers.weight {
            WeightBuffers::Float(weight) => Weight::Float(B::float(weight)),
            WeightBuffers::Packed {
                blocks,
                format,
                dims,
            } => Weight::Packed(PackedWeight {
                blocks: B::int(blocks),
                format,
                dims,
            }),
        };
        Self {
            weight,
            bias: match buffers.bias {
                BiasBuffers::None => None,
                BiasBuffers::Add(bias) => Some(B::float(bias)),
            },
        }
    }

    fn lower(self) -> LinearBuffers<Dispatch> {
        let weight = match self.weight {
            Weight::Float(weight) => WeightBuffers::Float(weight.into_dispatch()),
            Weight::Packed(weight) => WeightBuffers::Packed {
                blocks: weight.blocks.into_dispatch(),
                format: weight.format,
                dims: weight.dims,
            },
        };
        LinearBuffers {
            weight,
            bias: match self.bias {
                None => BiasBuffers::None,
                Some(bias) => BiasBuffers::Add(bias.into_dispatch()),
            },
        }
    }
}

impl Projections {
    /// Returns a backend's primitives as plain tensors.
    pub(crate) fn lift<B: Primitive>(buffers: ProjectionBuffers<B>) -> Self {
        let lift = Projection::lift::<B>;
        match buffers {
            ProjectionBuffers::One(a) => Self::One(lift(a)),
            ProjectionBuffers::Two(a, b) => Self::Two(lift(a), lift(b)),
            ProjectionBuffers::Three(a, b, c) => Self::Three(lift(a), lift(b), lift(c)),
            ProjectionBuffers::Gated {
                gate,
                up,
                activation,
            } => Self::Gated {
                gate: lift(gate),
                up: lift(up),
                activation,
            },
            ProjectionBuffers::Activated { up, activation } => Self::Activated {
                up: lift(up),
                activation,
            },
        }
    }

    fn lower(self) -> ProjectionBuffers<Dispatch> {
        match self {
            Self::One(a) => ProjectionBuffers::One(a.lower()),
            Self::Two(a, b) => ProjectionBuffers::Two(a.lower(), b.lower()),
            Self::Three(a, b, c) => ProjectionBuffers::Three(a.lower(), b.lower(), c.lower()),
            Self::Gated {
                gate,
                up,
                activation,
            } => ProjectionBuffers::Gated {
                gate: gate.lower(),
                up: up.lower(),
                activation,
            },
            Self::Activated { up, activation } => ProjectionBuffers::Activated {
                up: up.lower(),
                activation,
            },
        }
    }
}
