//! Linear layers with a norm before them and an epilogue after them: their operands, and which
//! kernels run.
//!
//! Up to [`FEW_ROWS`] rows are one launch: [`linear_mma`](super::kernels::linear_mma) with matrix
//! units and [`linear_rows`](super::kernels::linear_rows) without. More rows are a norm, burn's
//! [products](super::products), and an epilogue.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::tensor::FloatTensor;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::features::MmaConfig;
use cubecl::prelude::*;

use super::kernels::linear_mma::{
    LinearMmaBlueprint, PER_VECTOR, ROWS as MMA_ROWS, linear_mma_kernel,
};
use super::kernels::linear_rows::{LinearRowsBlueprint, linear_rows_kernel};
use super::kernels::linear_tiles::{LinearTilesBlueprint, linear_tiles_kernel};
use super::kernels::rows::{NormRowsBlueprint, finish_rows_kernel, norm_rows_kernel};
use super::launch::{Launcher, grid};
use super::parts::mma;
use super::parts::projection::{
    LinearShapeLaunch, NormKind, NormWeightsLaunch, ProjectionBlueprint, UpToThreeLaunch,
};
use super::products::product;
use crate::ops::{
    BiasBuffers, LinearBuffers, NormBuffers, ProjectionBuffers, ResidualBuffers, WeightBuffers,
};

/// The most rows that are one launch.
const FEW_ROWS: usize = 32;
/// The most rows for which units multiply on a device with matrix units.
const FEW_ROWS_OF_UNITS: usize = 4;
/// The most rows that a plane multiplies at once without matrix units.
const ROWS_AT_ONCE: usize = 8;
/// Bytes of a vector load.
const VECTOR_BYTES: usize = 16;
/// Vectors of weights that a unit loads before it uses the first.
const VECTORS_AT_ONCE: usize = 8;
/// Units of a cube without matrix units.
const UNITS: u32 = 256;
/// Vectors of one round of a unit's loop if they are all of its row.
const VECTORS_OF_ROW: usize = 16;
/// Planes for each processor that are enough to read two rows of weights each: with a norm, whose
/// work two rows share, and without. On an H200, one row each without a norm took 33 us instead of
/// 36 for 4096 outputs of 14336 features, and with a norm 22 us instead of 17 for 6144 of 4096.
const PLANES_FOR_TWO: [usize; 2] = [12, 24];
/// The most bytes of normed rows of x in shared memory. On an H200, one row of 4096 features took
/// 58 us instead of 60 for a gate and its partner of 14336 outputs.
const STAGED_BYTES: usize = 32 << 10;
/// Planes of a cube with matrix units.
const PLANES: usize = 8;
/// Vectors of a row that a lane loads at once with matrix units: for a launch of fewer than two
/// cubes for each processor, which have its registers to themselves, and for more cubes. On an
/// H200, with loads that stay together, 16 rows of 4096 features took 12 us instead of 14 for 4096
/// outputs, and 66 us instead of 69 for a gate and its partner of 14336.
const VECTORS_OF_LANE: [usize; 2] = [4, 2];
/// Units of the cubes that norm a row.
const NORM_UNITS: u32 = 256;
/// Stages of a tile of many rows in shared memory. Two cubes of this many share a processor of an
/// H100: while one waits at a barrier, the other multiplies.
const MOST_STAGES: usize = 3;
/// Units of the cubes of an epilogue.
const FINISH_UNITS: u32 = 256;

type Buffers = CubeBackend;

/// See [`SparqBackend::decode_linear`](crate::ops::SparqBackend::decode_linear). `None` if the
/// kernels do not cover the types or the layouts.
pub(super) fn decode_linear(
    x: &FloatTensor<Buffers>,
    norm: &NormBuffers<Buffers>,
    projections: &ProjectionBuffers<Buffers>,
    residual: &ResidualBuffers<Buffers>,
) -> Option<CubeTensor> {
    let operands = Operands::new(x, norm, projections, residual)?;
    let launch = LinearLaunch {
        launcher: &Launcher::new(x),
        operands: &operands,
    };
    Some(launch.run())
}

