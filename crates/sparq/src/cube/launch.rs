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
use super::finish::finish_kernel;
use super::score::{ScorePlan, score_kernel};
use super::select::SelectPlan;
use super::spread::{STATE, emit_kernel, histogram_kernel};
use crate::op::{CacheBuffers, SketchBuffers, SparqOutputBuffers};
use crate::{Components, GroupScore, SparqConfig};

/// Bytes of a vector load.
const VECTOR: usize = 16;
/// Numbers of an accumulator that a unit holds in registers.
const ACCUMULATORS: usize = 64;

/// A device and what it offers.
pub(super) struct Launcher {
    client: Client,
    device: CubeDevice,
    /// The smallest plane, 1 where plane operations are missing.
    plane: u32,
    /// Multiprocessors, or a guess.
    processors: usize,
    most_units: u32,
}

/// The sizes of a cache and of the queries to it.
#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    kv_heads: usize,
    group: usize,
    head_dim: usize,
    capacity: usize,
}

impl Sizes {
    fn new(heads: usize, k: &CubeTensor) -> Self {
        let shape = k.shape();
        Self {
            batch: shape[0],
            kv_heads: shape[1],
            group: heads / shape[1],
            head_dim: shape[3],
            capacity: shape[2],
        }
    }

    fn rows(&self) -> usize {
        self.batch * self.kv_heads
    }
}

