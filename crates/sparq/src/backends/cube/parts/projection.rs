//! The common parts of the kernels of linear layers: their operands, which weight an output belongs
//! to, and its epilogue.

use cubecl::prelude::*;

use crate::ops::Activation;

/// The weights of a launch, or their biases. Those past the last are not read.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct UpToThree<T: CubePrimitive> {
    /// The first, or that of the gate.
    pub first: Box<[T]>,
    /// The second, or that of the layer beside the gate.
    pub second: Box<[T]>,
    /// The third.
    pub third: Box<[T]>,
}

/// The parameters of a norm, [in] each. Those that the norm does not have are not read.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct NormWeights<T: CubePrimitive> {
    /// The scale of each feature.
    pub scale: Box<[T]>,
    /// The shift of each feature.
    pub shift: Box<[T]>,
}

/// The sizes of a launch.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct LinearShape {
    /// Rows of x.
    pub rows: u32,
    /// Features of a row of x, in.
    pub features: u32,
    /// Elements between two rows of a weight.
    pub pitch: u32,
    /// Outputs of the first weight.
    pub first: u32,
    /// Outputs of the second weight.
    pub second: u32,
    /// Outputs of the third weight.
    pub third: u32,
    /// The norm adds it to the mean of squares or to the variance.
    pub epsilon: f32,
}

/// The norm before a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum NormKind {
    /// No norm.
    None,
    /// An RMS norm.
    Rms,
    /// A layer norm.
    Layer,
}

/// The settings of the weights and the outputs that a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ProjectionBlueprint {
    /// The norm of x.
    pub norm: NormKind,
    /// Weights, 1 to 3. Their outputs lie side by side.
    pub weights: usize,
    /// The first of two weights is the gate of the second.
    pub gated: bool,
    /// The activation function, of the gate if there is one.
    pub activation: Option<Activation>,
    /// Which weights have a bias.
    pub biases: [bool; 3],
    /// A residual is added.
    pub residual: bool,
}

impl ProjectionBlueprint {
    /// Parts of a row of the output: one for each weight, unless one gates the other.
    pub fn parts(&self) -> usize {
        match self.gated {
            true => 1,
            false => self.weights,
        }
    }
}

/// Outputs of one weight that a plane or a cube computes.
#[derive(CubeType)]
pub(crate) struct Tile {
    /// The number of the weight.
    pub weight: u32,
    /// The first output, counted in the weight.
    pub first: usize,
    /// The outputs of the weight.
    pub count: usize,
    /// The outputs of the weights before it.
    pub before: usize,
    /// There is such a tile.
    pub exists: bool,
}

/// Returns tile `index` of `size` outputs. A weight's last tile may be cut off by its end.
#[cube]
pub(crate) fn locate_tile(
    shape: &LinearShape,
    index: usize,
    #[comptime] size: usize,
    #[comptime] plan: ProjectionBlueprint,
) -> Tile {
    let mut weight = 0u32;
    let mut tile = index;
    let mut count = shape.first as usize;
    let mut before = 0usize;
    if comptime!(plan.parts() > 1) {
        let tiles = count.div_ceil(size);
        if tile >= tiles {
            weight = 1u32;
            tile -= tiles;
            before = count;
            count = shape.second as usize;
        }
    }
    if comptime!(plan.parts() > 2) {
        let tiles = count.div_ceil(size);
        if weight == 1u32 && tile >= tiles {
            weight = 2u32;
            tile -= tiles;
            before += count;
            count = shape.third as usize;
        }
    }
    Tile {
        weight,
        first: tile * size,
        count,
        before,
        exists: tile * size < count,
    }
}

/// Returns the outputs of a row.
#[cube]
pub(crate) fn row_width(shape: &LinearShape, #[comptime] plan: ProjectionBlueprint) -> usize {
    let mut width = shape.first;
    if comptime!(plan.parts() > 1) {
        width += shape.second;
    }
    if comptime!(plan.parts() > 2) {
        width += shape.third;
    }
    width as usize
}

/// The numbers that are added to an output: loaded before the product, so that nothing waits for
/// them.
#[derive(CubeType)]
pub(crate) struct Addends {
    /// The bias, or that of the gate.
    pub bias: f32,
    /// The bias of the layer beside the gate.
    pub up_bias: f32,
    /// The residual.
    pub residual: f32,
}

/// Loads the addends of output `output` of a tile's weight; `at` is its place in the result.
#[cube]
pub(crate) fn load_addends<E: Float>(
    biases: &UpToThree<E>,
    residual: &[E],
    tile: &Tile,
    output: usize,
    at: usize,
    #[comptime] plan: ProjectionBlueprint,
) -> Addends {
    let mut bias = 0.0f32;
    let mut up_bias = 0.0f32;
    let mut added = 0.0f32;
    if comptime!(plan.biases[0]) {
        if tile.weight == 0u32 {
            bias = f32::cast_from(biases.first[output]);
        }
    }
    if comptime!(plan.gated && plan.biases[1]) {
        up_bias = f32::cast_from(biases.second[output]);
    } else if comptime!(plan.biases[1]) {
        if tile.weight == 1u32 {
            bias = f32::cast_from(biases.second[output]);
        }
    }
    if comptime!(plan.biases[2]) {
        if tile.weight == 2u32 {
            bias = f32::cast_from(biases.third[output]);
        }
    }
    if comptime!(plan.residual) {
        added = f32::cast_from(residual[at]);
    }
    Addends {
        bias,
        up_bias,
        residual: added,
    }
}

/// Returns an output. `product` is that of the gate, and `up` that of the layer beside it, if there
/// is one.
#[cube]
pub(crate) fn finish(
    product: f32,
    up: f32,
    addends: &Addends,
    #[comptime] plan: ProjectionBlueprint,
) -> f32 {
    let mut y = activate(product + addends.bias, plan.activation);
    if comptime!(plan.gated) {
        y *= up + addends.up_bias;
    }
    y + addends.residual
}

/// Applies an activation function.
#[cube]
pub(crate) fn activate(x: f32, #[comptime] activation: Option<Activation>) -> f32 {
    if comptime!(activation == Some(Activation::Silu)) {
        x / (1.0f32 + (-x).exp())
    } else if comptime!(activation == Some(Activation::Gelu)) {
        // A vector of one, whose method has a name of its own.
        let scaled = Vector::<f32, Const<1>>::new(x * std::f32::consts::FRAC_1_SQRT_2);
        0.5f32 * x * (1.0f32 + Vector::erf(scaled).extract(0usize))
    } else if comptime!(activation == Some(Activation::GeluTanh)) {
        let inner = x + 0.044715f32 * x * x * x;
        // tanh by a sigmoid: some devices compute tanh of a large number as NaN.
        x / (1.0f32 + (inner * comptime!(-1.595_769f32)).exp())
    } else if comptime!(activation == Some(Activation::Relu)) {
        max(x, 0.0f32)
    } else {
        x
    }
}