/// See [`SparqBackend::normalize`](crate::ops::SparqBackend::normalize). `None` if the kernels do
/// not cover the types.
pub(super) fn normalize(
    x: &FloatTensor<Buffers>,
    norm: &NormBuffers<Buffers>,
) -> Option<CubeTensor> {
    let norm = Normed::new(norm);
    if norm.kind == NormKind::None {
        return Some(x.clone());
    }
    let mut tensors = norm.tensors();
    (known(x.dtype) && x.shape()[0] > 0 && tensors.all(|tensor| tensor.dtype == x.dtype))
        .then(|| normalize_rows(&Launcher::new(x), &into_contiguous(x.clone()), &norm))
}

fn known(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// A norm and its parameters.
struct Normed {
    kind: NormKind,
    scale: Option<CubeTensor>,
    shift: Option<CubeTensor>,
    epsilon: f32,
}

impl Normed {
    fn new(norm: &NormBuffers<Buffers>) -> Self {
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

    fn none() -> Self {
        Self {
            kind: NormKind::None,
            scale: None,
            shift: None,
            epsilon: 0.0,
        }
    }

    fn tensors(&self) -> impl Iterator<Item = &CubeTensor> {
        self.scale.iter().chain(&self.shift)
    }

    /// Returns the argument; `unused` stands in for parameters that the norm does not have.
    fn arg<T: CubePrimitive>(&self, unused: &CubeTensor) -> NormWeightsLaunch<T> {
        let arg = |tensor: &Option<CubeTensor>| {
            let tensor = tensor.as_ref().unwrap_or(unused);
            tensor.clone().into_buffer_arg()
        };
        NormWeightsLaunch::new(arg(&self.scale), arg(&self.shift))
    }
}

/// The operands, contiguous and of one type.
struct Operands {
    /// [rows, in].
    x: CubeTensor,
    norm: Normed,
    /// [out, in] each.
    weights: Vec<CubeTensor>,
    /// [out] each.
    biases: Vec<Option<CubeTensor>>,
    /// [rows, outputs].
    residual: Option<CubeTensor>,
    projection: ProjectionBlueprint,
}

impl Operands {
    fn new(
        x: &CubeTensor,
        norm: &NormBuffers<Buffers>,
        projections: &ProjectionBuffers<Buffers>,
        residual: &ResidualBuffers<Buffers>,
    ) -> Option<Self> {
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
        let weight = |layer: &&LinearBuffers<Buffers>| match &layer.weight {
            WeightBuffers::Float(weight) => weight.clone(),
        };
        let bias = |layer: &&LinearBuffers<Buffers>| match &layer.bias {
            BiasBuffers::None => None,
            BiasBuffers::Add(bias) => Some(into_contiguous(bias.clone())),
        };
        let weights: Vec<_> = layers.iter().map(weight).collect();
        let biases: Vec<_> = layers.iter().map(bias).collect();
        let residual = match residual {
            ResidualBuffers::None => None,
            ResidualBuffers::Add(residual) => Some(into_contiguous(residual.clone())),
        };
        let norm = Normed::new(norm);
        let mut with_bias = [false; 3];
        for (flag, bias) in with_bias.iter_mut().zip(&biases) {
            *flag = bias.is_some();
        }
        let projection = ProjectionBlueprint {
            norm: norm.kind,
            weights: weights.len(),
            gated,
            activation,
            biases: with_bias,
            residual: residual.is_some(),
        };
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
        let aligned = weight
            .handle
            .offset_start
            .is_none_or(|offset| offset.is_multiple_of(16));
        step == 1 && pitch == self.pitch() && pitch >= self.features() && aligned
    }

    /// Elements between two rows of a weight.
    fn pitch(&self) -> usize {
        self.weights[0].meta.strides()[0]
    }

    /// The largest power of two that divides the sizes in elements of a row and of a pitch.
    fn divisor(&self) -> usize {
        1 << (self.features() | self.pitch()).trailing_zeros()
    }

    fn rows(&self) -> usize {
        self.x.shape()[0]
    }

    fn features(&self) -> usize {
        self.x.shape()[1]
    }

    /// The outputs of each weight; 0 past the last.
    fn outputs(&self) -> [usize; 3] {
        std::array::from_fn(|i| self.weights.get(i).map_or(0, |weight| weight.shape()[0]))
    }

    /// The outputs of a row.
    fn width(&self) -> usize {
        self.outputs()[..self.projection.parts()].iter().sum()
    }

    /// Returns the tiles of `size` outputs of all weights.
    fn tiles(&self, size: usize) -> usize {
        let parts = &self.outputs()[..self.projection.parts()];
        parts.iter().map(|outputs| outputs.div_ceil(size)).sum()
    }

    fn shape(&self) -> LinearShapeLaunch {
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
    fn three<'a, T: CubePrimitive>(
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

    fn weight_args<T: CubePrimitive>(&self) -> UpToThreeLaunch<T> {
        self.three(self.weights.iter().map(Some))
    }

    fn bias_args<T: CubePrimitive>(&self) -> UpToThreeLaunch<T> {
        self.three(self.biases.iter().map(Option::as_ref))
    }

    fn residual_arg(&self) -> BufferArg {
        let residual = self.residual.as_ref().unwrap_or(&self.x);
        residual.clone().into_buffer_arg()
    }

    /// Returns the address type that every buffer of a launch fits in.
    fn address_type(&self) -> AddressType {
        let of_weights = self.weights.iter().map(CubeTensor::required_address_type);
        of_weights.fold(self.x.required_address_type(), AddressType::max)
    }
}

/// Decides how rows are multiplied.
struct Planner<'a> {
    launcher: &'a Launcher,
    operands: &'a Operands,
}

impl Planner<'_> {
    /// Returns whether matrix units multiply.
    fn uses_mma(&self) -> bool {
        let (launcher, x) = (self.launcher, &self.operands.x);
        let element = dtype_to_storage_type(x.dtype);
        let product = MmaConfig {
            a_type: element,
            b_type: element,
            ..mma::PRODUCT
        };
        self.operands.rows() > FEW_ROWS_OF_UNITS
            && x.dtype != DType::F32
            && self.operands.divisor().is_multiple_of(PER_VECTOR)
            && launcher.info.mma
            && launcher.client.features().matmul.mma.contains(&product)
    }

    /// Returns the plan and its elements of a vector.
    fn rows(&self) -> (LinearRowsBlueprint, usize) {
        let (info, operands) = (&self.launcher.info, self.operands);
        let (rows, features) = (operands.rows(), operands.features());
        let projection = operands.projection;
        let element = operands.x.dtype.size();
        let vector = (VECTOR_BYTES / element).min(operands.divisor());
        let rows = rows.next_power_of_two().min(ROWS_AT_ONCE);
        let planes = PLANES_FOR_TWO[usize::from(projection.norm == NormKind::None)];
        let two = projection.gated || operands.tiles(2) >= info.processors * planes;
        let outputs = if two { 2 } else { 1 };
        let units = match info.plane {
            1 => info.units(32),
            _ => info.units(UNITS),
        };
        let largest = self.launcher.client.properties().hardware.plane_size_max;
        let lanes = if info.plane == 1 { 1 } else { largest };
        let whole_row = features / vector <= VECTORS_OF_ROW * lanes as usize;
        // Many rows take registers, and hide latency with their arithmetic.
        // CUDA, with few enough rows that the time is that of reading the weights.
        let few = info.async_copies && vector * element == VECTOR_BYTES && rows <= 2;
        let staged = match projection.norm {
            NormKind::None => 0,
            _ if few && 4 * rows * features <= STAGED_BYTES => features / vector,
            _ => 0,
        };
        let fenced = few && (staged > 0 || projection.norm == NormKind::None);
        let unroll = match rows {
            1 | 2 if whole_row && !two && !fenced => VECTORS_OF_ROW,
            1 | 2 => VECTORS_AT_ONCE / outputs,
            _ => VECTORS_AT_ONCE / 2 / outputs,
        };
        let at_once = lanes as usize * unroll;
        let plan = LinearRowsBlueprint {
            projection,
            rows,
            outputs,
            unroll,
            ragged: lanes != info.plane || !(features / vector).is_multiple_of(at_once),
            fenced,
            staged,
            tiles: (units / info.plane) as usize,
            plane: info.plane,
        };
        (plan, vector)
    }

    /// Plans for matrix units.
    fn mma(&self) -> LinearMmaBlueprint {
        let (info, operands) = (&self.launcher.info, self.operands);
        let vectors = operands.features() / PER_VECTOR;
        let projection = operands.projection;
        let plan = |weight_tiles: usize| LinearMmaBlueprint {
            projection,
            weight_tiles,
            row_tiles: operands.rows().div_ceil(MMA_ROWS),
            unroll: 1,
            ragged: false,
            planes: 1,
            fenced: info.async_copies,
        };
        let cubes = |plan: &LinearMmaBlueprint| operands.tiles(plan.tile());
        // More rows of weights read less of x, unless the last cubes leave many processors idle.
        let is_balanced = |plan: &LinearMmaBlueprint| {
            let cubes = cubes(plan);
            10 * cubes >= 9 * cubes.next_multiple_of(info.processors)
        };
        let mut plan = match plan(2) {
            large if projection.gated || is_balanced(&large) => large,
            large if cubes(&large) < info.processors => plan(1),
            large => match plan(1) {
                small if is_balanced(&small) => small,
                _ => large,
            },
        };
        let few = cubes(&plan) < 2 * info.processors && plan.weight_tiles * plan.row_tiles <= 4;
        plan.unroll = VECTORS_OF_LANE[usize::from(!few)];
        let most = vectors.div_ceil(plan.vectors_at_once());
        plan.planes = PLANES.min(most.next_power_of_two());
        while plan.planes > 1 && plan.shared_bytes() > info.max_shared_bytes {
            plan.planes /= 2;
        }
        plan.ragged = !vectors.is_multiple_of(plan.vectors_at_once());
        plan
    }

    /// Plans for many rows with matrix units; `None` if the device or the sizes do not suit them.
    fn tiles(&self) -> Option<LinearTilesBlueprint> {
        let (info, operands) = (&self.launcher.info, self.operands);
        let even = operands
            .weights
            .iter()
            .all(|weight| weight.shape()[0] % 2 == 0);
        let covered = info.multiplies(operands.x.dtype)
            && operands.divisor().is_multiple_of(PER_VECTOR)
            && even;
        let cubes = |plan: &LinearTilesBlueprint| {
            operands.rows().div_ceil(plan.rows()) * operands.tiles(plan.outputs())
        };
        let mut plan = LinearTilesBlueprint {
            projection: operands.projection,
            row_planes: 2,
            weight_planes: 2,
            stages: MOST_STAGES,
            whole: false,
        };
        if cubes(&plan) < info.processors {
            plan.row_planes = 1;
        }
        while plan.stages > 2 && plan.shared_bytes() > info.max_shared_bytes {
            plan.stages -= 1;
        }
        let parts = &operands.outputs()[..operands.projection.parts()];
        plan.whole = operands.rows() >= plan.rows()
            && parts.iter().all(|&outputs| outputs >= plan.outputs())
            && operands.features().is_multiple_of(plan.features());
        (covered && plan.shared_bytes() <= info.max_shared_bytes).then_some(plan)
    }
}

/// The launches of an operation.
struct LinearLaunch<'a> {
    launcher: &'a Launcher,
    operands: &'a Operands,
}

