//! How a SparQ step is launched: which kernels, with what between them.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::Until;
use super::attend::AttendPlan;
use super::best::BestPlan;
use super::finish::{Alpha, FinishPlan, finish_kernel};
use super::heads::{HEAD_STATS, heads_kernel};
use super::launch::{ACCUMULATORS, Launcher, Sizes, VECTOR, cubes, passes};
use super::logits::SketchPlan;
use super::query::{QueryPlan, query_kernel};
use super::stage;
use super::tile::{TILE_STATS, TilePlan, tile_kernel};
use crate::SparqConfig;
use crate::methods::{Components, GroupScore};
use crate::ops::{CacheBuffers, SketchBuffers, SparqOutputBuffers};

/// Units of the cubes that choose components in advance.
const QUERY_UNITS: u32 = 128;
/// Cubes for each processor from which on that pays: a launch is then little beside them.
const MANY: usize = 6;
/// Units of the cubes that choose and attend, in the middle.
const FINISH_UNITS: u32 = 256;
/// Candidates that a tile has room for beyond those it must name: of scores in no order, so many are no less than the bound that it finds.
const SPARE: usize = 64;

/// Vectors of four candidates that a unit may hold in registers: few sizes, so that a growing cache does not ask for one kernel after another.
const VECTORS: [usize; 8] = [1, 2, 3, 4, 6, 8, 12, 16];

/// Tiles of a row at most where one query is scored by matrix units in small tiles: measured on an H100, 8 gain 3 us of 61 and 64 lose 7 of 26.
const FEW_TILES: usize = 16;

/// What a step is compiled for, of which the sizes, types and settings decide.
pub(super) struct SparqPlan<'a> {
    pub launcher: &'a Launcher,
    /// How far to go.
    pub until: Until,
    /// Positions that the longest sequence has at most.
    pub bound: usize,
    pub config: &'a SparqConfig,
    pub sizes: Sizes,
    /// Of the cache.
    pub dtype: DType,
}

