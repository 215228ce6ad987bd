//! The blueprints: every decision about a launch, made once from the problem and the device.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::features::Plane;
use cubecl::ir::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind};

use super::kernels::attend_positions::AttendPositionsBlueprint;
use super::kernels::dense::{MOST_SPLITS, MergeBlueprint};
use super::kernels::score_tiles::ScoreTilesBlueprint;
use super::kernels::select_attend::{Alpha, SelectAttendBlueprint};
use super::parts::logits::SketchBlueprint;
use super::parts::online_softmax::AttendBlueprint;
use super::parts::query::QueryBlueprint;
use super::parts::split_attention::SplitBlueprint;
use super::parts::topk::TopKBlueprint;
use super::parts::{cp_async, mma};
use crate::SparqConfig;
use crate::methods::{Components, GroupScore, Magnitude};

/// Bytes of a vector load.
const VECTOR_BYTES: usize = 16;
/// Numbers of an accumulator that a unit holds in registers.
const ACCUMULATORS: usize = 64;

/// Processors assumed for a device that does not report them: those of a large one. With 32, an
/// H100 took up to 1.7 times as long. A small device has not been measured.
const ASSUMED_PROCESSORS: u32 = 128;

/// The target that kernels are compiled for on Hopper, the only architecture with `wgmma`.
const WGMMA_TARGET: &str = "ptx_sm90";

/// Units of the cubes of dense attention.
const DENSE_UNITS: u32 = 128;
/// Units of the cubes that merge the splits of dense attention.
const MERGE_UNITS: u32 = 512;
/// Units of the cubes that select components in a launch of their own.
const CHOOSE_UNITS: u32 = 128;
/// Cubes for each processor from which on that launch pays: its cost is then small beside theirs.
const CUBES_TO_CHOOSE: usize = 6;
/// Units of the cubes that select positions and attend, for a medium number of batch heads. On an
/// H200, 128 units took 3 us longer for 512 batch heads of 4096 positions.
const SELECT_UNITS: u32 = 256;
/// Batch heads for each processor up to which the number is medium.
const MEDIUM_HEADS: usize = 4;

/// Codes of a row that a unit loads at once, for selected positions.
const SELECT_CODES: usize = 8;
/// Rounds of loads from which on the positions of a list are split over cubes.
const ROUNDS_OF_SPLIT: usize = 2;

/// Candidates that a tile has room for beyond those it must pass on. With scores in random order,
/// about so many more reach the lower bound of the top-k.
const SPARE_CANDIDATES: usize = 64;

/// Vectors of four candidates that a unit may hold in registers. The sizes are few, so that a
/// growing cache does not compile one kernel after another.
const CANDIDATE_VECTORS: [usize; 8] = [1, 2, 3, 4, 6, 8, 12, 16];

/// The most tiles of a batch head for which matrix units score one query in small tiles. On an
/// H100, 8 tiles gained 3 us of 61, and 64 lost 7 us of 26.
const FEW_TILES: usize = 16;

/// Units and positions of each in the small tiles of many cubes: half the units of others, which
/// wait for each other less. On an H200, they gained 3 us for 512 batch heads of 4096 positions.
const FEW_UNITS: (u32, usize) = (128, 16);

/// The properties of a device that blueprints depend on.
pub(super) struct DeviceInfo {
    /// The smallest plane, or 1 without plane operations.
    pub plane: u32,
    /// Multiprocessors, or [`ASSUMED_PROCESSORS`].
    pub processors: usize,
    /// The device copies to shared memory asynchronously; see [`cp_async`].
    pub async_copies: bool,
    /// The device supports [`mma`].
    pub mma: bool,
    /// The device supports products of [`fragments`](super::parts::fragments) in half precision.
    pub half_products: bool,
    /// The same in bfloat16.
    pub bfloat_products: bool,
    /// The device supports [`warpgroup`](super::parts::warpgroup).
    pub wgmma: bool,
    /// A cube makes progress while another waits for it, for as many cubes as there are processors.
    /// This holds on CUDA and HIP, which report the number of processors. A software Vulkan runs
    /// one cube after the other.
    pub concurrent_cubes: bool,
    /// The most units of a cube.
    pub max_units: u32,
    /// The most bytes of shared memory of a cube.
    pub max_shared_bytes: usize,
}

