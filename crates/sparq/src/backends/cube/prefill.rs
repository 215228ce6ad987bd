//! The blueprint and the launch of causal attention of many queries.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::blueprint::{DeviceInfo, Sizes};
use super::kernels::dense::{MOST_SPLITS, MergeBlueprint};
use super::kernels::prefill::{PrefillBlueprint, prefill_kernel};
use super::kernels::prefill_plain::{PlainPrefillBlueprint, plain_prefill_kernel};
use super::kernels::prefill_wgmma::{
    CUBE_UNITS, PrefillWgmmaBlueprint, TILE_ROWS, prefill_wgmma_kernel,
};
use super::launch::{Launcher, grid, tensor_map};
use super::parts::fragments::{DEPTH, VECTOR};
use super::parts::online_softmax::KvRowsLaunch;
use super::parts::query_rows::CausalShapeLaunch;
use super::parts::warpgroup::{WIDTH, ptx_name};

/// Bytes of K and V that the tiles in flight may share: about half of a large L2 cache.
const SHARED_BYTES: usize = 24 << 20;
/// Cubes of a processor that run at the same time, and those of few rows if shared memory allows.
const CUBES_AT_ONCE: usize = 2;
const SMALL_CUBES_AT_ONCE: usize = 6;
/// The largest number of rows of a KV head that count as few: two blocks of matrix units.
const FEW_ROWS: usize = 32;
/// Tiles of K and V that a split is worth.
const TILES_OF_SPLIT: usize = 4;
/// The largest head dimension for two blocks of rows in a plane: their outputs fill the registers.
const TWO_BLOCKS: usize = 128;
/// Row groups and keys of a unit without matrix units, in the order in which they are tried.
const PLAIN_TILES: [(usize, usize); 6] = [(8, 4), (4, 4), (4, 2), (2, 2), (2, 1), (1, 1)];

/// Causal attention of the last T positions of every sequence.
pub(super) struct PrefillProblem {
    pub sizes: Sizes,
    /// The type of the cache.
    pub dtype: DType,
    /// T.
    pub len: usize,
    /// An upper bound on the length of the longest sequence.
    pub bound: usize,
    pub window: Option<usize>,
}

impl PrefillProblem {
    /// Rows of a KV head.
    fn rows(&self) -> usize {
        self.len * self.sizes.group
    }

    /// An upper bound on the positions that a tile of rows attends to.
    fn positions(&self, rows: usize) -> usize {
        let tokens = rows.div_ceil(self.sizes.group) + 1;
        let window = self.window.unwrap_or(self.bound);
        window.saturating_add(tokens).min(self.bound)
    }
}

/// The kernel that computes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PrefillKernel {
    Wgmma(PrefillWgmmaBlueprint),
    Matrix(PrefillBlueprint),
    Plain(PlainPrefillBlueprint),
}

/// The launches of causal attention.
pub(super) struct PrefillStep {
    pub kernel: PrefillKernel,
    /// Tiles of rows of a KV head.
    pub tiles: usize,
    /// Splits of the positions of a tile.
    pub splits: usize,
    /// KV heads whose tiles run side by side.
    pub heads_at_once: usize,
    /// How the splits are merged, unless there is only one.
    pub merge: MergeBlueprint,
}

impl PrefillStep {
    /// Plans the launches; `None` if a kernel needs more shared memory than a cube has.
    pub fn new(problem: &PrefillProblem, device: &DeviceInfo) -> Option<Self> {
        let wgmma = with_wgmma(problem, device).map(PrefillKernel::Wgmma);
        let matrix = || with_matrix_units(problem, device).map(PrefillKernel::Matrix);
        let plain = || without_matrix_units(problem, device).map(PrefillKernel::Plain);
        let mut kernel = wgmma.or_else(matrix).or_else(plain)?;
        let (rows, keys) = kernel.tile();
        let sizes = &problem.sizes;
        let tiles = problem.rows().div_ceil(rows);
        let slots = device.processors * kernel.cubes_at_once(device);
        let splits = match kernel {
            PrefillKernel::Wgmma(_) => 1,
            _ => (slots / (tiles * sizes.batch_heads()))
                .min(problem.positions(rows) / (keys * TILES_OF_SPLIT))
                .clamp(1, MOST_SPLITS),
        };
        kernel.set_single(splits == 1);
        let bytes = 2 * problem.bound * sizes.head_dim * problem.dtype.size();
        Some(Self {
            kernel,
            tiles,
            splits,
            heads_at_once: (SHARED_BYTES / bytes.max(1)).clamp(1, sizes.batch_heads()),
            merge: device.merge(sizes),
        })
    }
}

