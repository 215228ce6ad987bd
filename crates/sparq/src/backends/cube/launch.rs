//! Launches the kernels: allocates their outputs and binds buffers to arguments.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::{DType, Shape};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, CubeDevice};
use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::zspace::Strides;

use super::blueprint::{DenseStep, DeviceInfo, PositionsStep, Sizes, SparqStep, Until};
use super::kernels::attend_positions::{ListsLaunch, attend_positions_kernel};
use super::kernels::choose_components::choose_components_kernel;
use super::kernels::dense::{MergeBlueprint, dense_kernel, merge_splits_kernel};
use super::kernels::score_tiles::{CandidatesLaunch, TILE_STATS, score_tiles_kernel};
use super::kernels::select_attend::{OutputLaunch, TilingLaunch, select_attend_kernel};
use super::kernels::softmax_heads::softmax_heads_kernel;
use super::parts::batch_head::BatchShapeLaunch;
use super::parts::group_softmax::HEAD_STATS;
use super::parts::logits::{KeySketchLaunch, SketchBlueprint};
use super::parts::query::ChosenComponentsLaunch;
use super::parts::split_attention::SplitOutputLaunch;
use super::rows::kv_rows;
use crate::ops::{CacheBuffers, SketchBuffers, SparqOutputBuffers};

/// A device that kernels are launched on.
pub(super) struct Launcher {
    pub(super) client: Client,
    device: CubeDevice,
    pub(super) info: DeviceInfo,
}

impl Launcher {
    /// Returns the launcher of the device that holds `tensor`.
    pub fn new(tensor: &CubeTensor) -> Self {
        Self {
            client: tensor.client.clone(),
            device: tensor.device.clone(),
            info: DeviceInfo::new(&tensor.client),
        }
    }

    pub(super) fn empty<const D: usize>(&self, shape: [usize; D], dtype: DType) -> CubeTensor {
        let (client, device) = (self.client.clone(), self.device.clone());
        empty_device_contiguous_dtype(client, device, Shape::new(shape), dtype)
    }

    /// Returns a buffer of one element, for an argument that the kernel does not use.
    ///
    /// Each such argument gets a buffer of its own: a buffer that is written must not be bound
    /// twice.
    pub(super) fn unused(&self, dtype: DType) -> CubeTensor {
        self.empty([1], dtype)
    }
}

/// Returns a grid of `count` cubes within the limits of every API. Kernels number its cubes with
/// `CUBE_POS`.
pub(super) fn grid(count: usize) -> CubeCount {
    const MOST: usize = 65535;
    let y = count.div_ceil(MOST);
    CubeCount::Static(count.div_ceil(y) as u32, y as u32, 1)
}

/// Returns a tensor for bulk copies of tiles of `tile` elements to swizzled rows of 128 bytes.
pub(super) fn tensor_map<const D: usize>(
    tensor: &CubeTensor,
    sizes: [usize; D],
    strides: [usize; D],
    tile: [usize; D],
) -> TensorMapArg<Tiled> {
    let handle = tensor.handle.clone();
    let (sizes, strides) = (Shape::new(sizes), Strides::new(&strides));
    let source = unsafe { TensorArg::from_raw_parts(handle, strides, sizes) };
    let tile_size = Shape::new(tile);
    let element = dtype_to_storage_type(tensor.dtype);
    TensorMapArg::new(TiledArgs { tile_size }, source, element)
        .with_swizzle(TensorMapSwizzle::B128)
        .with_prefetch(TensorMapPrefetch::B256)
}

impl Sizes {
    /// Returns the argument for a [`BatchShape`](super::parts::batch_head::BatchShape).
    pub(super) fn batch_shape(&self) -> BatchShapeLaunch {
        BatchShapeLaunch::new(self.batch as u32, self.kv_heads as u32)
    }
}

impl Launcher {
    /// Attends to all of at most `bound` positions; see [`dense_kernel`].
    pub fn dense(
        &self,
        q: &CubeTensor,
        cache: &CacheBuffers<CubeBackend>,
        bound: usize,
    ) -> CubeTensor {
        let (sizes, dtype) = (cache.k.sizes(q.shape()[1]), cache.k.elements().dtype);
        let step = DenseStep::new(&sizes, dtype, bound, &self.info);
        let splits = step.splits;
        let output = self.split_output(q, &sizes, splits);
        unsafe {
            dense_kernel::launch_unchecked(
                &self.client,
                grid(sizes.batch_heads() * splits),
                CubeDim::new_1d(step.dense.attend.units),
                cache.k.elements().required_address_type(),
                step.dense.attend.size(),
                q.clone().into_tensor_arg(),
                kv_rows(cache),
                self.row_scales(cache),
                cache.spans.clone().into_buffer_arg(),
                output.arg(),
                sizes.batch_shape(),
                sizes.capacity as u32,
                splits as u32,
                step.dense,
                [q.dtype, dtype].map(dtype_to_storage_type),
            );
        }
        self.merged(output, splits, step.merge)
    }