impl DeviceInfo {
    pub fn new(client: &Client) -> Self {
        let hardware = &client.properties().hardware;
        let planes = client.features().plane.contains(Plane::Ops);
        let plane = if planes { hardware.plane_size_min } else { 1 };
        let mma_planes = plane == mma::PLANE && hardware.plane_size_max == plane;
        let processors = hardware.num_streaming_multiprocessors;
        let matmul = &client.features().matmul;
        let products = |kind| {
            let element = ElemType::Float(kind);
            let product = MmaConfig {
                a_type: element,
                b_type: element,
                ..mma::PRODUCT
            };
            mma_planes && matmul.ldmatrix.contains(&element) && matmul.mma.contains(&product)
        };
        Self {
            plane,
            processors: processors.unwrap_or(ASSUMED_PROCESSORS) as usize,
            async_copies: client.features().copy_async,
            mma: mma_planes && client.features().matmul.mma.contains(&mma::PRODUCT),
            half_products: products(FloatKind::F16),
            bfloat_products: products(FloatKind::BF16),
            wgmma: client.properties().identity.fingerprint == WGMMA_TARGET,
            concurrent_cubes: processors.is_some(),
            max_units: hardware.max_units_per_cube,
            max_shared_bytes: hardware.max_shared_memory_size,
        }
    }

    /// Returns whether the device loads tiles of this type asynchronously and multiplies them with
    /// [`fragments`](super::parts::fragments).
    pub fn multiplies(&self, dtype: DType) -> bool {
        self.async_copies
            && match dtype {
                DType::F16 => self.half_products,
                DType::BF16 => self.bfloat_products,
                _ => false,
            }
    }

    /// Returns a power of two that the device can run in a cube, `wanted` if possible.
    pub fn units(&self, wanted: u32) -> u32 {
        let most = 1 << self.max_units.ilog2();
        wanted.min(most).max(self.plane)
    }

    /// Returns the units of cubes that attend to selected positions, one cube for each batch head.
    ///
    /// A cube alone on its processor gains from more units. With many batch heads, more cubes in
    /// flight hide each other's latency.
    fn select_units(&self, batch_heads: usize) -> u32 {
        match self.processors {
            most if batch_heads <= most => 2 * SELECT_UNITS,
            most if batch_heads <= MEDIUM_HEADS * most => SELECT_UNITS,
            _ => SELECT_UNITS / 2,
        }
    }

    /// Returns how the splits of rows are merged.
    pub fn merge(&self, sizes: &Sizes) -> MergeBlueprint {
        MergeBlueprint {
            group: sizes.group,
            head_dim: sizes.head_dim,
            units: self.units(MERGE_UNITS),
            plane: self.plane,
        }
    }

    /// Returns how cubes attend to positions exactly. `dtype` is the type of the rows, u32 if they
    /// are words of codes.
    fn attend(&self, sizes: &Sizes, dtype: DType, wanted: &Attention) -> AttendBlueprint {
        let coded = dtype == DType::U32;
        let vector = if coded {
            wanted.codes
        } else {
            VECTOR_BYTES / dtype.size()
        };
        let vector = vector.min(1 << sizes.head_dim.trailing_zeros());
        let row = sizes.head_dim / vector;
        let lanes = row.next_power_of_two().min(self.plane as usize);
        let vectors = row.div_ceil(lanes);
        let units = match self.plane {
            1 => self.units(32),
            _ => self.units(wanted.units),
        };
        let held = ACCUMULATORS / (vectors * vector);
        let mut attend = AttendBlueprint {
            group: sizes.group,
            head_dim: sizes.head_dim,
            heads: heads_per_pass(sizes.group, held.min(wanted.heads)),
            vector,
            coded,
            // Only CUDA copies asynchronously.
            permutes: self.async_copies,
            lanes,
            vectors,
            rows_at_once: 1,
            units,
            plane: self.plane,
        };
        // The larger part of the shared memory is for the rest of the kernel.
        let most = self.max_shared_bytes / 3;
        while attend.shared_bytes() > most && attend.units > self.plane {
            attend.units /= 2;
        }
        let rows = wanted.positions.div_ceil(attend.groups());
        attend.rows_at_once = (wanted.vectors_at_once / vectors).min(rows).max(1);
        attend
    }
}

