//! Products of packed weights with few rows: their operands, plans and launches.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::super::kernels::linear_blocks::{
    COLUMNS, CubesOfPartsLaunch, LinearBlocksBlueprint, PackedRowsLaunch, linear_blocks_kernel,
};
use super::super::kernels::linear_blocks_plain::{
    LinearBlocksPlainBlueprint, MOST_ROWS, TEAM, linear_blocks_plain_kernel,
};
use super::super::kernels::pack_rows::pack_rows_kernel;
use super::super::launch::{Launcher, grid};
use super::super::linear::{Buffers, Layers, Normed, known, normalize_rows, residual_of};
use super::super::parts::blocks::{
    BlockLayout, FEATURES, GROUP, LANES, MEMBERS, ROWS, RUN, tiles_of_row,
};
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
/// The most planes of a cube. Each has at most 128 registers.
const MOST_PLANES: usize = 16;
/// Tiles of each processor from which on it waits little for the first and for the last.
const MANY_ROUNDS: usize = 16;
/// The most tiles of a plane of which only one is on its way. On an H200, 4096 outputs of 4096
/// features in Q4_K, two tiles of each plane, took 5.1 us instead of 6.2 with both at once.
const FEW_TILES: usize = 4;
/// The most bytes of tiles on their way to a cube, unless a tile of each plane has more.
const BYTES_ON_THE_WAY: usize = 80 * 1024;
/// The most bytes of shared memory for sums.
const BYTES_OF_SUMS: usize = 32 * 1024;
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
    if !(launcher.info.mma && launcher.info.async_copies) {
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
            Some((of, halves)) if of.serves(&plan.rows) && plan.packs == 0 => halves,
            _ if plan.packs == 0 => pack_rows(&launcher, &packed, plan.rows),
            _ => [launcher.unused(DType::U32), launcher.unused(DType::F32)],
        };
        let cubes = cubes_of_parts(&launcher, &packed, run, &plan);
        unsafe {
            linear_blocks_kernel::launch_unchecked(
                &launcher.client,
                grid(cubes.iter().sum()),
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
                CubesOfPartsLaunch::new(cubes[0] as u32, cubes[1] as u32, cubes[2] as u32),
                plan,
                dtype_to_storage_type(out.dtype),
            );
        }
        if plan.packs == 0 {
            rows = Some((plan.rows, halves));
        }
    }
    out
}

