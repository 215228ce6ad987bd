//! Linear layers with a norm before them and an epilogue after them: which kernels run.
//!
//! Up to [`FEW_ROWS`] rows are one launch: [`linear_mma`](super::kernels::linear_mma) with matrix
//! units and [`linear_rows`](super::kernels::linear_rows) without. More rows are a norm and then
//! one launch with matrix units, [`linear_wgmma`](super::kernels::linear_wgmma) on Hopper and
//! [`linear_tiles`](super::kernels::linear_tiles) elsewhere. Without matrix units, and for layouts
//! that these do not read, they are burn's [products](super::products) and an epilogue.

mod operands;

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
use super::kernels::linear_wgmma::{
    BLOCK, CUBE_UNITS, LinearWgmmaBlueprint, TILE_ROWS, linear_wgmma_kernel,
};
use super::kernels::rows::{NormRowsBlueprint, finish_rows_kernel, norm_rows_kernel};
use super::launch::{Launcher, grid};
use super::packed;
use super::parts::mma;
use super::parts::projection::{NormKind, ProjectionBlueprint};
use super::parts::warpgroup::ptx_name;
use super::products::product;
use crate::ops::{NormBuffers, ProjectionBuffers, ResidualBuffers};
use operands::Operands;
pub(super) use operands::{Layers, Normed, known, residual_of};

/// The most rows that are one launch.
pub(super) const FEW_ROWS: usize = 32;
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
/// Rows of weights of the widest tile of `wgmma`.
const WIDE_TILE: usize = 256;
/// Units of the cubes of an epilogue.
const FINISH_UNITS: u32 = 256;

pub(super) type Buffers = CubeBackend;

/// See [`SparqBackend::decode_linear`](crate::ops::SparqBackend::decode_linear). `None` if the
/// kernels do not cover the types or the layouts.
pub(super) fn decode_linear(
    x: &FloatTensor<Buffers>,
    norm: &NormBuffers<Buffers>,
    projections: &ProjectionBuffers<Buffers>,
    residual: &ResidualBuffers<Buffers>,
) -> Option<CubeTensor> {
    if Layers::new(projections).are_packed() {
        return packed::decode_linear(x, norm, projections, residual);
    }
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

    /// Plans for many rows with `wgmma`; `None` if the device or the sizes do not suit it.
    fn wgmma(&self) -> Option<LinearWgmmaBlueprint> {
        let (info, operands) = (&self.launcher.info, self.operands);
        let element = ptx_name(operands.x.dtype)?;
        let whole = |weight: &CubeTensor| weight.shape()[0].is_multiple_of(BLOCK);
        let covered = info.wgmma
            && operands.divisor().is_multiple_of(PER_VECTOR)
            && operands.are_aligned()
            && operands.weights.iter().all(whole);
        let plan = |(weights, most_stages)| {
            let mut plan = LinearWgmmaBlueprint {
                projection: operands.projection,
                weights,
                stages: most_stages,
                element,
            };
            while plan.shared_bytes() > info.max_shared_bytes && plan.stages > 0 {
                plan.stages -= 1;
            }
            plan
        };
        // The time of the processor with the most tiles. Wide tiles read less of x.
        let cost = |plan: &LinearWgmmaBlueprint| {
            let tiles = operands.tiles(plan.outputs()) * operands.rows().div_ceil(TILE_ROWS);
            let rows = tiles.div_ceil(info.processors) * plan.weights;
            if plan.weights < WIDE_TILE {
                5 * rows
            } else {
                4 * rows
            }
        };
        let plans = [(WIDE_TILE, 4), (WIDE_TILE / 2, 6)].map(plan);
        let best = plans.into_iter().min_by_key(cost)?;
        (covered && best.stages > 1).then_some(best)
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
        if let (false, Some(plan)) = (mma, planner.wgmma()) {
            return self.many_rows_by_wgmma(&plan);
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

    /// Launches [`linear_wgmma_kernel`].
    fn many_rows_by_wgmma(&self, plan: &LinearWgmmaBlueprint) -> CubeTensor {
        let (launcher, operands) = (self.launcher, self.operands);
        let out = launcher.empty([operands.rows(), operands.width()], operands.x.dtype);
        let tiles = operands.tiles(plan.outputs());
        let cubes = tiles * operands.rows().div_ceil(TILE_ROWS);
        unsafe {
            linear_wgmma_kernel::launch_unchecked(
                &launcher.client,
                grid(cubes.min(launcher.info.processors)),
                CubeDim::new_1d(CUBE_UNITS as u32),
                operands.address_type().max(out.required_address_type()),
                plan.sums(),
                operands.x_map(TILE_ROWS),
                operands.weight_maps(plan.outputs()),
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
pub(super) fn normalize_rows(launcher: &Launcher, x: &CubeTensor, norm: &Normed) -> CubeTensor {
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