/// The sizes that a kernel asks for in its exact attention.
struct Attention {
    /// Units of a cube, if the device can run so many.
    units: u32,
    /// Codes of 8 bits in a vector. 16 take twice as many registers as 8 do: more than a unit has
    /// in a cube of 512.
    codes: usize,
    /// The most query heads of a pass.
    heads: usize,
    /// Vectors of K that a unit loads before it uses the first, about.
    vectors_at_once: usize,
    /// The most positions of a cube. Units load no rows past them.
    positions: usize,
}

/// The sizes of a cache and of the queries to it.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    /// B.
    pub batch: usize,
    /// H_kv.
    pub kv_heads: usize,
    /// g.
    pub group: usize,
    /// d.
    pub head_dim: usize,
    /// S_max.
    pub capacity: usize,
}

impl Sizes {
    /// Takes the sizes of a cache from its keys; `heads` is the number of query heads.
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

    /// The number of batch heads.
    pub fn batch_heads(&self) -> usize {
        self.batch * self.kv_heads
    }
}

/// Returns the heads of a pass: at most `most`, and about as many in each pass.
fn heads_per_pass(group: usize, most: usize) -> usize {
    let passes = group.div_ceil(most.clamp(1, 8));
    group.div_ceil(passes)
}

/// A decode step with dense attention.
pub(super) struct DenseStep {
    pub dense: SplitBlueprint,
    /// Splits of a sequence.
    pub splits: usize,
    /// How the splits are merged, unless there is only one.
    pub merge: MergeBlueprint,
}

impl DenseStep {
    /// Plans a step over at most `bound` positions of a cache with rows of type `dtype`, u32 if
    /// they are words of codes.
    pub fn new(sizes: &Sizes, dtype: DType, bound: usize, device: &DeviceInfo) -> Self {
        let wanted = Attention {
            units: DENSE_UNITS,
            codes: VECTOR_BYTES,
            heads: sizes.group,
            vectors_at_once: 4,
            positions: usize::MAX,
        };
        let attend = device.attend(sizes, dtype, &wanted);
        // Enough cubes for all processors, however short the splits. With long splits more cubes,
        // so that no processor runs out of work long before the others.
        let cubes_of = |cubes: usize| device.processors * cubes / sizes.batch_heads();
        let short = cubes_of(6).min(bound.div_ceil(64));
        let long = cubes_of(16).min(bound / 1024);
        let splits = short.max(long).clamp(1, MOST_SPLITS);
        Self {
            dense: SplitBlueprint {
                attend,
                single: splits == 1,
            },
            splits,
            merge: device.merge(sizes),
        }
    }
}

/// A decode step over positions that another layer selected.
pub(super) struct PositionsStep {
    pub attend: AttendPositionsBlueprint,
    /// How the splits are merged, unless there is only one.
    pub merge: MergeBlueprint,
}

