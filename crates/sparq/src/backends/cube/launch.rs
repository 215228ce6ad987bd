//! How the kernels are launched: what they are compiled for and how their grids are laid out.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::{DType, Shape};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, CubeDevice};
use cubecl::client::Client;
use cubecl::features::Plane;
use cubecl::prelude::*;

use super::append::append_kernel;
use super::attend::AttendPlan;
use super::dense::{MOST_SPLITS, dense_kernel, merge_splits};
use super::matrix;
use crate::ops::{CacheBuffers, SketchBuffers};

/// Bytes of a vector load.
pub(super) const VECTOR: usize = 16;
/// Numbers of an accumulator that a unit holds in registers.
pub(super) const ACCUMULATORS: usize = 64;

/// Multiprocessors of a device that does not tell: those of a large one. With 32, an H100 took up to 1.7 times as long; a small device was not measured.
const GUESS: u32 = 128;

/// A device and what it offers.
pub(super) struct Launcher {
    pub(super) client: Client,
    device: CubeDevice,
    /// The smallest plane, 1 where plane operations are missing.
    pub(super) plane: u32,
    /// Multiprocessors, or a [guess](GUESS).
    pub(super) processors: usize,
    /// Whether it copies to shared memory by itself; see [`stage`](super::stage).
    pub(super) stages: bool,
    /// Whether [`matrix`] runs on it.
    pub(super) matrix: bool,
    /// Whether a cube goes on while another waits for it, as many of them as there are processors: so where their number is known, CUDA and HIP. A software
    /// Vulkan runs one after the other.
    pub(super) side_by_side: bool,
    most_units: u32,
}

/// The sizes of a cache and of the queries to it.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub batch: usize,
    pub kv_heads: usize,
    pub group: usize,
    pub head_dim: usize,
    pub capacity: usize,
}

impl Sizes {
    pub fn new(heads: usize, k: &CubeTensor) -> Self {
        let shape = k.shape();
        Self {
            batch: shape[0],
            kv_heads: shape[1],
            group: heads / shape[1],
            head_dim: shape[3],
            capacity: shape[2],
        }
    }

    pub fn rows(&self) -> usize {
        self.batch * self.kv_heads
    }
}

impl Launcher {
    pub fn new(tensor: &CubeTensor) -> Self {
        let client = tensor.client.clone();
        let hardware = &client.properties().hardware;
        let planes = client.features().plane.contains(Plane::Ops);
        let plane = if planes { hardware.plane_size_min } else { 1 };
        let whole = plane == matrix::PLANE && hardware.plane_size_max == plane;
        Self {
            device: tensor.device.clone(),
            plane,
            processors: hardware.num_streaming_multiprocessors.unwrap_or(GUESS) as usize,
            side_by_side: hardware.num_streaming_multiprocessors.is_some(),
            stages: client.features().copy_async,
            matrix: whole && client.features().matmul.mma.contains(&matrix::PRODUCT),
            most_units: hardware.max_units_per_cube,
            client,
        }
    }

    /// Appends one token to every sequence; see [`append_kernel`].
    pub fn append(
        &self,
        cache: &CacheBuffers<CubeBackend>,
        k: &CubeTensor,
        v: &CubeTensor,
        encode: bool,
    ) {
        self.write(None, None, cache, k, v, encode);
    }

    /// Turns the query and the key of one token by the table of angles, appends to every sequence and returns the queries; see [`append_kernel`].
    pub fn prepare(
        &self,
        q: &CubeTensor,
        k: &CubeTensor,
        v: &CubeTensor,
        table: Option<&CubeTensor>,
        cache: &CacheBuffers<CubeBackend>,
        encode: bool,
    ) -> CubeTensor {
        let turned = self.empty(q.shape(), q.dtype);
        self.write(Some((q, &turned)), table, cache, k, v, encode);
        turned
    }

    fn write(
        &self,
        queries: Option<(&CubeTensor, &CubeTensor)>,
        table: Option<&CubeTensor>,
        cache: &CacheBuffers<CubeBackend>,
        k: &CubeTensor,
        v: &CubeTensor,
        encode: bool,
    ) {
        let sizes = Sizes::new(cache.k.shape()[1], &cache.k);
        // What the sketch does not have is bound to a number of its own: no buffer may be bound twice where it is written.
        let spare = |dtype| self.empty(Shape::new([1]), dtype);
        let (mut full, mut width) = (false, 0);
        let (kt, codes, lo, step) = match &cache.sketch {
            SketchBuffers::Full(kt) => {
                full = true;
                (
                    kt.clone(),
                    spare(DType::U32),
                    spare(DType::F32),
                    spare(DType::F32),
                )
            }
            SketchBuffers::Codes {
                bits,
                codes,
                zero_point: lo,
                scale: step,
            } if encode => {
                width = *bits;
                (
                    spare(cache.k.dtype),
                    codes.clone(),
                    lo.clone(),
                    step.clone(),
                )
            }
            _ => (
                spare(cache.k.dtype),
                spare(DType::U32),
                spare(DType::F32),
                spare(DType::F32),
            ),
        };
        let kv_heads = sizes.kv_heads;
        let group = queries.map_or(0, |(q, _)| q.shape()[1] / kv_heads);
        let pairs = table.map_or(0, |table| table.shape()[1] / 2);
        let (q, turned) = match queries {
            Some((q, turned)) => (q.clone(), turned.clone()),
            None => (k.clone(), spare(k.dtype)),
        };
        let table = table.cloned().unwrap_or_else(|| spare(DType::F32));
        unsafe {
            append_kernel::launch_unchecked(
                &self.client,
                cubes(sizes.rows()),
                CubeDim::new_1d(self.units(256)),
                cache
                    .k
                    .required_address_type()
                    .max(table.required_address_type()),
                q.into_tensor_arg(),
                k.clone().into_tensor_arg(),
                v.clone().into_tensor_arg(),
                table.into_tensor_arg(),
                turned.into_buffer_arg(),
                cache.k.clone().into_buffer_arg(),
                cache.v.clone().into_buffer_arg(),
                cache.v_sum.clone().into_buffer_arg(),
                kt.into_buffer_arg(),
                codes.into_buffer_arg(),
                lo.into_buffer_arg(),
                step.into_buffer_arg(),
                cache.spans.clone().into_buffer_arg(),
                sizes.batch as u32,
                sizes.kv_heads as u32,
                sizes.capacity as u32,
                sizes.head_dim,
                group,
                pairs,
                full,
                width,
                [
                    dtype_to_storage_type(k.dtype),
                    dtype_to_storage_type(cache.k.dtype),
                ],
            );
        }
    }