    /// Attends to `positions` [B, N, k], the list `heads` [H_kv] for each KV head; see
    /// [`attend_positions_kernel`].
    pub fn attend_positions(
        &self,
        q: &CubeTensor,
        cache: &CacheBuffers<CubeBackend>,
        [positions, heads]: [CubeTensor; 2],
        step: &PositionsStep,
    ) -> CubeTensor {
        let (sizes, dtype) = (cache.k.sizes(q.shape()[1]), cache.k.elements().dtype);
        let (plan, splits) = (step.attend, step.attend.splits);
        let lists = positions.shape()[1];
        let output = self.split_output(q, &sizes, splits);
        // SAFETY: the kernel checks the number of each cube, and reads lists and positions that
        // exist whatever the numbers in `positions` and `heads`.
        unsafe {
            attend_positions_kernel::launch_unchecked(
                &self.client,
                grid(sizes.batch_heads() * plan.cubes()),
                CubeDim::new_1d(plan.split.attend.units),
                cache.k.elements().required_address_type(),
                plan.split.attend.size(),
                q.clone().into_tensor_arg(),
                kv_rows(cache),
                self.row_scales(cache),
                ListsLaunch::new(
                    positions.into_buffer_arg(),
                    heads.into_buffer_arg(),
                    lists as u32,
                ),
                cache.spans.clone().into_buffer_arg(),
                output.arg(),
                sizes.batch_shape(),
                sizes.capacity as u32,
                plan,
                [q.dtype, dtype].map(dtype_to_storage_type),
            );
        }
        self.merged(output, splits, step.merge)
    }

    /// Allocates the output of attention with queries `q`, and the states of `splits` if there are
    /// several.
    fn split_output(&self, q: &CubeTensor, sizes: &Sizes, splits: usize) -> SplitBuffers {
        SplitBuffers {
            out: self.empty(q.shape().dims::<4>(), q.dtype),
            states: match splits {
                1 => self.unused(DType::F32),
                _ => {
                    let rows = sizes.batch_heads() * splits;
                    self.empty([rows, sizes.group, sizes.head_dim + 2], DType::F32)
                }
            },
        }
    }

    /// Returns the output of `splits`, merged if there are several.
    fn merged(&self, output: SplitBuffers, splits: usize, plan: MergeBlueprint) -> CubeTensor {
        if splits > 1 {
            self.merge(&output.states, &output.out, splits, 1, plan);
        }
        output.out
    }

    /// Merges the states of all splits into `out` [B, H, len, d]; see [`merge_splits_kernel`].
    pub(super) fn merge(
        &self,
        states: &CubeTensor,
        out: &CubeTensor,
        splits: usize,
        len: usize,
        plan: MergeBlueprint,
    ) {
        let rows = out.shape().num_elements() / plan.head_dim;
        unsafe {
            merge_splits_kernel::launch_unchecked(
                &self.client,
                grid(rows),
                CubeDim::new_1d(plan.units),
                states
                    .required_address_type()
                    .max(out.required_address_type()),
                states.clone().into_buffer_arg(),
                out.clone().into_buffer_arg(),
                splits as u32,
                rows as u32,
                len as u32,
                plan,
                dtype_to_storage_type(out.dtype),
            );
        }
    }
}

/// The buffers of a [`SplitOutput`](super::parts::split_attention::SplitOutput).
struct SplitBuffers {
    out: CubeTensor,
    states: CubeTensor,
}

impl SplitBuffers {
    fn arg<Q: Float>(&self) -> SplitOutputLaunch<Q> {
        SplitOutputLaunch::new(
            self.out.clone().into_buffer_arg(),
            self.states.clone().into_buffer_arg(),
        )
    }
}

/// The launches of a SparQ decode step.
pub(super) struct SparqLaunch<'a> {
    pub launcher: &'a Launcher,
    pub step: SparqStep,
    pub sizes: Sizes,
    pub q: &'a CubeTensor,
    pub cache: &'a CacheBuffers<CubeBackend>,
}

/// The buffers that [`choose_components_kernel`] writes.
struct Chosen {
    components: CubeTensor,
    weights: CubeTensor,
    arrivals: CubeTensor,
}

