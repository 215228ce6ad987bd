//! Products of packed weights with few rows: their operands, plans and launches.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::super::kernels::linear_blocks::{
    COLUMNS, LinearBlocksBlueprint, PackedRowsLaunch, linear_blocks_kernel,
};
use super::super::kernels::linear_blocks_plain::{
    LinearBlocksPlainBlueprint, MOST_ROWS, TEAM, linear_blocks_plain_kernel,
};
use super::super::kernels::pack_rows::pack_rows_kernel;
use super::super::launch::{Launcher, grid};
use super::super::linear::{Buffers, Layers, Normed, known, normalize_rows, residual_of};
use super::super::parts::blocks::{BlockLayout, LANES, MEMBERS, ROWS, RUN, tiles_of_row};
use super::super::parts::half_rows::{HalfRowsBlueprint, VECTORS};
use super::super::parts::projection::{
    LinearShapeLaunch, NormKind, ProjectionBlueprint, UpToThreeLaunch,
};
use crate::ops::{BlockFormat, NormBuffers, ProjectionBuffers, ResidualBuffers, WeightBuffers};

/// The most rows of x that each cube packs for itself.
const ROWS_TO_PACK: usize = 4;
/// The most bytes of shared memory for them.
const BYTES_TO_PACK: usize = 64 * 1024;
/// The most columns of a cube, in products: more take too many registers.
const MOST_COLUMN_TILES: usize = 4;
/// Units of the cubes that pack a row.
const PACK_UNITS: u32 = 256;

/// The operands of an operation whose weights are all packed.
pub(super) struct Packed {
    x: CubeTensor,
    norm: Normed,
    /// The tiles of each weight.
    weights: Vec<CubeTensor>,
    formats: Vec<BlockFormat>,
    /// The outputs of each weight.
    outputs: Vec<usize>,
    biases: Vec<Option<CubeTensor>>,
    residual: Option<CubeTensor>,
    projection: ProjectionBlueprint,
}

impl Packed {
    /// Returns `None` if the kernels do not cover the types, and `Some(None)` if a weight is not
    /// packed.
    pub fn new(
        x: &CubeTensor,
        norm: &NormBuffers<Buffers>,
        projections: &ProjectionBuffers<Buffers>,
        residual: &ResidualBuffers<Buffers>,
    ) -> Option<Option<Self>> {
        let layers = Layers::new(projections);
        let (mut weights, mut formats, mut outputs) = (Vec::new(), Vec::new(), Vec::new());
        for layer in &layers.layers {
            let WeightBuffers::Packed {
                blocks,
                format,
                dims,
            } = &layer.weight
            else {
                return Some(None);
            };
            weights.push(blocks.clone());
            formats.push(*format);
            outputs.push(dims[0]);
        }
        let residual = residual_of(residual);
        let norm = Normed::new(norm);
        let packed = Self {
            x: into_contiguous(x.clone()),
            projection: layers.blueprint(norm.kind, residual.is_some()),
            norm,
            weights,
            formats,
            outputs,
            biases: layers.biases(),
            residual,
        };
        packed.are_covered().then_some(Some(packed))
    }

    fn are_covered(&self) -> bool {
        let dtype = self.x.dtype;
        let biases = self.biases.iter().flatten();
        let mut others = biases.chain(self.norm.tensors()).chain(&self.residual);
        known(dtype) && self.rows() > 0 && others.all(|tensor| tensor.dtype == dtype)
    }

    pub fn formats_differ(&self) -> bool {
        self.formats.iter().any(|format| *format != self.formats[0])
    }

    fn rows(&self) -> usize {
        self.x.shape()[0]
    }

    fn features(&self) -> usize {
        self.x.shape()[1]
    }

    /// The outputs of each part of a row.
    fn parts(&self) -> &[usize] {
        &self.outputs[..self.projection.parts()]
    }

    fn width(&self) -> usize {
        self.parts().iter().sum()
    }

    /// Returns the tiles of `size` outputs of the parts `from..to`.
    fn tiles(&self, (from, to): (usize, usize), size: usize) -> usize {
        self.parts()[from..to]
            .iter()
            .map(|outputs| outputs.div_ceil(size))
            .sum()
    }

    /// Returns the neighbouring parts of each format: a launch each.
    fn runs(&self) -> Vec<(usize, usize)> {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for part in 0..self.projection.parts() {
            match runs.last_mut() {
                Some((from, to)) if self.formats[*from] == self.formats[part] => *to = part + 1,
                _ => runs.push((part, part + 1)),
            }
        }
        runs
    }

