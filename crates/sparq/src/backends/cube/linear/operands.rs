//! The operands of a linear layer.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::backends::cube::kernels::linear_wgmma::{BLOCK, RUN, WeightMapsLaunch};
use crate::backends::cube::launch::tensor_map;
use crate::backends::cube::parts::projection::{
    LinearShapeLaunch, NormKind, NormWeightsLaunch, ProjectionBlueprint, UpToThreeLaunch,
};
use crate::backends::cube::parts::warpgroup::WIDTH;
use crate::ops::{
    Activation, BiasBuffers, LinearBuffers, NormBuffers, ProjectionBuffers, ResidualBuffers,
    WeightBuffers,
};

type Buffers = CubeBackend;

/// Returns whether the kernels cover a type.
pub(in super::super) fn known(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// The layers of an operation, and how their outputs are put together.
pub(in super::super) struct Layers<'a> {
    pub layers: Vec<&'a LinearBuffers<Buffers>>,
    pub gated: bool,
    pub activation: Option<Activation>,
}

impl<'a> Layers<'a> {
    pub fn new(projections: &'a ProjectionBuffers<Buffers>) -> Self {
        let (layers, gated, activation) = match projections {
            ProjectionBuffers::One(a) => (vec![a], false, None),
            ProjectionBuffers::Two(a, b) => (vec![a, b], false, None),
            ProjectionBuffers::Three(a, b, c) => (vec![a, b, c], false, None),
            ProjectionBuffers::Gated {
                gate,
                up,
                activation,
            } => (vec![gate, up], true, Some(*activation)),
            ProjectionBuffers::Activated { up, activation } => (vec![up], false, Some(*activation)),
        };
        Self {
            layers,
            gated,
            activation,
        }
    }

    /// Returns whether any weight is packed.
    pub fn are_packed(&self) -> bool {
        let is_packed =
            |layer: &&LinearBuffers<Buffers>| matches!(layer.weight, WeightBuffers::Packed { .. });
        self.layers.iter().any(is_packed)
    }

    pub fn biases(&self) -> Vec<Option<CubeTensor>> {
        let bias = |layer: &&LinearBuffers<Buffers>| match &layer.bias {
            BiasBuffers::None => None,
            BiasBuffers::Add(bias) => Some(into_contiguous(bias.clone())),
        };
        self.layers.iter().map(bias).collect()
    }

    pub fn blueprint(&self, norm: NormKind, residual: bool) -> ProjectionBlueprint {
        let mut biases = [false; 3];
        for (flag, layer) in biases.iter_mut().zip(&self.layers) {
            *flag = matches!(layer.bias, BiasBuffers::Add(_));
        }
        ProjectionBlueprint {
            norm,
            weights: self.layers.len(),
            gated: self.gated,
            activation: self.activation,
            biases,
            residual,
        }
    }
}

/// Returns the residual, contiguous.
pub(in super::super) fn residual_of(residual: &ResidualBuffers<Buffers>) -> Option<CubeTensor> {
    match residual {
        ResidualBuffers::None => None,
        ResidualBuffers::Add(residual) => Some(into_contiguous(residual.clone())),
    }
}

/// A norm and its parameters.
pub(in super::super) struct Normed {
    pub kind: NormKind,
    pub scale: Option<CubeTensor>,
    pub shift: Option<CubeTensor>,
    pub epsilon: f32,
}

impl Normed {
    pub fn new(norm: &NormBuffers<Buffers>) -> Self {
        let contiguous = |tensor: &CubeTensor| Some(into_contiguous(tensor.clone()));
        match norm {
            NormBuffers::None => Self::none(),
            NormBuffers::Rms { weight, epsilon } => Self {
                kind: NormKind::Rms,
                scale: contiguous(weight),
                shift: None,
                epsilon: *epsilon as f32,
            },
            NormBuffers::Layer {
                weight,
                bias,
                epsilon,
            } => Self {
                kind: NormKind::Layer,
                scale: contiguous(weight),
                shift: contiguous(bias),
                epsilon: *epsilon as f32,
            },
        }
    }

    pub fn none() -> Self {
        Self {
            kind: NormKind::None,
            scale: None,
            shift: None,
            epsilon: 0.0,
        }
    }

    pub fn tensors(&self) -> impl Iterator<Item = &CubeTensor> {
        self.scale.iter().chain(&self.shift)
    }

    /// Returns the argument; `unused` stands in for parameters that the norm does not have.
    pub fn arg<T: CubePrimitive>(&self, unused: &CubeTensor) -> NormWeightsLaunch<T> {
        let arg = |tensor: &Option<CubeTensor>| {
            let tensor = tensor.as_ref().unwrap_or(unused);
            tensor.clone().into_buffer_arg()
        };
        NormWeightsLaunch::new(arg(&self.scale), arg(&self.shift))
    }
}

/// The operands, contiguous and of one type.
pub(super) struct Operands {
    /// [rows, in].
    pub x: CubeTensor,
    pub norm: Normed,
    /// [out, in] each.
    pub weights: Vec<CubeTensor>,
    /// [out] each.
    pub biases: Vec<Option<CubeTensor>>,
    /// [rows, outputs].
    pub residual: Option<CubeTensor>,
    pub projection: ProjectionBlueprint,
}

impl Operands {
    pub fn new(
        x: &CubeTensor,
        norm: &NormBuffers<Buffers>,
        projections: &ProjectionBuffers<Buffers>,
        residual: &ResidualBuffers<Buffers>,
    ) -> Option<Self> {
        let layers = Layers::new(projections);
        let weight = |layer: &&LinearBuffers<Buffers>| match &layer.weight {
            WeightBuffers::Float(weight) => Some(weight.clone()),
            WeightBuffers::Packed { .. } => None,
        };
        let weights: Vec<_> = layers.layers.iter().map(weight).collect::<Option<_>>()?;
        let biases = layers.biases();
        let residual = residual_of(residual);
        let norm = Normed::new(norm);
        let projection = layers.blueprint(norm.kind, residual.is_some());
        let operands = Self {
            x: into_contiguous(x.clone()),
            norm,
            weights,
            biases,
            residual,
            projection,
        };
        operands.are_covered().then_some(operands)
    }