impl Launcher {
    pub fn new(tensor: &CubeTensor) -> Self {
        let client = tensor.client.clone();
        let hardware = &client.properties().hardware;
        let planes = client.features().plane.contains(Plane::Ops);
        let plane = if planes { hardware.plane_size_min } else { 1 };
        Self {
            device: tensor.device.clone(),
            plane,
            processors: hardware.num_streaming_multiprocessors.unwrap_or(32) as usize,
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
                lo,
                step,
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
        let (plan, n) = self.attend_plan(&sizes, cache.k.dtype, 128);
        let out = self.empty(q.shape(), q.dtype);
        // Cubes for a few rounds of the device, each with enough positions to be worth its start.
        let wanted = (self.processors * 6).div_ceil(sizes.rows());
        let splits = wanted.min(bound.div_ceil(64)).clamp(1, MOST_SPLITS);
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

    /// A SparQ step over at most `bound` positions.
    pub fn sparq(
        &self,
        q: &CubeTensor,
        cache: &CacheBuffers<CubeBackend>,
        bound: usize,
        config: &SparqConfig,
    ) -> SparqOutputBuffers<CubeBackend> {
        let sizes = Sizes::new(q.shape()[1], &cache.k);
        let (rows, group) = (sizes.rows(), sizes.group);
        let logits = self.empty(Shape::new([rows, group, sizes.capacity]), DType::F32);
        let q_type = dtype_to_storage_type(q.dtype);
        let k_type = dtype_to_storage_type(cache.k.dtype);

        let mut plan = ScorePlan {
            group,
            head_dim: sizes.head_dim,
            rank: config.rank,
            abs_sum: config.components == Components::AbsSum,
            heads: 0,
            bits: 0,
            unroll: config.rank.min(16),
            clear: false,
            units: 0,
            plane: self.plane,
        };
        let (sketch, step) = match &cache.sketch {
            SketchBuffers::None => {
                panic!("SparQ reads a key sketch, and this cache was made without one")
            }
            // Without codes, the step is not read.
            SketchBuffers::Full(kt) => (kt, &cache.v_sum),
            SketchBuffers::Codes {
                bits, codes, step, ..
            } => {
                plan.bits = *bits;
                (codes, step)
            }
        };
        let each = plan.per_element();
        let n = match plan.bits {
            0 => VECTOR / sketch.dtype.size(),
            _ => {
                let fits = |words: &usize| group * words * each <= ACCUMULATORS;
                [4, 2].into_iter().find(fits).unwrap_or(1)
            }
        };
        let count = n * each;
        plan.heads = passes(group, ACCUMULATORS / count);
        plan.units = self.score_units(rows, bound.div_ceil(count));
        let tile_len = plan.units as usize * count;
        let tiles = bound.div_ceil(tile_len);
        let stats = self.empty(Shape::new([rows, tiles, group, 2]), DType::F32);
        // Two more launches pay where few cubes would otherwise go through many scores (measured on an H100).
        let spread = bound * group > 32768 && rows <= self.processors;
        plan.clear = spread;
        let state = match spread {
            true => self.empty(Shape::new([rows, STATE]), DType::U32),
            false => self.empty(Shape::new([1]), DType::U32),
        };
        unsafe {
            score_kernel::launch_unchecked(
                &self.client,
                cubes(rows * tiles),
                CubeDim::new_1d(plan.units),
                sketch
                    .required_address_type()
                    .max(logits.required_address_type()),
                n,
                q.clone().into_tensor_arg(),
                sketch.clone().into_buffer_arg(),
                step.clone().into_buffer_arg(),
                cache.spans.clone().into_buffer_arg(),
                logits.clone().into_buffer_arg(),
                stats.clone().into_buffer_arg(),
                state.clone().into_buffer_arg(),
                sizes.batch as u32,
                sizes.kv_heads as u32,
                sizes.capacity as u32,
                tiles as u32,
                plan,
                [q_type, dtype_to_storage_type(sketch.dtype)],
            );
        }

        let width = config.top_k.min(bound);
        let output = self.empty(q.shape(), q.dtype);
        let positions = self.empty(Shape::new([sizes.batch, sizes.kv_heads, width]), DType::I32);
        let alpha = self.empty(
            Shape::new([sizes.batch, sizes.kv_heads * group]),
            DType::F32,
        );
        let (attend, n) = self.attend_plan(&sizes, cache.k.dtype, 256);
        let choice = self.select_plan(&sizes, config, attend.units);
        let (mut above, mut border) = (state.clone(), state.clone());
        if spread {
            let parts_of = SelectPlan {
                units: self.units(256),
                ..choice
            };
            let part_len = 4 * parts_of.units as usize * if rows * bound > 1 << 20 { 4 } else { 1 };
            let parts = bound.div_ceil(part_len);
            above = self.empty(Shape::new([rows, config.top_k]), DType::U32);
            border = self.empty(Shape::new([rows, choice.candidates, 2]), DType::U32);
            let scores = match group {
                1 => logits.clone(),
                _ => self.empty(Shape::new([rows, sizes.capacity]), DType::F32),
            };
            unsafe {
                histogram_kernel::launch_unchecked(
                    &self.client,
                    cubes(rows * parts),
                    CubeDim::new_1d(parts_of.units),
                    logits.required_address_type(),
                    logits.clone().into_buffer_arg(),
                    stats.clone().into_buffer_arg(),
                    cache.spans.clone().into_buffer_arg(),
                    match group {
                        1 => self.empty(Shape::new([4]), DType::F32).into_buffer_arg(),
                        _ => scores.clone().into_buffer_arg(),
                    },
                    state.clone().into_buffer_arg(),
                    sizes.batch as u32,
                    sizes.kv_heads as u32,
                    sizes.capacity as u32,
                    tiles as u32,
                    tile_len as u32,
                    parts as u32,
                    part_len,
                    parts_of,
                );
                emit_kernel::launch_unchecked(
                    &self.client,
                    cubes(rows * parts),
                    CubeDim::new_1d(parts_of.units),
                    logits.required_address_type(),
                    scores.into_buffer_arg(),
                    stats.clone().into_buffer_arg(),
                    cache.spans.clone().into_buffer_arg(),
                    state.clone().into_buffer_arg(),
                    above.clone().into_buffer_arg(),
                    border.clone().into_buffer_arg(),
                    sizes.batch as u32,
                    sizes.kv_heads as u32,
                    sizes.capacity as u32,
                    tiles as u32,
                    tile_len as u32,
                    parts as u32,
                    part_len,
                    parts_of,
                );
            }
        }
        unsafe {
            finish_kernel::launch_unchecked(
                &self.client,
                cubes(rows),
                CubeDim::new_1d(attend.units),
                cache
                    .k
                    .required_address_type()
                    .max(logits.required_address_type()),
                n,
                q.clone().into_tensor_arg(),
                cache.k.clone().into_buffer_arg(),
                cache.v.clone().into_buffer_arg(),
                cache.v_sum.clone().into_buffer_arg(),
                cache.spans.clone().into_buffer_arg(),
                logits.into_buffer_arg(),
                stats.into_buffer_arg(),
                state.into_buffer_arg(),
                above.into_buffer_arg(),
                border.into_buffer_arg(),
                output.clone().into_buffer_arg(),
                positions.clone().into_buffer_arg(),
                alpha.clone().into_buffer_arg(),
                sizes.batch as u32,
                sizes.kv_heads as u32,
                sizes.capacity as u32,
                tiles as u32,
                tile_len as u32,
                width as u32,
                config.mean_value.applies(group),
                spread,
                choice,
                attend,
                [q_type, k_type],
            );
        }
        SparqOutputBuffers {
            output,
            positions,
            alpha,
        }
    }

    /// Whether the kernels of a SparQ step have room in a cube's shared memory.
    pub fn holds(&self, heads: usize, k: &CubeTensor, config: &SparqConfig) -> bool {
        let sizes = Sizes::new(heads, k);
        let (attend, _) = self.attend_plan(&sizes, k.dtype, 256);
        let choice = self.select_plan(&sizes, config, attend.units);
        let reductions = 4 * (sizes.group + (attend.units / self.plane) as usize);
        let finish = attend.shared_bytes() + choice.shared_bytes() + reductions;
        let score = 4 * ((sizes.group + 1) * (config.rank + sizes.head_dim) + 256);
        finish.max(score) <= self.client.properties().hardware.max_shared_memory_size
    }

    fn select_plan(&self, sizes: &Sizes, config: &SparqConfig, units: u32) -> SelectPlan {
        let group = sizes.group;
        SelectPlan {
            group,
            probabilities: group > 1 && config.group_score == GroupScore::Probabilities,
            top_k: config.top_k,
            window: config.local_window,
            candidates: 512,
            units,
            plane: self.plane,
        }
    }

    fn attend_plan(&self, sizes: &Sizes, dtype: DType, units: u32) -> (AttendPlan, usize) {
        let n = (VECTOR / dtype.size()).min(1 << sizes.head_dim.trailing_zeros());
        let row = sizes.head_dim / n;
        let lanes = row.next_power_of_two().min(self.plane as usize);
        let vectors = row.div_ceil(lanes);
        let units = match self.plane {
            1 => self.units(32),
            _ => self.units(units),
        };
        let plan = AttendPlan {
            group: sizes.group,
            head_dim: sizes.head_dim,
            heads: passes(sizes.group, ACCUMULATORS / (vectors * n)),
            lanes,
            vectors,
            steps: (4 / vectors).max(1),
            // Some kilobytes.
            slots: (units as usize / lanes).min(2048 / sizes.head_dim).max(1),
            units,
            plane: self.plane,
        };
        (plan, n)
    }

    /// Units of a score cube: many where there is work for all processors, few where a row has to be spread.
    fn score_units(&self, rows: usize, vectors: usize) -> u32 {
        let warps = rows * vectors.div_ceil(32);
        let each = warps / (self.processors * 2);
        self.units((each.next_power_of_two() * 32).clamp(64, 256) as u32)
    }

    /// A power of two that the device can run in a cube.
    fn units(&self, wanted: u32) -> u32 {
        let most = 1 << self.most_units.ilog2();
        wanted.min(most).max(self.plane)
    }

    fn empty(&self, shape: Shape, dtype: DType) -> CubeTensor {
        empty_device_contiguous_dtype(self.client.clone(), self.device.clone(), shape, dtype)
    }
}

/// Heads of a pass, so that passes of at most `most` are alike.
fn passes(group: usize, most: usize) -> usize {
    let passes = group.div_ceil(most.clamp(1, 8));
    group.div_ceil(passes)
}

/// A grid of `count` cubes, which the kernels number through; within the limits of every API.
fn cubes(count: usize) -> CubeCount {
    const MOST: usize = 65535;
    let y = count.div_ceil(MOST);
    CubeCount::Static(count.div_ceil(y) as u32, y as u32, 1)
}