/// Returns the blueprint for `wgmma`, if the device has it, heads are whole rows of its tiles, and
/// there is a tile for each processor.
fn with_wgmma(problem: &PrefillProblem, device: &DeviceInfo) -> Option<PrefillWgmmaBlueprint> {
    let sizes = &problem.sizes;
    let plan = PrefillWgmmaBlueprint {
        group: sizes.group,
        head_dim: sizes.head_dim,
        keys: if sizes.head_dim > TWO_BLOCKS { 64 } else { 128 },
        element: ptx_name(problem.dtype)?,
    };
    let cubes = sizes.batch_heads() * problem.rows().div_ceil(TILE_ROWS);
    // Vectors of outputs have a power of two of elements.
    let fits = [WIDTH, 2 * WIDTH, 4 * WIDTH].contains(&sizes.head_dim);
    // A tile takes the same time with one row as with all.
    let fills = 2 * problem.rows() >= TILE_ROWS;
    let suits = device.wgmma && fits && fills && cubes >= device.processors;
    (suits && plan.shared_bytes() <= device.max_shared_bytes).then_some(plan)
}

/// Returns the blueprint for matrix units, if the device has them, rows are whole blocks and
/// outputs fit in registers.
fn with_matrix_units(problem: &PrefillProblem, device: &DeviceInfo) -> Option<PrefillBlueprint> {
    let sizes = &problem.sizes;
    let fits = sizes.head_dim.is_multiple_of(DEPTH) && sizes.head_dim <= 2 * TWO_BLOCKS;
    if !fits || !device.multiplies(problem.dtype) {
        return None;
    }
    let large = PrefillBlueprint {
        group: sizes.group,
        head_dim: sizes.head_dim,
        planes: 4,
        blocks: 2,
        // With more, NVRTC needs 13 s for large heads, and registers spill.
        keys: if sizes.head_dim > 64 { 32 } else { 64 },
        resident: false,
        single: true,
    };
    // Small tiles if the large ones leave processors without work.
    let cubes = sizes.batch_heads() * problem.rows().div_ceil(large.rows());
    let small = PrefillBlueprint {
        blocks: 1,
        keys: 64,
        resident: true,
        ..large
    };
    // Few rows are limited by the loads of K and V: small cubes keep more of them in flight.
    let few = PrefillBlueprint {
        planes: problem.rows().div_ceil(small.plane_rows()),
        keys: 32,
        resident: sizes.head_dim <= TWO_BLOCKS,
        ..small
    };
    let plan = match sizes.head_dim > TWO_BLOCKS {
        _ if problem.rows() <= FEW_ROWS => few,
        true => PrefillBlueprint {
            keys: 32,
            resident: false,
            ..small
        },
        false if cubes < CUBES_AT_ONCE * device.processors => small,
        false => large,
    };
    (plan.shared_bytes() <= device.max_shared_bytes).then_some(plan)
}

fn without_matrix_units(
    problem: &PrefillProblem,
    device: &DeviceInfo,
) -> Option<PlainPrefillBlueprint> {
    let sizes = &problem.sizes;
    let lanes = if sizes.head_dim <= 128 { 8 } else { 16 };
    let mut plans = PLAIN_TILES.map(|(row_groups, keys)| PlainPrefillBlueprint {
        group: sizes.group,
        head_dim: sizes.head_dim,
        row_groups,
        lanes,
        keys,
        single: true,
    });
    let fits = |plan: &&mut PlainPrefillBlueprint| {
        plan.units() <= device.max_units as usize && plan.shared_bytes() <= device.max_shared_bytes
    };
    plans.iter_mut().find(fits).copied()
}

impl PrefillKernel {
    /// Returns the rows and the positions of a tile.
    fn tile(&self) -> (usize, usize) {
        match self {
            Self::Wgmma(plan) => (TILE_ROWS, plan.keys),
            Self::Matrix(plan) => (plan.rows(), plan.keys),
            Self::Plain(plan) => (plan.rows(), plan.tile_keys()),
        }
    }

    /// Returns the cubes of a processor that run at the same time.
    fn cubes_at_once(&self, device: &DeviceInfo) -> usize {
        match self {
            Self::Matrix(plan) if plan.rows() <= FEW_ROWS => {
                let fit = device.max_shared_bytes / plan.shared_bytes();
                fit.clamp(CUBES_AT_ONCE, SMALL_CUBES_AT_ONCE)
            }
            _ => CUBES_AT_ONCE,
        }
    }

    fn set_single(&mut self, value: bool) {
        match self {
            Self::Wgmma(_) => (),
            Self::Matrix(plan) => plan.single = value,
            Self::Plain(plan) => plan.single = value,
        }
    }
}