    fn are_covered(&self) -> bool {
        let dtype = self.x.dtype;
        let others = self.weights.iter().chain(self.biases.iter().flatten());
        let mut all = others.chain(self.norm.tensors()).chain(&self.residual);
        known(dtype)
            && self.rows() > 0
            && all.all(|tensor| tensor.dtype == dtype)
            && self.weights.iter().all(|weight| self.is_readable(weight))
    }

    /// Returns whether the kernels can read a weight: its rows lie in order and equally far apart
    /// in all weights. Burn leaves gaps between rows whose size in bytes is no multiple of 512.
    fn is_readable(&self, weight: &CubeTensor) -> bool {
        let [pitch, step] = [0, 1].map(|dim| weight.meta.strides()[dim]);
        step == 1 && pitch == self.pitch() && pitch >= self.features() && is_aligned(weight)
    }

    /// Returns whether the rows before and the residual begin at multiples of 16 bytes.
    pub fn are_aligned(&self) -> bool {
        is_aligned(&self.x) && self.residual.iter().all(is_aligned)
    }

    /// Elements between two rows of a weight.
    pub fn pitch(&self) -> usize {
        self.weights[0].meta.strides()[0]
    }

    /// The largest power of two that divides the sizes in elements of a row and of a pitch.
    pub fn divisor(&self) -> usize {
        1 << (self.features() | self.pitch()).trailing_zeros()
    }

    pub fn rows(&self) -> usize {
        self.x.shape()[0]
    }

    pub fn features(&self) -> usize {
        self.x.shape()[1]
    }

    /// The outputs of each weight; 0 past the last.
    pub fn outputs(&self) -> [usize; 3] {
        std::array::from_fn(|i| self.weights.get(i).map_or(0, |weight| weight.shape()[0]))
    }

    /// The outputs of a row.
    pub fn width(&self) -> usize {
        self.outputs()[..self.projection.parts()].iter().sum()
    }

    /// Returns the tiles of `size` outputs of all weights.
    pub fn tiles(&self, size: usize) -> usize {
        let parts = &self.outputs()[..self.projection.parts()];
        parts.iter().map(|outputs| outputs.div_ceil(size)).sum()
    }

    pub fn shape(&self) -> LinearShapeLaunch {
        let [first, second, third] = self.outputs().map(|outputs| outputs as u32);
        let (rows, features) = (self.rows() as u32, self.features() as u32);
        let pitch = self.pitch() as u32;
        LinearShapeLaunch::new(
            rows,
            features,
            pitch,
            first,
            second,
            third,
            self.norm.epsilon,
        )
    }

    /// Returns the arguments of up to three buffers; x stands in for those that are not read.
    pub fn three<'a, T: CubePrimitive>(
        &'a self,
        tensors: impl IntoIterator<Item = Option<&'a CubeTensor>>,
    ) -> UpToThreeLaunch<T> {
        let mut tensors = tensors.into_iter();
        let mut next = || {
            let tensor = tensors.next().flatten().unwrap_or(&self.x);
            tensor.clone().into_buffer_arg()
        };
        UpToThreeLaunch::new(next(), next(), next())
    }

    pub fn weight_args<T: CubePrimitive>(&self) -> UpToThreeLaunch<T> {
        self.three(self.weights.iter().map(Some))
    }

    /// Returns x for bulk copies of `rows` rows.
    pub fn x_map(&self, rows: usize) -> TensorMapArg<Tiled> {
        let sizes = [self.rows(), self.features()];
        tensor_map(&self.x, sizes, [self.features(), 1], [rows, WIDTH])
    }

    /// Returns the weights for bulk copies of `outputs` rows; see [`WeightMaps`](
    /// crate::backends::cube::kernels::linear_wgmma::WeightMaps).
    pub fn weight_maps<E: CubePrimitive>(&self, outputs: usize) -> WeightMapsLaunch<E> {
        let (pitch, features) = (self.pitch(), self.features());
        let map = |i: usize| {
            let weight = self.weights.get(i).unwrap_or(&self.weights[0]);
            let sizes = [weight.shape()[0] / BLOCK, 4, 4, 2, features];
            let strides = [BLOCK * pitch, 2 * pitch, RUN * pitch, pitch, 1];
            tensor_map(weight, sizes, strides, [outputs / BLOCK, 4, 4, 2, WIDTH])
        };
        WeightMapsLaunch::new(map(0), map(1), map(2))
    }

    pub fn bias_args<T: CubePrimitive>(&self) -> UpToThreeLaunch<T> {
        self.three(self.biases.iter().map(Option::as_ref))
    }

    pub fn residual_arg(&self) -> BufferArg {
        let residual = self.residual.as_ref().unwrap_or(&self.x);
        residual.clone().into_buffer_arg()
    }

    /// Returns the address type that every buffer of a launch fits in.
    pub fn address_type(&self) -> AddressType {
        let of_weights = self.weights.iter().map(CubeTensor::required_address_type);
        of_weights.fold(self.x.required_address_type(), AddressType::max)
    }
}

/// Returns whether a tensor begins at a multiple of 16 bytes.
fn is_aligned(tensor: &CubeTensor) -> bool {
    let offset = tensor.handle.offset_start;
    offset.is_none_or(|offset| offset.is_multiple_of(16))
}