impl LinearLaunch<'_> {
    fn run(&self) -> CubeTensor {
        let (launcher, operands) = (self.launcher, self.operands);
        let planner = Planner { launcher, operands };
        let few = operands.rows() <= FEW_ROWS;
        let mma = few && planner.uses_mma();
        if few && !mma {
            return self.few_rows(&planner);
        }
        if operands.norm.kind != NormKind::None {
            let operands = &self.normed();
            return LinearLaunch { launcher, operands }.run();
        }
        match (mma, planner.tiles()) {
            (true, _) => self.few_rows_by_mma(&planner.mma()),
            (false, Some(plan)) => self.many_rows_by_mma(&plan),
            (false, None) => self.many_rows_by_burn(),
        }
    }

    /// Launches [`linear_rows_kernel`].
    fn few_rows(&self, planner: &Planner<'_>) -> CubeTensor {
        let (launcher, operands) = (self.launcher, self.operands);
        let (plan, vector) = planner.rows();
        let out = launcher.empty([operands.rows(), operands.width()], operands.x.dtype);
        let cubes = operands.tiles(plan.tile()).div_ceil(plan.tiles);
        let blocks = operands.rows().div_ceil(plan.rows);
        unsafe {
            linear_rows_kernel::launch_unchecked(
                &launcher.client,
                grid(cubes * blocks),
                CubeDim::new_1d(plan.tiles as u32 * plan.plane),
                operands.address_type(),
                vector,
                operands.x.clone().into_buffer_arg(),
                operands.norm.arg(&operands.x),
                operands.weight_args(),
                operands.bias_args(),
                operands.residual_arg(),
                out.clone().into_buffer_arg(),
                operands.shape(),
                plan,
                dtype_to_storage_type(out.dtype),
            );
        }
        out
    }

    /// Launches [`linear_mma_kernel`].
    fn few_rows_by_mma(&self, plan: &LinearMmaBlueprint) -> CubeTensor {
        let (launcher, operands) = (self.launcher, self.operands);
        let out = launcher.empty([operands.rows(), operands.width()], operands.x.dtype);
        unsafe {
            linear_mma_kernel::launch_unchecked(
                &launcher.client,
                grid(operands.tiles(plan.tile())),
                CubeDim::new_1d(plan.planes as u32 * mma::PLANE),
                operands.address_type(),
                operands.x.clone().into_buffer_arg(),
                operands.weight_args(),
                operands.bias_args(),
                operands.residual_arg(),
                out.clone().into_buffer_arg(),
                operands.shape(),
                *plan,
                dtype_to_storage_type(out.dtype),
            );
        }
        out
    }

    /// Returns the operands with a normed x, in place of the norm.
    fn normed(&self) -> Operands {
        let operands = self.operands;
        Operands {
            x: normalize_rows(self.launcher, &operands.x, &operands.norm),
            norm: Normed::none(),
            weights: operands.weights.clone(),
            biases: operands.biases.clone(),
            residual: operands.residual.clone(),
            projection: ProjectionBlueprint {
                norm: NormKind::None,
                ..operands.projection
            },
        }
    }

    /// Launches [`linear_tiles_kernel`].
    fn many_rows_by_mma(&self, plan: &LinearTilesBlueprint) -> CubeTensor {
        let (launcher, operands) = (self.launcher, self.operands);
        let out = launcher.empty([operands.rows(), operands.width()], operands.x.dtype);
        let tiles = operands.tiles(plan.outputs());
        unsafe {
            linear_tiles_kernel::launch_unchecked(
                &launcher.client,
                grid(tiles * operands.rows().div_ceil(plan.rows())),
                CubeDim::new_1d(plan.units() as u32),
                operands.address_type().max(out.required_address_type()),
                PER_VECTOR,
                operands.x.clone().into_buffer_arg(),
                operands.weight_args(),
                operands.bias_args(),
                operands.residual_arg(),
                out.clone().into_buffer_arg(),
                operands.shape(),
                tiles as u32,
                *plan,
                dtype_to_storage_type(out.dtype),
            );
        }
        out
    }

    /// Multiplies by burn's product.
    fn many_rows_by_burn(&self) -> CubeTensor {
        let (launcher, operands) = (self.launcher, self.operands);
        let x = &operands.x;
        let weights = operands.weights.iter();
        let mut products: Vec<_> = weights.map(|weight| product(launcher, x, weight)).collect();
        let projection = operands.projection;
        let plain = projection.weights == 1
            && projection.activation.is_none()
            && !projection.biases[0]
            && !projection.residual;
        if plain {
            return products.remove(0);
        }
        let (rows, width) = (operands.rows(), operands.width());
        let out = launcher.empty([rows, width], x.dtype);
        let units = launcher.info.units(FINISH_UNITS);
        unsafe {
            finish_rows_kernel::launch_unchecked(
                &launcher.client,
                grid((rows * width).div_ceil(units as usize)),
                CubeDim::new_1d(units),
                operands.address_type().max(out.required_address_type()),
                operands.three(products.iter().map(Some)),
                operands.bias_args(),
                operands.residual_arg(),
                out.clone().into_buffer_arg(),
                operands.shape(),
                projection,
                dtype_to_storage_type(out.dtype),
            );
        }
        out
    }
}

/// Launches [`norm_rows_kernel`] on contiguous rows.
fn normalize_rows(launcher: &Launcher, x: &CubeTensor, norm: &Normed) -> CubeTensor {
    let [rows, features] = x.shape().dims::<2>();
    let out = launcher.empty([rows, features], x.dtype);
    let vector = (VECTOR_BYTES / x.dtype.size()).min(1 << features.trailing_zeros());
    let units = launcher.info.units(NORM_UNITS);
    unsafe {
        norm_rows_kernel::launch_unchecked(
            &launcher.client,
            grid(rows),
            CubeDim::new_1d(units),
            x.required_address_type(),
            vector,
            x.clone().into_buffer_arg(),
            norm.arg(x),
            out.clone().into_buffer_arg(),
            rows as u32,
            features as u32,
            norm.epsilon,
            NormRowsBlueprint {
                norm: norm.kind,
                units,
                plane: launcher.info.plane,
            },
            dtype_to_storage_type(x.dtype),
        );
    }
    out
}
