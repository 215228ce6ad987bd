//! From the buffers of the operation to slices.

use burn::backend::Flex;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, TensorData};

use super::{Blocks, Combine, Layer, Matrix, Norm, Problem};
use crate::backends::flex::cast;
use crate::backends::flex::element::Element;
use crate::backends::flex::simd::Level;
use crate::ops::{
    BiasBuffers, LinearBuffers, NormBuffers, ProjectionBuffers, ResidualBuffers, WeightBuffers,
};

/// Returns the output [rows, out], or `None` if the kernels do not support the buffers: weights
/// that are not [out, in] in memory, other types than x's, and sizes that are 0 or do not fit.
pub(in super::super) fn decode_linear<T: Element + burn::tensor::Element>(
    level: Level,
    x: &FloatTensor<Flex>,
    norm: &NormBuffers<Flex>,
    projections: &ProjectionBuffers<Flex>,
    residual: &ResidualBuffers<Flex>,
) -> Option<FloatTensor<Flex>> {
    let (x, inputs) = (x.to_contiguous(), x.layout().shape()[1]);
    let parameters = Parameters::new(norm);
    let (linears, combine) = match projections {
        ProjectionBuffers::One(a) => (vec![a], Combine::Concatenate),
        ProjectionBuffers::Two(a, b) => (vec![a, b], Combine::Concatenate),
        ProjectionBuffers::Three(a, b, c) => (vec![a, b, c], Combine::Concatenate),
        ProjectionBuffers::Gated {
            gate,
            up,
            activation,
        } => (vec![gate, up], Combine::Gated(*activation)),
        ProjectionBuffers::Activated { up, activation } => {
            (vec![up], Combine::Activated(*activation))
        }
    };
    let biases: Vec<_> = linears.iter().map(|linear| bias(linear)).collect();
    let layers: Vec<_> = std::iter::zip(&linears, &biases)
        .map(|(linear, bias)| layer::<T>(linear, bias.as_ref(), inputs))
        .collect::<Option<_>>()?;
    let residual = match residual {
        ResidualBuffers::None => None,
        ResidualBuffers::Add(residual) => Some(residual.to_contiguous()),
    };
    let residual = match &residual {
        None => None,
        Some(residual) => Some(T::slice(residual)?),
    };
    let problem = Problem {
        level,
        x: T::slice(&x)?,
        inputs,
        norm: parameters.norm(inputs)?,
        layers: &layers,
        combine,
        residual,
    };
    let shape = problem.shape()?;
    Some(FloatTensor::<Flex>::from_data(TensorData::new(
        problem.run(),
        shape,
    )))
}

/// Returns the normalized x [rows, in], or `None` if the kernels do not support the buffers.
pub(in super::super) fn normalize<T: Element + burn::tensor::Element>(
    level: Level,
    x: &FloatTensor<Flex>,
    norm: &NormBuffers<Flex>,
) -> Option<FloatTensor<Flex>> {
    let shape = x.layout().shape().clone();
    let (x, inputs) = (x.to_contiguous(), shape[1]);
    let x = T::slice(&x)?;
    if x.is_empty() {
        return None;
    }
    let output = Parameters::new(norm)
        .norm(inputs)?
        .normalize(level, x, inputs);
    Some(FloatTensor::<Flex>::from_data(TensorData::new(
        output, shape,
    )))
}

fn layer<'a, T: Element>(
    linear: &'a LinearBuffers<Flex>,
    bias: Option<&'a FloatTensor<Flex>>,
    inputs: usize,
) -> Option<Layer<'a, T>> {
    let (weight, outputs) = match &linear.weight {
        WeightBuffers::Float(weight) => {
            let [outputs, width] = weight.layout().shape().dims();
            let weight = T::slice(weight).filter(|_| width == inputs)?;
            (Matrix::Floats(weight), outputs)
        }
        WeightBuffers::Packed {
            blocks,
            format,
            dims: [outputs, width],
        } => {
            let bytes = format.matrix_bytes([*outputs, *width]).ok()?;
            let blocks = blocks.bytes();
            let fits = *width == inputs && inputs > 0 && blocks.len() == bytes;
            let blocks = fits.then_some(Blocks {
                format: *format,
                bytes: blocks,
            });
            (Matrix::Blocks(blocks?), *outputs)
        }
    };
    let bias = match bias {
        None => None,
        Some(bias) => Some(f32::slice(bias).filter(|bias| bias.len() == outputs)?),
    };
    Some(Layer { weight, bias })
}

fn bias(linear: &LinearBuffers<Flex>) -> Option<FloatTensor<Flex>> {
    match &linear.bias {
        BiasBuffers::None => None,
        BiasBuffers::Add(bias) => Some(widened(bias)),
    }
}

/// The parameters of a norm in fp32.
enum Parameters {
    None,
    Rms(FloatTensor<Flex>, f32),
    Layer(FloatTensor<Flex>, FloatTensor<Flex>, f32),
}

impl Parameters {
    fn new(norm: &NormBuffers<Flex>) -> Self {
        match norm {
            NormBuffers::None => Self::None,
            NormBuffers::Rms { weight, epsilon } => Self::Rms(widened(weight), *epsilon as f32),
            NormBuffers::Layer {
                weight,
                bias,
                epsilon,
            } => Self::Layer(widened(weight), widened(bias), *epsilon as f32),
        }
    }

    fn norm(&self, inputs: usize) -> Option<Norm<'_>> {
        let slice = |tensor| f32::slice(tensor).filter(|slice| slice.len() == inputs);
        Some(match self {
            Self::None => Norm::None,
            Self::Rms(weight, epsilon) => Norm::Rms {
                weight: slice(weight)?,
                epsilon: *epsilon,
            },
            Self::Layer(weight, bias, epsilon) => Norm::Layer {
                weight: slice(weight)?,
                bias: slice(bias)?,
                epsilon: *epsilon,
            },
        })
    }
}

/// Returns a vector in fp32 and contiguous.
fn widened(vector: &FloatTensor<Flex>) -> FloatTensor<Flex> {
    cast(vector.clone(), DType::F32)
}
