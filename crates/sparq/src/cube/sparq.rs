//! How a SparQ step is launched: which kernels, with what between them.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::attend::AttendPlan;
use super::finish::{Source, alpha_kernel, finish_kernel};
use super::launch::{ACCUMULATORS, Launcher, Sizes, VECTOR, cubes, passes};
use super::score::{ScorePlan, score_kernel};
use super::select::SelectPlan;
use super::spread::{STATE, emit_kernel, histogram_kernel};
use super::tile::{TILE_STATS, TilePlan, tile_kernel};
use crate::op::{CacheBuffers, Extent, SketchBuffers, SparqOutputBuffers};
use crate::{Components, GroupScore, SparqConfig};

/// Units of the cubes that choose and attend, in the middle.
const FINISH_UNITS: u32 = 256;
/// Candidates that a tile has room for beyond those it must name: what usually shares a bin with the last of them.
const SPARE: usize = 64;

/// Vectors of four candidates that a unit may hold in registers.
const VECTORS: [usize; 8] = [1, 2, 3, 4, 6, 8, 12, 16];

/// What a step is compiled for, of which the sizes, types and settings decide.
pub(super) struct SparqPlan<'a> {
    pub launcher: &'a Launcher,
    /// How far to go.
    pub extent: Extent,
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

    /// Whether one number ranks a position.
    fn one_score(&self) -> bool {
        let logits = self.config.group_score == GroupScore::Logits;
        // The mean value takes the alpha of every head, and that their logits.
        self.sizes.group == 1 || (logits && !self.config.mean_value.applies(self.sizes.group))
    }

    /// Whether the kernels have room in a cube's shared memory.
    pub fn fits(&self) -> bool {
        let launcher = self.launcher;
        let (attend, _) = self.attend_plan();
        let choice = self.select_plan(attend.units);
        let reductions = 4 * (self.sizes.group + (attend.units / launcher.plane) as usize);
        let finish = attend.shared_bytes() + choice.shared_bytes() + reductions;
        let score = 4 * ((self.sizes.group + 1) * (self.config.rank + self.sizes.head_dim) + 256);
        let tile = match self.one_score() {
            true => self.tile_plan().0.shared_bytes(),
            false => 0,
        };
        let most = launcher.client.properties().hardware.max_shared_memory_size;
        finish.max(score).max(tile) <= most
    }

    fn score_plan(&self) -> ScorePlan {
        ScorePlan {
            group: self.sizes.group,
            head_dim: self.sizes.head_dim,
            rank: self.config.rank,
            abs_sum: self.config.components == Components::AbsSum,
            heads: 1,
            bits: self.bits(),
            unroll: self.config.rank.min(16),
            clear: false,
            units: 0,
            plane: self.launcher.plane,
        }
    }

    fn select_plan(&self, units: u32) -> SelectPlan {
        let (group, config) = (self.sizes.group, self.config);
        SelectPlan {
            group,
            probabilities: group > 1 && config.group_score == GroupScore::Probabilities,
            top_k: config.top_k,
            window: config.local_window,
            candidates: 512,
            units,
            plane: self.launcher.plane,
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

    /// Whether the tiles leave what alpha takes.
    fn alpha_of_tiles(&self) -> bool {
        self.sizes.group == 1 && (self.extent == Extent::Trace || self.config.mean_value.applies(1))
    }

    /// How tiles are scored, and the elements in a vector of the sketch.
    fn tile_plan(&self) -> (TilePlan, usize) {
        let (launcher, config) = (self.launcher, self.config);
        let bits = self.bits();
        let mut score = self.score_plan();
        // A unit has 16 positions, or 8 where that is too much for all processors to have work: in vectors of 16 bytes for keys, in words for codes.
        let of = |positions: usize| match bits {
            0 => {
                let n = VECTOR / self.dtype.size();
                (n, positions / n)
            }
            _ => (positions * bits / 32, 1),
        };
        let enough = launcher.processors / 2;
        let sizes = [(256, 16), (256, 8), (128, 8)];
        let busy = |&(units, positions): &(u32, usize)| {
            let tile = launcher.units(units) as usize * positions;
            self.sizes.rows() * self.bound.div_ceil(tile) >= enough
        };
        let (units, positions) = sizes.into_iter().find(busy).unwrap_or(sizes[2]);
        let (n, vectors) = of(positions);
        score.units = launcher.units(units);
        score.unroll = config.rank.min(match bits {
            0 => 16 / vectors,
            _ => 8,
        });
        let needed = (config.top_k - config.local_window).max(1);
        let tile_len = score.units as usize * positions;
        let plan = TilePlan {
            score,
            vectors,
            top_k: config.top_k,
            window: config.local_window,
            needed,
            room: (needed + SPARE).next_multiple_of(4).min(tile_len),
            alpha: self.alpha_of_tiles(),
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

/// What the scores of a step are found in.
struct Scored {
    source: Source,
    /// Logits, or the candidates' scores.
    scores: CubeTensor,
    stats: CubeTensor,
    tiles: usize,
    tile_len: usize,
    state: CubeTensor,
    /// Positions above the border, or of the candidates.
    above: CubeTensor,
    border: CubeTensor,
}

impl SparqStep<'_> {
    /// Launches everything.
    pub fn run(&self) -> SparqOutputBuffers<CubeBackend> {
        let (launcher, sizes, config) = (self.plan.launcher, &self.plan.sizes, self.plan.config);
        let scored = match self.plan.one_score() {
            true => self.score_tiles(),
            false => self.spread(self.score_heads()),
        };
        let width = config.top_k.min(self.plan.bound);
        let output = launcher.empty(self.q.shape(), self.q.dtype);
        let positions =
            launcher.empty(Shape::new([sizes.batch, sizes.kv_heads, width]), DType::I32);
        let alpha = launcher.empty(
            Shape::new([sizes.batch, sizes.kv_heads * sizes.group]),
            DType::F32,
        );
        if self.plan.extent == Extent::Scores {
            return SparqOutputBuffers {
                output,
                positions,
                alpha,
            };
        }
        let (attend, n) = self.plan.attend_plan();
        let tiled = matches!(scored.source, Source::Candidates { .. });
        let choice = match tiled {
            true => SelectPlan {
                group: 1,
                probabilities: false,
                ..self.plan.select_plan(attend.units)
            },
            false => self.plan.select_plan(attend.units),
        };
        let alpha_known = !tiled || self.plan.alpha_of_tiles();
        unsafe {
            finish_kernel::launch_unchecked(
                &launcher.client,
                cubes(sizes.rows()),
                CubeDim::new_1d(attend.units),
                self.cache
                    .k
                    .required_address_type()
                    .max(scored.scores.required_address_type()),
                n,
                self.q.clone().into_tensor_arg(),
                self.cache.k.clone().into_buffer_arg(),
                self.cache.v.clone().into_buffer_arg(),
                self.cache.v_sum.clone().into_buffer_arg(),
                self.cache.spans.clone().into_buffer_arg(),
                scored.scores.into_buffer_arg(),
                scored.stats.into_buffer_arg(),
                scored.state.into_buffer_arg(),
                scored.above.into_buffer_arg(),
                scored.border.into_buffer_arg(),
                output.clone().into_buffer_arg(),
                positions.clone().into_buffer_arg(),
                alpha.clone().into_buffer_arg(),
                sizes.batch as u32,
                sizes.kv_heads as u32,
                sizes.capacity as u32,
                scored.tiles as u32,
                scored.tile_len as u32,
                width as u32,
                config.mean_value.applies(sizes.group),
                alpha_known,
                self.plan.extent != Extent::Choice,
                scored.source,
                choice,
                attend,
                [
                    dtype_to_storage_type(self.q.dtype),
                    dtype_to_storage_type(self.cache.k.dtype),
                ],
            );
        }
        if self.plan.extent == Extent::Trace && !alpha_known {
            self.alpha(&positions, &alpha);
        }
        SparqOutputBuffers {
            output,
            positions,
            alpha,
        }
    }

    /// The alpha of every head where the choice did without the heads' logits: those are computed for it.
    fn alpha(&self, positions: &CubeTensor, alpha: &CubeTensor) {
        let (launcher, sizes) = (self.plan.launcher, &self.plan.sizes);
        let scored = self.score_heads();
        let plan = SelectPlan {
            units: launcher.units(FINISH_UNITS),
            ..self.plan.select_plan(0)
        };
        unsafe {
            alpha_kernel::launch_unchecked(
                &launcher.client,
                cubes(sizes.rows()),
                CubeDim::new_1d(plan.units),
                scored.scores.required_address_type(),
                scored.scores.into_buffer_arg(),
                scored.stats.into_buffer_arg(),
                self.cache.spans.clone().into_buffer_arg(),
                positions.clone().into_buffer_arg(),
                alpha.clone().into_buffer_arg(),
                sizes.batch as u32,
                sizes.kv_heads as u32,
                sizes.capacity as u32,
                scored.tiles as u32,
                scored.tile_len as u32,
                self.plan.config.top_k.min(self.plan.bound) as u32,
                plan,
            );
        }
    }

    /// The sketch, its bits (0 for a copy of K) and what the steps of its codes are.
    fn sketch(&self) -> (&CubeTensor, usize, &CubeTensor) {
        match &self.cache.sketch {
            SketchBuffers::None => {
                panic!("SparQ reads a key sketch, and this cache was made without one")
            }
            // Without codes, the step is not read.
            SketchBuffers::Full(kt) => (kt, 0, &self.cache.v_sum),
            SketchBuffers::Codes {
                bits, codes, step, ..
            } => (codes, *bits, step),
        }
    }

    /// See [`tile_kernel`].
    fn score_tiles(&self) -> Scored {
        let (launcher, sizes) = (self.plan.launcher, &self.plan.sizes);
        let (plan, n) = self.plan.tile_plan();
        let (sketch, _, step) = self.sketch();
        let tile_len = plan.score.units as usize * n * plan.score.per_element() * plan.vectors;
        let tiles = self.plan.bound.div_ceil(tile_len);
        let rows = sizes.rows();
        let loads = (tiles * plan.room / 4).div_ceil(self.plan.attend_plan().0.units as usize);
        // Few sizes, so that a growing cache does not ask for one kernel after another.
        let vectors = VECTORS.into_iter().find(|&vectors| vectors >= loads);
        let vectors = vectors.unwrap_or(0);
        let candidates = Shape::new([rows, tiles, plan.room]);
        let scores = launcher.empty(candidates.clone(), DType::F32);
        let places = launcher.empty(candidates, DType::U32);
        let stats = launcher.empty(Shape::new([rows, tiles, TILE_STATS]), DType::F32);
        unsafe {
            tile_kernel::launch_unchecked(
                &launcher.client,
                cubes(rows * tiles),
                CubeDim::new_1d(plan.score.units),
                sketch
                    .required_address_type()
                    .max(scores.required_address_type()),
                n,
                self.q.clone().into_tensor_arg(),
                sketch.clone().into_buffer_arg(),
                step.clone().into_buffer_arg(),
                self.cache.spans.clone().into_buffer_arg(),
                scores.clone().into_buffer_arg(),
                places.clone().into_buffer_arg(),
                stats.clone().into_buffer_arg(),
                sizes.batch as u32,
                sizes.kv_heads as u32,
                sizes.capacity as u32,
                tiles as u32,
                1.0f32.to_bits(),
                plan,
                [
                    dtype_to_storage_type(self.q.dtype),
                    dtype_to_storage_type(sketch.dtype),
                ],
            );
        }
        let none = || launcher.empty(Shape::new([1]), DType::U32);
        Scored {
            source: Source::Candidates {
                room: plan.room,
                vectors,
            },
            scores,
            stats,
            tiles,
            tile_len,
            state: none(),
            above: places,
            border: none(),
        }
    }

    /// Whether the choice is divided among many cubes: two more launches pay where few cubes would otherwise go through many scores (measured on an
    /// H100).
    fn spreads(&self) -> bool {
        self.plan.bound * self.plan.sizes.group > 32768
            && self.plan.sizes.rows() <= self.plan.launcher.processors
    }

    /// See [`score_kernel`].
    fn score_heads(&self) -> Scored {
        let (launcher, sizes) = (self.plan.launcher, &self.plan.sizes);
        let (rows, group) = (sizes.rows(), sizes.group);
        let (sketch, bits, step) = self.sketch();
        let mut plan = self.plan.score_plan();
        let each = plan.per_element();
        let n = match bits {
            0 => VECTOR / sketch.dtype.size(),
            _ => {
                let fits = |words: &usize| group * words * each <= ACCUMULATORS;
                [4, 2].into_iter().find(fits).unwrap_or(1)
            }
        };
        let count = n * each;
        plan.heads = passes(group, ACCUMULATORS / count);
        plan.units = self.score_units(rows, self.plan.bound.div_ceil(count));
        plan.clear = self.spreads();
        let tile_len = plan.units as usize * count;
        let tiles = self.plan.bound.div_ceil(tile_len);
        let logits = launcher.empty(Shape::new([rows, group, sizes.capacity]), DType::F32);
        let stats = launcher.empty(Shape::new([rows, tiles, group, 2]), DType::F32);
        let state = match plan.clear {
            true => launcher.empty(Shape::new([rows, STATE]), DType::U32),
            false => launcher.empty(Shape::new([1]), DType::U32),
        };
        unsafe {
            score_kernel::launch_unchecked(
                &launcher.client,
                cubes(rows * tiles),
                CubeDim::new_1d(plan.units),
                sketch
                    .required_address_type()
                    .max(logits.required_address_type()),
                n,
                self.q.clone().into_tensor_arg(),
                sketch.clone().into_buffer_arg(),
                step.clone().into_buffer_arg(),
                self.cache.spans.clone().into_buffer_arg(),
                logits.clone().into_buffer_arg(),
                stats.clone().into_buffer_arg(),
                state.clone().into_buffer_arg(),
                sizes.batch as u32,
                sizes.kv_heads as u32,
                sizes.capacity as u32,
                tiles as u32,
                plan,
                [
                    dtype_to_storage_type(self.q.dtype),
                    dtype_to_storage_type(sketch.dtype),
                ],
            );
        }
        Scored {
            source: Source::Logits,
            scores: logits,
            stats,
            tiles,
            tile_len,
            above: state.clone(),
            border: state.clone(),
            state,
        }
    }

    /// See [`histogram_kernel`] and [`emit_kernel`]; nothing where a cube for each row does better.
    fn spread(&self, scored: Scored) -> Scored {
        if !self.spreads() {
            return scored;
        }
        let (launcher, sizes, bound) = (self.plan.launcher, &self.plan.sizes, self.plan.bound);
        let rows = sizes.rows();
        let plan = self.plan.select_plan(launcher.units(256));
        let part_len = 4 * plan.units as usize * if rows * bound > 1 << 20 { 4 } else { 1 };
        let parts = bound.div_ceil(part_len);
        let above = launcher.empty(Shape::new([rows, self.plan.config.top_k]), DType::U32);
        let border = launcher.empty(Shape::new([rows, plan.candidates, 2]), DType::U32);
        let logits = &scored.scores;
        let scores = launcher.empty(Shape::new([rows, sizes.capacity]), DType::F32);
        unsafe {
            histogram_kernel::launch_unchecked(
                &launcher.client,
                cubes(rows * parts),
                CubeDim::new_1d(plan.units),
                logits.required_address_type(),
                logits.clone().into_buffer_arg(),
                scored.stats.clone().into_buffer_arg(),
                self.cache.spans.clone().into_buffer_arg(),
                scores.clone().into_buffer_arg(),
                scored.state.clone().into_buffer_arg(),
                sizes.batch as u32,
                sizes.kv_heads as u32,
                sizes.capacity as u32,
                scored.tiles as u32,
                scored.tile_len as u32,
                parts as u32,
                part_len,
                plan,
            );
            emit_kernel::launch_unchecked(
                &launcher.client,
                cubes(rows * parts),
                CubeDim::new_1d(plan.units),
                logits.required_address_type(),
                scores.into_buffer_arg(),
                scored.stats.clone().into_buffer_arg(),
                self.cache.spans.clone().into_buffer_arg(),
                scored.state.clone().into_buffer_arg(),
                above.clone().into_buffer_arg(),
                border.clone().into_buffer_arg(),
                sizes.batch as u32,
                sizes.kv_heads as u32,
                sizes.capacity as u32,
                scored.tiles as u32,
                scored.tile_len as u32,
                parts as u32,
                part_len,
                plan,
            );
        }
        Scored {
            source: Source::Emitted,
            above,
            border,
            ..scored
        }
    }

    /// Units of a score cube: many where there is work for all processors, few where a row has to be spread.
    fn score_units(&self, rows: usize, vectors: usize) -> u32 {
        let warps = rows * vectors.div_ceil(32);
        let each = warps / (self.plan.launcher.processors * 2);
        self.plan
            .launcher
            .units((each.next_power_of_two() * 32).clamp(64, 256) as u32)
    }
}