impl PositionsStep {
    /// Plans a step over lists of `k` positions and rows of type `dtype`, u32 if they are words of
    /// codes; `None` if the kernel needs more shared memory than a cube has.
    pub fn new(sizes: &Sizes, dtype: DType, k: usize, device: &DeviceInfo) -> Option<Self> {
        // Arithmetic takes longer than the loads if few cubes run. Up to one cube for each
        // processor, the heads of a group are shared between cubes.
        let batch_heads = sizes.batch_heads();
        let cubes = (device.processors / batch_heads.max(1)).clamp(1, sizes.group);
        let heads = sizes.group.div_ceil(cubes);
        let wanted = Attention {
            units: device.select_units(batch_heads),
            codes: SELECT_CODES,
            heads,
            vectors_at_once: if heads <= 2 { 8 } else { 4 },
            positions: k,
        };
        let attend = device.attend(sizes, dtype, &wanted);
        let cubes = batch_heads * attend.passes();
        let round = attend.groups() * attend.rows_at_once;
        let most = (device.processors / cubes.max(1)).clamp(1, MOST_SPLITS);
        let splits = k.div_ceil(ROUNDS_OF_SPLIT * round).clamp(1, most);
        let attend = AttendPositionsBlueprint {
            split: SplitBlueprint {
                attend,
                single: splits == 1,
            },
            k,
            splits,
        };
        let fits = attend.shared_bytes() <= device.max_shared_bytes;
        fits.then(|| Self {
            attend,
            merge: device.merge(sizes),
        })
    }
}

/// The last stage of a SparQ step that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "stages"), allow(dead_code))]
pub enum Until {
    /// The approximate scores. Only for timing: nothing comes of it.
    Scores,
    /// The selected positions. Only for timing.
    Selection,
    /// The output.
    Output,
}

/// A SparQ decode step: all that its blueprint depends on, apart from the device.
pub(super) struct SparqProblem<'a> {
    pub config: &'a SparqConfig,
    pub sizes: Sizes,
    /// The type of the rows, u32 if they are words of codes.
    pub dtype: DType,
    /// The type of the sketch.
    pub sketch: DType,
    /// An upper bound on the length of the longest sequence.
    pub bound: usize,
    /// The selected positions and alpha are wanted.
    pub trace: bool,
    pub until: Until,
}

/// The launches of a SparQ decode step, in their order.
pub(super) struct SparqStep {
    /// Selects the components of all batch heads. Without it, each cube selects them for itself.
    pub choose: Option<QueryBlueprint>,
    /// Computes the softmax sums of the heads before tiles are scored, for summed probabilities
    /// whose cubes do not wait for each other.
    pub softmax_heads: Option<SketchBlueprint>,
    /// Scores the tiles.
    pub score_tiles: ScoreTilesBlueprint,
    /// An upper bound on the length of the longest sequence.
    pub bound: usize,
    /// Tiles of a batch head that score up to `bound` positions.
    pub tiles: usize,
    /// Computes the softmax sums of the heads for alpha.
    pub softmax_alpha: Option<SketchBlueprint>,
    /// Selects positions and attends to them.
    pub select_attend: SelectAttendBlueprint,
    /// Positions that the output has room for.
    pub width: usize,
    pub until: Until,
}

impl SparqStep {
    /// Plans the step; `None` if a kernel needs more shared memory than a cube has.
    pub fn new(problem: &SparqProblem<'_>, device: &DeviceInfo) -> Option<Self> {
        let planner = Planner { problem, device };
        let sketch = planner.sketch(planner.summed(), true);
        let tiles = problem.bound.div_ceil(sketch.tile_len());
        let together = planner.together();
        let cubes = problem.sizes.batch_heads() * tiles;
        let chosen = together || planner.is_many(cubes);
        let score_tiles = planner.score_tiles(sketch, chosen, together);
        let select_attend = planner.select_attend(tiles, score_tiles.top_k.room);
        let most = select_attend.shared_bytes().max(score_tiles.shared_bytes());
        if most > device.max_shared_bytes {
            return None;
        }
        let softmax = |mma: bool| {
            let mut sketch = planner.sketch(false, mma);
            // An earlier launch writes one weight for each query that is scored. The sum of the
            // group has no weights for its heads.
            sketch.query.chosen = chosen && !planner.summed();
            sketch
        };
        Some(Self {
            choose: chosen.then(|| {
                let units = device.units(CHOOSE_UNITS);
                score_tiles.sketch.query.in_own_launch(units)
            }),
            softmax_heads: (!planner.summed() && !together).then(|| softmax(true)),
            // alpha computes its logits without matrix units, and so do its sums. If a large logit
            // differed from its own sum in the last bits, its probability would exceed 1.
            softmax_alpha: (planner.alpha() == Alpha::Selected).then(|| softmax(false)),
            score_tiles,
            bound: problem.bound,
            tiles,
            select_attend,
            width: problem.config.top_k.min(problem.bound),
            until: problem.until,
        })
    }
}