/// The buffers of causal attention: contiguous K and V [B, H_kv, S_max, d].
pub(super) struct PrefillBuffers<'a> {
    /// [B, H, T, d], with any strides.
    pub q: &'a CubeTensor,
    pub k: &'a CubeTensor,
    pub v: &'a CubeTensor,
    /// The spans after the append, [3, B].
    pub spans: &'a CubeTensor,
}

impl PrefillBuffers<'_> {
    fn rows<E: Float, N: Size>(&self) -> KvRowsLaunch<E, N> {
        let (k, v) = (self.k.clone(), self.v.clone());
        KvRowsLaunch::new(k.into_buffer_arg(), v.into_buffer_arg())
    }

    /// Returns K or V for bulk copies of `keys` positions, [B H_kv, d / 64, S_max, 64].
    fn map(rows: &CubeTensor, keys: usize) -> TensorMapArg<Tiled> {
        let [batch, heads, capacity, d] = rows.shape().dims::<4>();
        let blocks = d / WIDTH;
        let sizes = [batch * heads, blocks, capacity, WIDTH];
        tensor_map(
            rows,
            sizes,
            [capacity * d, WIDTH, d, 1],
            [1, blocks, keys, WIDTH],
        )
    }
}

impl Launcher {
    /// Attends with the last T positions of every sequence to those up to their own.
    pub fn prefill(
        &self,
        buffers: &PrefillBuffers<'_>,
        step: &PrefillStep,
        problem: &PrefillProblem,
    ) -> CubeTensor {
        let (q, sizes) = (buffers.q, &problem.sizes);
        let out = self.empty(q.shape().dims::<4>(), q.dtype);
        let states = match step.splits {
            1 => self.unused(DType::F32),
            splits => {
                let states = sizes.batch_heads() * splits;
                self.empty([states, problem.rows(), sizes.head_dim + 2], DType::F32)
            }
        };
        let types = [q.dtype, buffers.k.dtype].map(dtype_to_storage_type);
        let causal = CausalShapeLaunch::new(
            problem.len as u32,
            sizes.capacity as u32,
            problem.window.map_or(u32::MAX, |window| window as u32),
            step.tiles as u32,
            step.splits as u32,
            step.heads_at_once as u32,
        );
        let count = grid(sizes.batch_heads() * step.tiles * step.splits);
        let address_type = [q, buffers.k, &states, &out]
            .map(CubeTensor::required_address_type)
            .into_iter()
            .fold(AddressType::U32, AddressType::max);
        // SAFETY: the kernels check the number of the cube and of each row, and read positions only
        // before the end of a sequence.
        unsafe {
            match step.kernel {
                PrefillKernel::Wgmma(plan) => prefill_wgmma_kernel::launch_unchecked(
                    &self.client,
                    count,
                    CubeDim::new_1d(CUBE_UNITS as u32),
                    address_type,
                    plan.logits(),
                    plan.outputs(),
                    plan.weights(),
                    q.clone().into_tensor_arg(),
                    PrefillBuffers::map(buffers.k, plan.keys),
                    PrefillBuffers::map(buffers.v, plan.keys),
                    buffers.spans.clone().into_buffer_arg(),
                    out.clone().into_buffer_arg(),
                    sizes.batch_shape(),
                    causal,
                    plan,
                    types,
                ),
                PrefillKernel::Matrix(plan) => prefill_kernel::launch_unchecked(
                    &self.client,
                    count,
                    CubeDim::new_1d(plan.units() as u32),
                    address_type,
                    VECTOR,
                    q.clone().into_tensor_arg(),
                    buffers.rows(),
                    buffers.spans.clone().into_buffer_arg(),
                    out.clone().into_buffer_arg(),
                    states.clone().into_buffer_arg(),
                    sizes.batch_shape(),
                    causal,
                    plan,
                    types,
                ),
                PrefillKernel::Plain(plan) => plain_prefill_kernel::launch_unchecked(
                    &self.client,
                    count,
                    CubeDim::new_1d(plan.units() as u32),
                    address_type,
                    4,
                    q.clone().into_tensor_arg(),
                    buffers.rows(),
                    buffers.spans.clone().into_buffer_arg(),
                    out.clone().into_buffer_arg(),
                    states.clone().into_buffer_arg(),
                    sizes.batch_shape(),
                    causal,
                    plan,
                    types,
                ),
            }
        }
        if step.splits > 1 {
            self.merge(&states, &out, step.splits, problem.len, step.merge);
        }
        out
    }
}