impl SparqPlan<'_> {
    /// Bits of the sketch's codes, 0 for a copy of K.
    fn bits(&self) -> usize {
        self.config.sketch.bits().unwrap_or(0)
    }

    /// Whether the sum of the group's logits ranks a position: that is the logit of one query, the sum of the heads'.
    fn summed(&self) -> bool {
        self.sizes.group == 1 || self.config.group_score == GroupScore::Logits
    }

    fn alpha(&self) -> Alpha {
        let asked = self.until == Until::Trace || self.config.mean_value.applies(self.sizes.group);
        match asked {
            false => Alpha::None,
            true if self.sizes.group == 1 => Alpha::Candidates,
            true => Alpha::Kept,
        }
    }

    /// Whether the kernels have room in a cube's shared memory.
    pub fn fits(&self) -> bool {
        // The longest sequence leaves the most candidates.
        let finish = self.finish_plan(1).0.shared_bytes();
        let tile = self.tile_plan().shared_bytes();
        let most = self
            .launcher
            .client
            .properties()
            .hardware
            .max_shared_memory_size;
        finish.max(tile) <= most
    }

    fn query_plan(&self, summed: bool, units: u32) -> QueryPlan {
        QueryPlan {
            group: self.sizes.group,
            head_dim: self.sizes.head_dim,
            rank: self.config.rank,
            abs_sum: self.config.components == Components::AbsSum,
            summed,
            coded: self.bits() > 0,
            ready: false,
            units,
            plane: self.launcher.plane,
        }
    }

    /// How the sketch is read, for the sum of the heads' queries or for each of them.
    fn sketch_plan(&self, summed: bool, matrix: bool) -> SketchPlan {
        let (launcher, bits, rank) = (self.launcher, self.bits(), self.config.rank);
        let matrix = matrix && bits == 4 && launcher.matrix;
        // A unit has 16 positions, or 8 where that is too much for all processors to have work.
        let enough = launcher.processors / 2;
        let sizes = [(256, 16), (256, 8), (128, 8)];
        let tiles_of = |(units, positions): (u32, usize)| {
            self.bound
                .div_ceil(launcher.units(units) as usize * positions)
        };
        let cubes_of = |&size: &(u32, usize)| self.sizes.rows() * tiles_of(size);
        let small = match (summed, matrix) {
            // The numbers of several heads take as many registers more.
            (false, false) => true,
            // Where matrix units multiply, more cubes at a time hide each other's waits, if their candidates are not too many for the cube that chooses among them.
            (true, true) => tiles_of(sizes[1]) <= FEW_TILES,
            _ => false,
        };
        let sizes = if small { &sizes[1..] } else { &sizes[..] };
        let found = sizes.iter().find(|size| cubes_of(size) >= enough);
        let size = found.unwrap_or(&sizes[sizes.len() - 1]);
        let &(units, positions) = size;
        let query = self.query_plan(summed, launcher.units(units));
        let vector = match bits {
            0 => VECTOR / self.dtype.size(),
            // Four lanes share words.
            4 if matrix && query.heads() == 1 && rank <= 64 => 4,
            4 if matrix => 2,
            _ => positions * bits / 32,
        };
        let vectors = match bits {
            0 => positions / vector,
            _ if matrix => positions / (2 * vector),
            _ => 1,
        };
        // Alone on its processor, a cube has nothing to do while it waits.
        let few = cubes_of(size) <= 2 * launcher.processors;
        // Codes are few bytes: measured, they do better in registers.
        let staged = launcher.stages && bits != 4;
        let ahead = match staged {
            false => 0,
            true if few => stage::MANY,
            true => stage::FEW,
        };
        let unroll = match bits {
            _ if staged => stage::GROUP / vectors,
            0 if summed => 16 / vectors,
            _ => 8,
        };
        SketchPlan {
            query,
            bits,
            vector,
            vectors,
            heads: passes(query.heads(), ACCUMULATORS / positions),
            unroll: unroll.min(rank),
            matrix,
            ahead,
        }
    }

    /// Positions to choose beside the local window: k - l, and at least 1.
    fn needed(&self) -> usize {
        (self.config.top_k - self.config.local_window).max(1)
    }

    fn best_plan(&self, count: usize, room: usize, units: u32) -> BestPlan {
        BestPlan {
            count,
            needed: self.needed(),
            room,
            probabilities: if self.summed() { 0 } else { self.sizes.group },
            units,
            plane: self.launcher.plane,
        }
    }

    /// Whether the cubes of a row wait for each other's sums: where the sums are needed, a unit can hold its logits of all heads, and the cubes of a row are no more
    /// than processors, so that all of them run at a time.
    fn together(&self) -> bool {
        let plan = self.sketch_plan(false, true);
        let tiles = self.bound.div_ceil(plan.tile_len());
        !self.summed()
            && self.launcher.side_by_side
            && plan.passes() * plan.held() <= ACCUMULATORS
            && tiles <= self.launcher.processors
    }

    /// Whether [`query_kernel`] chooses the components.
    fn in_advance(&self) -> bool {
        let plan = self.sketch_plan(self.summed(), true);
        let cubes = self.sizes.rows() * self.bound.div_ceil(plan.tile_len());
        self.together() || cubes >= MANY * self.launcher.processors
    }

    /// How tiles are scored.
    fn tile_plan(&self) -> TilePlan {
        let config = self.config;
        let mut sketch = self.sketch_plan(self.summed(), true);
        sketch.query.ready = self.in_advance();
        let room = (self.needed() + SPARE).next_multiple_of(4);
        let room = room.min(sketch.tile_len());
        TilePlan {
            sketch,
            best: self.best_plan(sketch.count(), room, sketch.query.units),
            top_k: config.top_k,
            window: config.local_window,
            alpha: self.alpha() == Alpha::Candidates,
            together: self.together(),
        }
    }

    /// How the kept positions are attended to, and the elements in a vector of K and V.
    fn attend_plan(&self) -> (AttendPlan, usize) {
        // A cube alone on its processor does better with more units; where rows are many, more cubes at a time hide each other's waits.
        let rows = self.sizes.rows();
        let units = match self.launcher.processors {
            most if rows <= most => 2 * FINISH_UNITS,
            most if rows <= 2 * most => FINISH_UNITS,
            _ => FINISH_UNITS / 2,
        };
        // One head leaves registers for more loads at a time.
        let at_once = if self.sizes.group == 1 { 8 } else { 4 };
        self.launcher
            .attend_plan(&self.sizes, self.dtype, units, at_once)
    }

    /// How a step ends, from `tiles` tiles of a row, and the elements in a vector of K and V.
    fn finish_plan(&self, tiles: usize) -> (FinishPlan, usize) {
        let (attend, n) = self.attend_plan();
        let room = self.tile_plan().best.room;
        let loads = (tiles * room / 4).div_ceil(attend.units as usize);
        let vectors = VECTORS.into_iter().find(|&vectors| vectors >= loads);
        let vectors = vectors.unwrap_or(0);
        let plan = FinishPlan {
            attend,
            best: self.best_plan(4 * vectors, self.needed(), attend.units),
            vectors,
            room,
            top_k: self.config.top_k,
            window: self.config.local_window,
            alpha: self.alpha(),
            query: self.query_plan(false, attend.units),
            bits: self.bits(),
            mean_value: self.config.mean_value.applies(self.sizes.group),
            attends: self.until != Until::Selection,
        };
        (plan, n)
    }
}