    fn shape(&self) -> LinearShapeLaunch {
        let outputs = |i: usize| self.outputs.get(i).map_or(0, |&outputs| outputs as u32);
        LinearShapeLaunch::new(
            self.rows() as u32,
            self.features() as u32,
            tiles_of_row(self.features()) as u32,
            outputs(0),
            outputs(1),
            outputs(2),
            self.norm.epsilon,
        )
    }

    /// Returns the arguments of up to three buffers; `unused` stands in for those not read.
    fn three<'a, T: CubePrimitive>(
        tensors: impl IntoIterator<Item = Option<&'a CubeTensor>>,
        unused: &'a CubeTensor,
    ) -> UpToThreeLaunch<T> {
        let mut tensors = tensors.into_iter();
        let mut next = || {
            let tensor = tensors.next().flatten().unwrap_or(unused);
            tensor.clone().into_buffer_arg()
        };
        UpToThreeLaunch::new(next(), next(), next())
    }

    fn weight_args<T: CubePrimitive>(&self) -> UpToThreeLaunch<T> {
        Self::three(self.weights.iter().map(Some), &self.weights[0])
    }

    fn bias_args<T: CubePrimitive>(&self) -> UpToThreeLaunch<T> {
        Self::three(self.biases.iter().map(Option::as_ref), &self.x)
    }

    fn residual_arg(&self) -> BufferArg {
        let residual = self.residual.as_ref().unwrap_or(&self.x);
        residual.clone().into_buffer_arg()
    }

    fn address_type(&self) -> AddressType {
        let of_weights = self.weights.iter().map(CubeTensor::required_address_type);
        of_weights.fold(self.x.required_address_type(), AddressType::max)
    }

    /// Norms x in a launch of its own.
    fn norm_apart(&mut self, launcher: &Launcher) {
        if self.norm.kind != NormKind::None {
            self.x = normalize_rows(launcher, &self.x, &self.norm);
            self.norm = Normed::none();
            self.projection.norm = NormKind::None;
        }
    }
}

/// Multiplies a few rows.
pub(super) fn multiply(mut packed: Packed) -> CubeTensor {
    let launcher = Launcher::new(&packed.x);
    if !launcher.info.mma {
        packed.norm_apart(&launcher);
        return multiply_by_units(&launcher, &packed);
    }
    if packed.norm.kind == NormKind::Layer {
        packed.norm_apart(&launcher);
    }
    let out = launcher.empty([packed.rows(), packed.width()], packed.x.dtype);
    let mut rows: Option<(HalfRowsBlueprint, [CubeTensor; 2])> = None;
    for run in packed.runs() {
        let plan = plan(&launcher, &packed, run);
        // Weights of another format may take other rows.
        let halves = match rows.take() {
            Some((of, halves)) if of.serves(&plan.rows) && plan.packed == 0 => halves,
            _ if plan.packed == 0 => pack_rows(&launcher, &packed, plan.rows),
            _ => [launcher.unused(DType::U32), launcher.unused(DType::F32)],
        };
        let first_tile = packed.tiles((0, run.0), plan.tile());
        let blocks = packed.rows().div_ceil(plan.rows_of_cube());
        unsafe {
            linear_blocks_kernel::launch_unchecked(
                &launcher.client,
                grid(packed.tiles(run, plan.tile()) * blocks),
                CubeDim::new_1d(plan.rows.units),
                packed.address_type(),
                RUN,
                packed.x.clone().into_buffer_arg(),
                packed.norm.arg(&packed.x),
                PackedRowsLaunch::new(
                    halves[0].clone().into_buffer_arg(),
                    halves[1].clone().into_buffer_arg(),
                ),
                packed.weight_args(),
                packed.bias_args(),
                packed.residual_arg(),
                out.clone().into_buffer_arg(),
                packed.shape(),
                first_tile as u32,
                plan,
                dtype_to_storage_type(out.dtype),
            );
        }
        if plan.packed == 0 {
            rows = Some((plan.rows, halves));
        }
    }
    out
}