/// Launches [`pack_rows_kernel`].
fn pack_rows(launcher: &Launcher, packed: &Packed, plan: HalfRowsBlueprint) -> [CubeTensor; 2] {
    let (rows, features) = (packed.rows(), packed.features());
    let parts = parts_of_row(features);
    let units = match parts <= 8 * PACK_UNITS as usize {
        true => PACK_UNITS,
        false => launcher.info.units(4 * PACK_UNITS),
    };
    let plan = HalfRowsBlueprint {
        units,
        parts: parts.div_ceil(units as usize),
        ragged: !parts.is_multiple_of(units as usize) || !features.is_multiple_of(FEATURES),
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

/// Returns the parts of a row of x that units pack.
fn parts_of_row(features: usize) -> usize {
    tiles_of_row(features) * FEATURES / GROUP * MEMBERS
}

/// Returns the cubes of each part of a row: one for each processor, and about as many items for
/// each of them.
fn cubes_of_parts(
    launcher: &Launcher,
    packed: &Packed,
    run: (usize, usize),
    plan: &LinearBlocksBlueprint,
) -> [usize; 3] {
    let blocks = packed.rows().div_ceil(plan.rows_of_cube());
    let items: [usize; 3] = std::array::from_fn(|part| match (run.0..run.1).contains(&part) {
        true => packed.tiles((part, part + 1), plan.tile()) * blocks,
        false => 0,
    });
    let cubes = |rounds: usize| items.map(|items| items.div_ceil(rounds));
    let most = launcher.info.processors.max(3);
    let mut rounds = items.iter().sum::<usize>().div_ceil(most).max(1);
    while cubes(rounds).iter().sum::<usize>() > most {
        rounds += 1;
    }
    cubes(rounds)
}

/// Plans the launch with matrix units of the parts `run`.
fn plan(launcher: &Launcher, packed: &Packed, run: (usize, usize)) -> LinearBlocksBlueprint {
    let steps = tiles_of_row(packed.features());
    let halves = if packed.x.dtype == DType::F32 { 2 } else { 1 };
    let (rows, columns) = (packed.rows(), packed.rows() * halves);
    let vectors = vectors_of_rows(packed, halves);
    let column_tiles = columns.div_ceil(COLUMNS).min(MOST_COLUMN_TILES);
    let processors = launcher.info.processors;
    let gated = packed.projection.gated;
    let most = launcher.info.max_shared_bytes;
    let stays = 16 * vectors <= most / 3 * 2;
    let many = packed.tiles(run, ROWS) >= MANY_ROUNDS * processors;
    // Two tiles read less of x. They take more registers, which the planes of a smaller cube have.
    let two = column_tiles > 1 && (gated || many || !stays);
    let most_planes = if two || column_tiles > 2 {
        MOST_PLANES / 2
    } else {
        MOST_PLANES
    };
    let rows_for = |units: usize| {
        let parts = parts_of_row(packed.features()).div_ceil(units);
        HalfRowsBlueprint {
            norm: packed.norm.kind,
            halves,
            layout: BlockLayout::new(packed.formats[run.0]),
            units: units as u32,
            parts,
            ragged: parts * units != parts_of_row(packed.features())
                || !packed.features().is_multiple_of(FEATURES),
        }
    };
    let of_units = rows_for(planes_for(steps, most_planes) * LANES);
    // A unit holds its parts of all rows.
    let few = rows <= ROWS_TO_PACK && rows * of_units.parts <= 8;
    let packs = few && stays && 16 * vectors <= BYTES_TO_PACK;
    let mut plan = LinearBlocksBlueprint {
        projection: packed.projection,
        rows: of_units,
        packs: if packs { rows } else { 0 },
        shared: if stays { vectors } else { 0 },
        weight_tiles: if gated || two { 2 } else { 1 },
        beside: if two { 2 } else { 1 },
        slots: 1,
        bulk: launcher.info.wgmma,
        held: 1,
        column_tiles,
        single: columns == 1,
        whole: columns <= column_tiles * COLUMNS,
    };
    while plan.planes() > 1 && plan.shared_bytes() > most {
        plan.rows = rows_for(plan.planes() / 2 * LANES);
    }
    let blocks = packed.rows().div_ceil(plan.rows_of_cube());
    let items = packed.tiles(run, plan.tile()) * blocks;
    let rounds = items.div_ceil(processors).next_power_of_two();
    let left = most - plan.shared_bytes().min(most);
    let of_sums = left.min(BYTES_OF_SUMS) / plan.bytes_of_item();
    plan.held = (1 + of_sums).min(rounds);
    let left = most - plan.shared_bytes().min(most);
    if plan.bulk {
        let fit = 1 + left / (plan.bytes_of_slots() + 8 * plan.planes());
        let tiles = rounds * steps.div_ceil(plan.planes()) * plan.weight_tiles;
        let wanted = match tiles > FEW_TILES {
            true => BYTES_ON_THE_WAY / plan.bytes_of_slots(),
            false => 1,
        };
        plan.slots = fit.min(wanted.max(1));
    }
    plan
}

/// Returns the planes of a cube that split the tiles of a row: as many as possible of those with
/// the least waiting for each other.
fn planes_for(steps: usize, most: usize) -> usize {
    let most = most.min(steps);
    let waste = |planes: &usize| steps.next_multiple_of(*planes) - steps;
    let planes = most.div_ceil(2)..=most;
    planes.rev().min_by_key(waste).unwrap_or(1)
}

/// Launches [`linear_blocks_plain_kernel`].
fn multiply_by_units(launcher: &Launcher, packed: &Packed) -> CubeTensor {
    let out = launcher.empty([packed.rows(), packed.width()], packed.x.dtype);
    for run in packed.runs() {
        let mut plan = LinearBlocksPlainBlueprint {
            projection: packed.projection,
            layout: BlockLayout::new(packed.formats[run.0]),
            rows: packed.rows().next_power_of_two().min(MOST_ROWS),
            teams: (launcher.info.units(2 * TEAM as u32) as usize / TEAM).max(1),
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