/// A step that is about to be launched.
pub(super) struct SparqStep<'a> {
    pub plan: SparqPlan<'a>,
    pub q: &'a CubeTensor,
    pub cache: &'a CacheBuffers<CubeBackend>,
}

/// What [`query_kernel`] left.
struct Asked {
    components: CubeTensor,
    weights: CubeTensor,
    arrivals: CubeTensor,
}

/// What [`heads_kernel`] left, a row in so many tiles of so many positions.
struct HeadSums {
    stats: CubeTensor,
    tiles: usize,
    tile_len: usize,
}

/// What [`tile_kernel`] left, likewise.
struct Candidates {
    scores: CubeTensor,
    places: CubeTensor,
    stats: CubeTensor,
    tiles: usize,
    tile_len: usize,
}

impl SparqStep<'_> {
    /// Launches everything.
    pub fn run(&self) -> SparqOutputBuffers<CubeBackend> {
        let (launcher, sizes, config) = (self.plan.launcher, &self.plan.sizes, self.plan.config);
        let asked = self.ask();
        let heads = match self.plan.summed() {
            true => self.no_sums(),
            false if self.plan.together() => self.sums_of_tiles(&self.plan.tile_plan().sketch),
            false => self.sum_heads(&asked, true),
        };
        let candidates = self.score_tiles(&asked, &heads);
        let width = config.top_k.min(self.plan.bound);
        let output = launcher.empty(self.q.shape(), self.q.dtype);
        let positions =
            launcher.empty(Shape::new([sizes.batch, sizes.kv_heads, width]), DType::I32);
        let alpha = launcher.empty(
            Shape::new([sizes.batch, sizes.kv_heads * sizes.group]),
            DType::F32,
        );
        let found = SparqOutputBuffers {
            output,
            positions,
            alpha,
        };
        if self.plan.until != Until::Scores {
            let heads = match self.plan.alpha() {
                // As alpha's own logits are added up: a large one that differs in its last bits would make a probability that is not the part of a whole.
                Alpha::Kept => self.sum_heads(&asked, false),
                _ => self.no_sums(),
            };
            self.finish(heads, candidates, width, &found);
        }
        found
    }

    /// The sketch, and what the steps of its codes are.
    fn sketch(&self) -> (&CubeTensor, &CubeTensor) {
        match &self.cache.sketch {
            SketchBuffers::None => {
                panic!("SparQ reads a key sketch, and this cache was made without one")
            }
            // Without codes, the step is not read.
            SketchBuffers::Full(kt) => (kt, &self.cache.v_sum),
            SketchBuffers::Codes {
                codes, scale: step, ..
            } => (codes, step),
        }
    }

    /// The types of the queries and of the sketch.
    fn score_types(&self) -> [ElemType; 2] {
        [self.q.dtype, self.sketch().0.dtype].map(dtype_to_storage_type)
    }

    /// See [`query_kernel`]; where it does not run, buffers that are not read.
    fn ask(&self) -> Asked {
        let (launcher, sizes) = (self.plan.launcher, &self.plan.sizes);
        let (_, step) = self.sketch();
        let plan = self.plan.tile_plan().sketch.query;
        if !plan.ready {
            return Asked {
                components: self.cache.spans.clone(),
                weights: step.clone(),
                arrivals: launcher.empty(Shape::new([1]), DType::U32),
            };
        }
        let rows = sizes.rows();
        let asked = Asked {
            components: launcher.empty(Shape::new([rows, plan.rank]), DType::U32),
            weights: launcher.empty(Shape::new([rows, plan.rank, plan.heads()]), DType::F32),
            arrivals: launcher.empty(Shape::new([1 + rows]), DType::U32),
        };
        let units = launcher.units(QUERY_UNITS);
        unsafe {
            query_kernel::launch_unchecked(
                &launcher.client,
                cubes(rows),
                CubeDim::new_1d(units),
                asked.weights.required_address_type(),
                self.q.clone().into_tensor_arg(),
                step.clone().into_buffer_arg(),
                asked.components.clone().into_buffer_arg(),
                asked.weights.clone().into_buffer_arg(),
                asked.arrivals.clone().into_buffer_arg(),
                sizes.batch as u32,
                sizes.kv_heads as u32,
                plan.in_advance(units),
                dtype_to_storage_type(self.q.dtype),
            );
        }
        asked
    }

    /// Sums that are not read.
    fn no_sums(&self) -> HeadSums {
        HeadSums {
            stats: self.plan.launcher.empty(Shape::new([1]), DType::F32),
            tiles: 1,
            tile_len: 1,
        }
    }

    /// Room for the sums of every tile.
    fn sums_of_tiles(&self, plan: &SketchPlan) -> HeadSums {
        let sizes = &self.plan.sizes;
        let tile_len = plan.tile_len();
        let tiles = self.plan.bound.div_ceil(tile_len);
        let shape = Shape::new([sizes.rows(), tiles, sizes.group, HEAD_STATS]);
        HeadSums {
            stats: self.plan.launcher.empty(shape, DType::F32),
            tiles,
            tile_len,
        }
    }

    /// See [`heads_kernel`].
    fn sum_heads(&self, asked: &Asked, matrix: bool) -> HeadSums {
        let (launcher, sizes) = (self.plan.launcher, &self.plan.sizes);
        let (sketch, step) = self.sketch();
        let mut plan = self.plan.sketch_plan(false, matrix);
        // What was chosen in advance has a weight for each query that is scored.
        plan.query.ready = self.plan.in_advance() && !self.plan.summed();
        let sums = self.sums_of_tiles(&plan);
        unsafe {
            heads_kernel::launch_unchecked(
                &launcher.client,
                cubes(sizes.rows() * sums.tiles),
                CubeDim::new_1d(plan.query.units),
                sketch.required_address_type(),
                plan.vector,
                self.q.clone().into_tensor_arg(),
                sketch.clone().into_buffer_arg(),
                step.clone().into_buffer_arg(),
                self.cache.spans.clone().into_buffer_arg(),
                asked.components.clone().into_buffer_arg(),
                asked.weights.clone().into_buffer_arg(),
                sums.stats.clone().into_buffer_arg(),
                sizes.batch as u32,
                sizes.kv_heads as u32,
                sizes.capacity as u32,
                sums.tiles as u32,
                plan,
                self.score_types(),
            );
        }
        sums
    }

    /// See [`tile_kernel`].
    fn score_tiles(&self, asked: &Asked, heads: &HeadSums) -> Candidates {
        let (launcher, sizes) = (self.plan.launcher, &self.plan.sizes);
        let (sketch, step) = self.sketch();
        let plan = self.plan.tile_plan();
        let tile_len = plan.sketch.tile_len();
        let tiles = self.plan.bound.div_ceil(tile_len);
        let rows = sizes.rows();
        let candidates = Shape::new([rows, tiles, plan.best.room]);
        let scores = launcher.empty(candidates.clone(), DType::F32);
        let places = launcher.empty(candidates, DType::U32);
        let stats = launcher.empty(Shape::new([rows, tiles, TILE_STATS]), DType::F32);
        unsafe {
            tile_kernel::launch_unchecked(
                &launcher.client,
                cubes(rows * tiles),
                CubeDim::new_1d(plan.sketch.query.units),
                sketch
                    .required_address_type()
                    .max(scores.required_address_type()),
                plan.sketch.vector,
                self.q.clone().into_tensor_arg(),
                sketch.clone().into_buffer_arg(),
                step.clone().into_buffer_arg(),
                self.cache.spans.clone().into_buffer_arg(),
                asked.components.clone().into_buffer_arg(),
                asked.weights.clone().into_buffer_arg(),
                asked.arrivals.clone().into_buffer_arg(),
                heads.stats.clone().into_buffer_arg(),
                scores.clone().into_buffer_arg(),
                places.clone().into_buffer_arg(),
                stats.clone().into_buffer_arg(),
                sizes.batch as u32,
                sizes.kv_heads as u32,
                sizes.capacity as u32,
                tiles as u32,
                plan,
                self.score_types(),
            );
        }
        Candidates {
            scores,
            places,
            stats,
            tiles,
            tile_len,
        }
    }

    /// See [`finish_kernel`].
    fn finish(
        &self,
        heads: HeadSums,
        candidates: Candidates,
        width: usize,
        found: &SparqOutputBuffers<CubeBackend>,
    ) {
        let (launcher, sizes) = (self.plan.launcher, &self.plan.sizes);
        let (sketch, step) = self.sketch();
        let (plan, n) = self.plan.finish_plan(candidates.tiles);
        unsafe {
            finish_kernel::launch_unchecked(
                &launcher.client,
                cubes(sizes.rows()),
                CubeDim::new_1d(plan.attend.units),
                self.cache
                    .k
                    .required_address_type()
                    .max(candidates.scores.required_address_type()),
                n,
                self.q.clone().into_tensor_arg(),
                self.cache.k.clone().into_buffer_arg(),
                self.cache.v.clone().into_buffer_arg(),
                self.cache.v_sum.clone().into_buffer_arg(),
                sketch.clone().into_buffer_arg(),
                step.clone().into_buffer_arg(),
                self.cache.spans.clone().into_buffer_arg(),
                candidates.scores.into_buffer_arg(),
                candidates.places.into_buffer_arg(),
                candidates.stats.into_buffer_arg(),
                heads.stats.into_buffer_arg(),
                found.output.clone().into_buffer_arg(),
                found.positions.clone().into_buffer_arg(),
                found.alpha.clone().into_buffer_arg(),
                sizes.batch as u32,
                sizes.kv_heads as u32,
                sizes.capacity as u32,
                candidates.tiles as u32,
                candidates.tile_len as u32,
                heads.tiles as u32,
                heads.tile_len as u32,
                width as u32,
                plan,
                [self.q.dtype, self.cache.k.dtype, sketch.dtype].map(dtype_to_storage_type),
            );
        }
    }
}