/// Launches [`pack_rows_kernel`].
fn pack_rows(launcher: &Launcher, packed: &Packed, plan: HalfRowsBlueprint) -> [CubeTensor; 2] {
    let (rows, features) = (packed.rows(), packed.features());
    let plan = HalfRowsBlueprint {
        units: PACK_UNITS,
        ..plan
    };
    let vectors = vectors_of_rows(packed, plan.halves);
    let halves = launcher.empty([vectors, 4], DType::U32);
    let unscales = launcher.empty([rows], DType::F32);
    unsafe {
        pack_rows_kernel::launch_unchecked(
            &launcher.client,
            grid(rows),
            CubeDim::new_1d(plan.units),
            packed.x.required_address_type(),
            RUN,
            packed.x.clone().into_buffer_arg(),
            packed.norm.arg(&packed.x),
            halves.clone().into_buffer_arg(),
            unscales.clone().into_buffer_arg(),
            rows as u32,
            features as u32,
            packed.norm.epsilon,
            plan,
            dtype_to_storage_type(packed.x.dtype),
        );
    }
    [halves, unscales]
}

/// Returns the vectors of all columns of x.
fn vectors_of_rows(packed: &Packed, halves: usize) -> usize {
    tiles_of_row(packed.features()) * VECTORS * packed.rows() * halves * MEMBERS
}

/// Plans the launch with matrix units of the parts `run`.
fn plan(launcher: &Launcher, packed: &Packed, run: (usize, usize)) -> LinearBlocksBlueprint {
    let processors = launcher.info.processors;
    let steps = tiles_of_row(packed.features());
    let halves = if packed.x.dtype == DType::F32 { 2 } else { 1 };
    let columns = packed.rows() * halves;
    let gated = packed.projection.gated;
    let vectors = vectors_of_rows(packed, halves);
    let packs = packed.rows() <= ROWS_TO_PACK && 16 * vectors <= BYTES_TO_PACK;
    let column_tiles = columns.div_ceil(COLUMNS).min(MOST_COLUMN_TILES);
    let mut weight_tiles = if gated { 2 } else { 1 };
    // More rows of weights read less of x.
    if !gated && column_tiles > 1 && packed.tiles(run, 2 * ROWS) >= processors * 9 / 10 {
        weight_tiles = 2;
    }
    let tile = if gated {
        weight_tiles / 2 * ROWS
    } else {
        weight_tiles * ROWS
    };
    let few = packed.tiles(run, tile) < 2 * processors;
    let unroll = if weight_tiles == 1 && column_tiles <= 2 {
        2
    } else {
        1
    };
    let planes = if few { 16 } else { 8 };
    let most = steps.div_ceil(unroll).next_power_of_two();
    let mut plan = LinearBlocksBlueprint {
        projection: packed.projection,
        rows: HalfRowsBlueprint {
            norm: packed.norm.kind,
            halves,
            layout: BlockLayout::new(packed.formats[run.0]),
            units: (planes.min(most) * LANES) as u32,
        },
        packed: if packs { vectors } else { 0 },
        weight_tiles,
        column_tiles,
        single: columns == 1,
        unroll,
    };
    while plan.planes() > 1 && plan.shared_bytes() > launcher.info.max_shared_bytes {
        plan.rows.units /= 2;
    }
    plan
}

/// Launches [`linear_blocks_plain_kernel`].
fn multiply_by_units(launcher: &Launcher, packed: &Packed) -> CubeTensor {
    let out = launcher.empty([packed.rows(), packed.width()], packed.x.dtype);
    for run in packed.runs() {
        let mut plan = LinearBlocksPlainBlueprint {
            projection: packed.projection,
            layout: BlockLayout::new(packed.formats[run.0]),
            rows: packed.rows().next_power_of_two().min(MOST_ROWS),
            teams: launcher.info.units(2 * TEAM as u32) as usize / TEAM,
        };
        while plan.teams > 1 && plan.shared_bytes() > launcher.info.max_shared_bytes {
            plan.teams /= 2;
        }
        let first_tile = packed.tiles((0, run.0), ROWS);
        let blocks = packed.rows().div_ceil(plan.rows);
        unsafe {
            linear_blocks_plain_kernel::launch_unchecked(
                &launcher.client,
                grid(packed.tiles(run, ROWS) * blocks),
                CubeDim::new_1d((plan.teams * TEAM) as u32),
                packed.address_type(),
                RUN,
                packed.x.clone().into_buffer_arg(),
                packed.weight_args(),
                packed.bias_args(),
                packed.residual_arg(),
                out.clone().into_buffer_arg(),
                packed.shape(),
                first_tile as u32,
                plan,
                dtype_to_storage_type(out.dtype),
            );
        }
    }
    out
}