/// The softmax sums that [`softmax_heads_kernel`] writes, one for each head and tile.
struct HeadSums {
    stats: CubeTensor,
    tiles: usize,
    tile_len: usize,
}

/// The buffers that [`score_tiles_kernel`] writes.
struct CandidateBuffers {
    scores: CubeTensor,
    positions: CubeTensor,
    stats: CubeTensor,
}

impl SparqLaunch<'_> {
    /// Launches the kernels of the step.
    pub fn run(&self) -> SparqOutputBuffers<CubeBackend> {
        let (launcher, step, sizes) = (self.launcher, &self.step, &self.sizes);
        let chosen = self.choose();
        let sums = match &step.softmax_heads {
            Some(sketch) => self.softmax_heads(&chosen, sketch),
            None if step.score_tiles.together => self.head_sums(&step.score_tiles.sketch),
            None => self.no_head_sums(),
        };
        let candidates = self.score_tiles(&chosen, &sums);
        let (batch, kv_heads) = (sizes.batch, sizes.kv_heads);
        let output = SparqOutputBuffers {
            output: launcher.empty(self.q.shape().dims::<4>(), self.q.dtype),
            positions: launcher.empty([batch, kv_heads, step.width], DType::I32),
            alpha: launcher.empty([batch, kv_heads * sizes.group], DType::F32),
        };
        if step.until != Until::Scores {
            let sums = match &step.softmax_alpha {
                Some(sketch) => self.softmax_heads(&chosen, sketch),
                None => self.no_head_sums(),
            };
            self.select_attend(sums, candidates, &output);
        }
        output
    }

    /// Returns the sketch and the scale of its codes.
    fn sketch(&self) -> (&CubeTensor, &CubeTensor) {
        match &self.cache.sketch {
            SketchBuffers::None => {
                panic!("SparQ needs a key sketch, but the cache was created without one")
            }
            // The kernels don't read the scale of a full sketch: any buffer of f32 will do.
            SketchBuffers::Full(kt) => (kt, &self.cache.v_sum),
            SketchBuffers::Codes { codes, scale, .. } => (codes, scale),
        }
    }

    fn sketch_arg<T: CubePrimitive>(&self) -> KeySketchLaunch<T> {
        let (sketch, scale) = self.sketch();
        KeySketchLaunch::new(
            sketch.clone().into_buffer_arg(),
            scale.clone().into_buffer_arg(),
        )
    }

    /// Returns the types of the queries and of the sketch.
    fn score_types(&self) -> [ElemType; 2] {
        [self.q.dtype, self.sketch().0.dtype].map(dtype_to_storage_type)
    }

    /// Launches [`choose_components_kernel`], or returns buffers that are not read.
    fn choose(&self) -> Chosen {
        let (launcher, sizes) = (self.launcher, &self.sizes);
        let (_, scale) = self.sketch();
        let Some(plan) = self.step.choose else {
            return Chosen {
                components: self.cache.spans.clone(),
                weights: scale.clone(),
                arrivals: launcher.unused(DType::U32),
            };
        };
        let count = sizes.batch_heads();
        let chosen = Chosen {
            components: launcher.empty([count, plan.rank], DType::U32),
            weights: launcher.empty([count, plan.rank, plan.heads()], DType::F32),
            arrivals: launcher.empty([1 + count], DType::U32),
        };
        unsafe {
            choose_components_kernel::launch_unchecked(
                &launcher.client,
                grid(count),
                CubeDim::new_1d(plan.units),
                chosen.weights.required_address_type(),
                self.q.clone().into_tensor_arg(),
                scale.clone().into_buffer_arg(),
                chosen.arg(),
                chosen.arrivals.clone().into_buffer_arg(),
                sizes.batch_shape(),
                plan,
                dtype_to_storage_type(self.q.dtype),
            );
        }
        chosen
    }

    /// Returns sums that are not read.
    fn no_head_sums(&self) -> HeadSums {
        HeadSums {
            stats: self.launcher.unused(DType::F32),
            tiles: 1,
            tile_len: 1,
        }
    }

    /// Allocates the sums of all heads and tiles.
    fn head_sums(&self, plan: &SketchBlueprint) -> HeadSums {
        let sizes = &self.sizes;
        let tile_len = plan.tile_len();
        let tiles = self.step.bound.div_ceil(tile_len);
        let shape = [sizes.batch_heads(), tiles, sizes.group, HEAD_STATS];
        HeadSums {
            stats: self.launcher.empty(shape, DType::F32),
            tiles,
            tile_len,
        }
    }

    /// Launches [`softmax_heads_kernel`].
    fn softmax_heads(&self, chosen: &Chosen, plan: &SketchBlueprint) -> HeadSums {
        let (launcher, sizes) = (self.launcher, &self.sizes);
        let sums = self.head_sums(plan);
        unsafe {
            softmax_heads_kernel::launch_unchecked(
                &launcher.client,
                grid(sizes.batch_heads() * sums.tiles),
                CubeDim::new_1d(plan.query.units),
                self.sketch().0.required_address_type(),
                plan.vector,
                self.q.clone().into_tensor_arg(),
                self.sketch_arg(),
                self.cache.spans.clone().into_buffer_arg(),
                chosen.arg(),
                sums.stats.clone().into_buffer_arg(),
                sizes.batch_shape(),
                sizes.capacity as u32,
                sums.tiles as u32,
                *plan,
                self.score_types(),
            );
        }
        sums
    }

    /// Launches [`score_tiles_kernel`].
    fn score_tiles(&self, chosen: &Chosen, sums: &HeadSums) -> CandidateBuffers {
        let (launcher, sizes) = (self.launcher, &self.sizes);
        let (plan, tiles) = (self.step.score_tiles, self.step.tiles);
        let count = sizes.batch_heads();
        let room = plan.top_k.room;
        let candidates = CandidateBuffers {
            scores: launcher.empty([count, tiles, room], DType::F32),
            positions: launcher.empty([count, tiles, room], DType::U32),
            stats: launcher.empty([count, tiles, TILE_STATS], DType::F32),
        };
        let address_type = self.sketch().0.required_address_type();
        unsafe {
            score_tiles_kernel::launch_unchecked(
                &launcher.client,
                grid(count * tiles),
                CubeDim::new_1d(plan.sketch.query.units),
                address_type.max(candidates.scores.required_address_type()),
                plan.sketch.vector,
                self.q.clone().into_tensor_arg(),
                self.sketch_arg(),
                self.cache.spans.clone().into_buffer_arg(),
                chosen.arg(),
                chosen.arrivals.clone().into_buffer_arg(),
                sums.stats.clone().into_buffer_arg(),
                candidates.arg(),
                sizes.batch_shape(),
                sizes.capacity as u32,
                tiles as u32,
                plan,
                self.score_types(),
            );
        }
        candidates
    }

    /// Launches [`select_attend_kernel`].
    fn select_attend(
        &self,
        sums: HeadSums,
        candidates: CandidateBuffers,
        output: &SparqOutputBuffers<CubeBackend>,
    ) {
        let (launcher, step, sizes) = (self.launcher, &self.step, &self.sizes);
        let plan = step.select_attend;
        let rows = self.cache.k.elements();
        let types = [self.q.dtype, rows.dtype, self.sketch().0.dtype];
        let address_type = rows.required_address_type();
        unsafe {
            select_attend_kernel::launch_unchecked(
                &launcher.client,
                grid(sizes.batch_heads()),
                CubeDim::new_1d(plan.attend.units),
                address_type.max(candidates.scores.required_address_type()),
                plan.attend.size(),
                self.q.clone().into_tensor_arg(),
                kv_rows(self.cache),
                launcher.row_scales(self.cache),
                self.cache.v_sum.clone().into_buffer_arg(),
                self.sketch_arg(),
                self.cache.spans.clone().into_buffer_arg(),
                candidates.arg(),
                sums.stats.into_buffer_arg(),
                OutputLaunch::new(
                    output.output.clone().into_buffer_arg(),
                    output.positions.clone().into_buffer_arg(),
                    output.alpha.clone().into_buffer_arg(),
                ),
                sizes.batch_shape(),
                sizes.capacity as u32,
                TilingLaunch::new(
                    step.tiles as u32,
                    step.score_tiles.sketch.tile_len() as u32,
                    sums.tiles as u32,
                    sums.tile_len as u32,
                    step.width as u32,
                ),
                plan,
                types.map(dtype_to_storage_type),
            );
        }
    }
}

impl Chosen {
    fn arg(&self) -> ChosenComponentsLaunch {
        ChosenComponentsLaunch::new(
            self.components.clone().into_buffer_arg(),
            self.weights.clone().into_buffer_arg(),
        )
    }
}

impl CandidateBuffers {
    fn arg<S: CubePrimitive, P: CubePrimitive>(&self) -> CandidatesLaunch<S, P> {
        CandidatesLaunch::new(
            self.scores.clone().into_buffer_arg(),
            self.positions.clone().into_buffer_arg(),
            self.stats.clone().into_buffer_arg(),
        )
    }
}