/// Decides for one problem on one device.
struct Planner<'a> {
    problem: &'a SparqProblem<'a>,
    device: &'a DeviceInfo,
}

impl Planner<'_> {
    /// Bits of the sketch's codes; 0 for a copy of K.
    fn bits(&self) -> usize {
        self.problem.config.sketch.bits().unwrap_or(0)
    }

    /// Returns whether the sum of the group's logits ranks a position: it is the logit of one
    /// query, the sum of the heads' queries.
    fn summed(&self) -> bool {
        self.problem.sizes.group == 1 || self.problem.config.group_score == GroupScore::Logits
    }

    /// Returns whether the mean value is added to the output.
    fn mean_value(&self) -> bool {
        let problem = self.problem;
        problem.config.mean_value.applies(problem.sizes.group)
    }

    fn alpha(&self) -> Alpha {
        match self.problem.trace || self.mean_value() {
            false => Alpha::None,
            true if self.problem.sizes.group == 1 => Alpha::Candidates,
            true => Alpha::Selected,
        }
    }

    /// Positions to select beside the local window: k - l, and at least 1.
    fn needed(&self) -> usize {
        let config = self.problem.config;
        (config.top_k - config.local_window).max(1)
    }

    fn query(&self, summed: bool, units: u32) -> QueryBlueprint {
        let (config, sizes) = (self.problem.config, &self.problem.sizes);
        QueryBlueprint {
            group: sizes.group,
            head_dim: sizes.head_dim,
            rank: config.rank,
            abs_sum: config.components == Components::AbsSum,
            contribution: config.magnitude == Magnitude::Contribution && self.bits() > 0,
            summed,
            coded: self.bits() > 0,
            chosen: false,
            units,
            plane: self.device.plane,
        }
    }

    /// Returns the units of a cube and the positions of a unit that read the sketch.
    ///
    /// A unit has 16 positions, or 8 if that leaves processors without work.
    fn tile_size(&self, summed: bool, mma: bool) -> (u32, usize) {
        let sizes = [(256, 16), (256, 8), (128, 8)];
        let tiles_of = |(units, positions): (u32, usize)| {
            let tile_len = self.device.units(units) as usize * positions;
            self.problem.bound.div_ceil(tile_len)
        };
        let small = match (summed, mma) {
            // Several heads take as many more registers.
            (false, false) => true,
            // More cubes in flight hide more latency of matrix units, unless their candidates are
            // too many for the cube that selects among them.
            (true, true) => tiles_of(sizes[1]) <= FEW_TILES,
            _ => false,
        };
        if small && mma && summed && self.is_many(self.cubes(tiles_of(FEW_UNITS))) {
            return FEW_UNITS;
        }
        let sizes = if small { &sizes[1..] } else { &sizes[..] };
        let found = sizes
            .iter()
            .find(|&&size| self.cubes(tiles_of(size)) >= self.device.processors / 2);
        *found.unwrap_or(&sizes[sizes.len() - 1])
    }

    /// Returns whether so many cubes keep all processors busy for a while.
    fn is_many(&self, cubes: usize) -> bool {
        cubes >= CUBES_TO_CHOOSE * self.device.processors
    }

    /// The cubes of a launch with `tiles` tiles of each batch head.
    fn cubes(&self, tiles: usize) -> usize {
        self.problem.sizes.batch_heads() * tiles
    }

    /// Returns how the sketch is read, for the sum of the heads' queries or for each of them. `mma`
    /// allows matrix units.
    fn sketch(&self, summed: bool, mma: bool) -> SketchBlueprint {
        let (device, bits, rank) = (self.device, self.bits(), self.problem.config.rank);
        let mma = mma && bits == 4 && device.mma;
        let (units, positions) = self.tile_size(summed, mma);
        let query = self.query(summed, device.units(units));
        let vector = match bits {
            0 => VECTOR_BYTES / self.problem.sketch.size(),
            // Four lanes share words.
            4 if mma && query.heads() == 1 && rank <= 64 => 4,
            4 if mma => 2,
            _ => positions * bits / 32,
        };
        let vectors = match bits {
            0 => positions / vector,
            _ if mma => positions / (2 * vector),
            _ => 1,
        };
        let tile_len = query.units as usize * positions;
        let alone = self.cubes(self.problem.bound.div_ceil(tile_len)) <= 2 * device.processors;
        // 4-bit codes are so few bytes that loads into registers measured faster.
        let pipelined = device.async_copies && bits != 4;
        let groups_ahead = match pipelined {
            false => 0,
            true if alone => cp_async::GROUPS_ALONE,
            true => cp_async::GROUPS_SHARED,
        };
        let unroll = match bits {
            _ if pipelined => cp_async::GROUP / vectors,
            0 if summed => 16 / vectors,
            _ => 8,
        };
        SketchBlueprint {
            query,
            bits,
            vector,
            vectors,
            heads: heads_per_pass(query.heads(), ACCUMULATORS / positions),
            unroll: unroll.min(rank),
            mma,
            groups_ahead,
        }
    }

    /// Returns whether the cubes of a batch head wait for each other's softmax sums.
    ///
    /// They do if the sums are needed, a unit can hold its logits of all heads, and the cubes of a
    /// batch head are no more than the processors, so that all of them run at the same time.
    fn together(&self) -> bool {
        let sketch = self.sketch(false, true);
        let tiles = self.problem.bound.div_ceil(sketch.tile_len());
        !self.summed()
            && self.device.concurrent_cubes
            && sketch.passes() * sketch.held() <= ACCUMULATORS
            && tiles <= self.device.processors
    }

    fn top_k(&self, count: usize, room: usize, units: u32) -> TopKBlueprint {
        TopKBlueprint {
            count,
            needed: self.needed(),
            room,
            probabilities: match self.summed() {
                true => 0,
                false => self.problem.sizes.group,
            },
            units,
            plane: self.device.plane,
        }
    }

    fn score_tiles(
        &self,
        mut sketch: SketchBlueprint,
        chosen: bool,
        together: bool,
    ) -> ScoreTilesBlueprint {
        let config = self.problem.config;
        sketch.query.chosen = chosen;
        let room = (self.needed() + SPARE_CANDIDATES).next_multiple_of(4);
        let room = room.min(sketch.tile_len());
        ScoreTilesBlueprint {
            top_k: self.top_k(sketch.count(), room, sketch.query.units),
            sketch,
            k: config.top_k,
            window: config.local_window,
            alpha: self.alpha() == Alpha::Candidates,
            together,
        }
    }

    /// Returns how positions are selected from `tiles` tiles of `room` candidates and attended to.
    fn select_attend(&self, tiles: usize, room: usize) -> SelectAttendBlueprint {
        let (config, sizes) = (self.problem.config, &self.problem.sizes);
        let wanted = Attention {
            units: self.device.select_units(sizes.batch_heads()),
            codes: SELECT_CODES,
            heads: sizes.group,
            // One head leaves registers for more loads in flight.
            vectors_at_once: if sizes.group == 1 { 8 } else { 4 },
            positions: config.top_k,
        };
        let attend = (self.device).attend(sizes, self.problem.dtype, &wanted);
        let loads = (tiles * room / 4).div_ceil(attend.units as usize);
        let vectors = CANDIDATE_VECTORS
            .into_iter()
            .find(|&vectors| vectors >= loads);
        let vectors = vectors.unwrap_or(0);
        SelectAttendBlueprint {
            attend,
            top_k: self.top_k(4 * vectors, self.needed(), attend.units),
            vectors,
            room,
            k: config.top_k,
            window: config.local_window,
            alpha: self.alpha(),
            query: self.query(false, attend.units),
            bits: self.bits(),
            mean_value: self.mean_value(),
            attends: self.problem.until == Until::Output,
        }
    }
}