    /// Dense decode over at most `bound` positions; see [`dense_kernel`].
    pub fn dense(
        &self,
        q: &CubeTensor,
        cache: &CacheBuffers<CubeBackend>,
        bound: usize,
    ) -> CubeTensor {
        let sizes = Sizes::new(q.shape()[1], &cache.k);
        let (plan, n) = self.attend_plan(&sizes, cache.k.dtype, 128, 4);
        let out = self.empty(q.shape(), q.dtype);
        // Enough cubes for all processors however short a split is; more where they stay long, so that none works while the others have nothing left.
        let cubes_of_row = |cubes: usize| self.processors * cubes / sizes.rows();
        let short = cubes_of_row(6).min(bound.div_ceil(64));
        let long = cubes_of_row(16).min(bound / 1024);
        let splits = short.max(long).clamp(1, MOST_SPLITS);
        let single = splits == 1;
        let states = match single {
            true => self.empty(Shape::new([1]), DType::F32),
            false => self.empty(
                Shape::new([sizes.rows() * splits, sizes.group, sizes.head_dim + 2]),
                DType::F32,
            ),
        };
        unsafe {
            dense_kernel::launch_unchecked(
                &self.client,
                cubes(sizes.rows() * splits),
                CubeDim::new_1d(plan.units),
                cache.k.required_address_type(),
                n,
                q.clone().into_tensor_arg(),
                cache.k.clone().into_buffer_arg(),
                cache.v.clone().into_buffer_arg(),
                cache.spans.clone().into_buffer_arg(),
                out.clone().into_buffer_arg(),
                states.clone().into_buffer_arg(),
                sizes.batch as u32,
                sizes.kv_heads as u32,
                sizes.capacity as u32,
                splits as u32,
                single,
                plan,
                [
                    dtype_to_storage_type(q.dtype),
                    dtype_to_storage_type(cache.k.dtype),
                ],
            );
            if !single {
                let heads = sizes.rows() * sizes.group;
                let units = self.units(512);
                merge_splits::launch_unchecked(
                    &self.client,
                    cubes(heads),
                    CubeDim::new_1d(units),
                    states.required_address_type(),
                    states.into_buffer_arg(),
                    out.clone().into_buffer_arg(),
                    splits as u32,
                    heads as u32,
                    sizes.group,
                    sizes.head_dim,
                    units,
                    self.plane,
                    dtype_to_storage_type(q.dtype),
                );
            }
        }
        out
    }

    pub(super) fn attend_plan(
        &self,
        sizes: &Sizes,
        dtype: DType,
        units: u32,
        vectors_at_once: usize,
    ) -> (AttendPlan, usize) {
        let n = (VECTOR / dtype.size()).min(1 << sizes.head_dim.trailing_zeros());
        let row = sizes.head_dim / n;
        let lanes = row.next_power_of_two().min(self.plane as usize);
        let vectors = row.div_ceil(lanes);
        let units = match self.plane {
            1 => self.units(32),
            _ => self.units(units),
        };
        let mut plan = AttendPlan {
            group: sizes.group,
            head_dim: sizes.head_dim,
            heads: passes(sizes.group, ACCUMULATORS / (vectors * n)),
            lanes,
            vectors,
            steps: (vectors_at_once / vectors).max(1),
            units,
            plane: self.plane,
        };
        // What else a cube holds takes the larger part.
        let most = self.client.properties().hardware.max_shared_memory_size / 3;
        while plan.shared_bytes() > most && plan.units > self.plane {
            plan.units /= 2;
        }
        (plan, n)
    }

    /// A power of two that the device can run in a cube.
    pub(super) fn units(&self, wanted: u32) -> u32 {
        let most = 1 << self.most_units.ilog2();
        wanted.min(most).max(self.plane)
    }

    pub(super) fn empty(&self, shape: Shape, dtype: DType) -> CubeTensor {
        empty_device_contiguous_dtype(self.client.clone(), self.device.clone(), shape, dtype)
    }
}

/// Heads of a pass, so that passes of at most `most` are alike.
pub(super) fn passes(group: usize, most: usize) -> usize {
    let passes = group.div_ceil(most.clamp(1, 8));
    group.div_ceil(passes)
}

/// A grid of `count` cubes, which the kernels number through; within the limits of every API.
pub(super) fn cubes(count: usize) -> CubeCount {
    const MOST: usize = 65535;
    let y = count.div_ceil(MOST);
    CubeCount::Static(count.div_ceil(y) as u32, y as u32, 1)
}
