//! Linear layers over few rows without matrix units: a plane reads the weights of one or two
//! outputs, and multiplies each by several rows of x.
//!
//! Each unit loads several vectors of weights before it uses the first, since the time is that of
//! reading them. The norm needs no launch of its own. Where a row fits into shared memory, each
//! cube norms it first; see [`staged_rows`](crate::backends::cube::parts::staged_rows). Elsewhere
//! the sum of squares adds up beside the products, which are scaled at the end.

use cubecl::prelude::*;

use crate::backends::cube::parts::loads::{issue_loads, load_words};
use crate::backends::cube::parts::projection::{
    Addends, LinearShape, NormKind, NormWeights, ProjectionBlueprint, Tile, UpToThree, finish,
    load_addends, locate_tile, row_width,
};
use crate::backends::cube::parts::reduce::{plane_dim, plane_index, plane_lane, sum_in_plane};
use crate::backends::cube::parts::staged_rows::{Four, StageBlueprint, stage_rows};

/// The settings that the kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LinearRowsBlueprint {
    /// The weights and the outputs.
    pub projection: ProjectionBlueprint,
    /// Rows of x that a plane multiplies at once.
    pub rows: usize,
    /// Rows of weights that a plane reads at once: 1, or 2 neighbours, or a gate and its partner.
    pub outputs: usize,
    /// Vectors of each row of weights that a unit loads before it uses the first.
    pub unroll: usize,
    /// The vectors of a row are no multiple of those that a plane loads at once.
    pub ragged: bool,
    /// See [`issue_loads`].
    pub fenced: bool,
    /// Vectors of a row of x that each cube norms in shared memory first; 0 if the norm scales the
    /// products.
    pub staged: usize,
    /// Tiles of a cube: one for each of its smallest planes.
    pub tiles: usize,
    /// See [`reduce`](crate::backends::cube::parts::reduce).
    pub plane: u32,
}

impl LinearRowsBlueprint {
    /// Outputs of a tile.
    pub fn tile(&self) -> usize {
        match self.projection.gated {
            true => 1,
            false => self.outputs,
        }
    }

    /// The rows of x that a cube norms first.
    fn stage(&self) -> StageBlueprint {
        StageBlueprint {
            norm: self.projection.norm,
            rows: self.rows,
            vectors: self.staged,
            units: self.tiles as u32 * self.plane,
            plane: self.plane,
        }
    }

    /// The norm that scales the products.
    fn norm_of_products(&self) -> NormKind {
        match self.staged {
            0 => self.projection.norm,
            _ => NormKind::None,
        }
    }
}

/// Computes linear layers with their norm and epilogue: `out` [rows, outputs].
///
/// x [rows, in] and the weights [out, in] come in vectors of N elements. The cubes of a block of
/// rows follow each other, so that they share what they read of the weights.
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn linear_rows_kernel<E: Float, N: Size>(
    x: &[Vector<E, N>],
    norm: &NormWeights<Vector<E, N>>,
    weights: &UpToThree<Vector<E, N>>,
    biases: &UpToThree<E>,
    residual: &[E],
    out: &mut [E],
    shape: &LinearShape,
    #[comptime] plan: LinearRowsBlueprint,
    #[define(E)] _type: ElemType,
) {
    let rows = shape.rows as usize;
    let blocks = rows.div_ceil(plan.rows);
    let block = CUBE_POS % blocks;
    let first = CUBE_POS / blocks * plan.tiles;
    let begin = block * plan.rows;
    let staged = stage_rows::<E, N>(x, norm, shape, begin, plan.stage());
    let planes = (CUBE_DIM / plane_dim(plan.plane)) as usize;
    let mut own = plane_index(plan.plane) as usize;
    while own < plan.tiles {
        let tile = locate_tile(shape, first + own, plan.tile(), plan.projection);
        if tile.exists {
            let addends = addends_of_tile::<E>(biases, residual, &tile, shape, begin, plan);
            let mut sums = Sums::new(plan);
            let second = min(tile.first + 1, tile.count - 1);
            let reader = Reader::<E, N>::new(x, norm, &staged, shape, begin);
            if comptime!(plan.projection.gated) {
                let (gate, up) = (&weights.first, &weights.second);
                sums.add_row(&reader, gate, up, tile.first, tile.first, plan);
            } else {
                if tile.weight == 0u32 {
                    let weight = &weights.first;
                    sums.add_row(&reader, weight, weight, tile.first, second, plan);
                }
                if comptime!(plan.projection.weights > 1) {
                    if tile.weight == 1u32 {
                        let weight = &weights.second;
                        sums.add_row(&reader, weight, weight, tile.first, second, plan);
                    }
                }
                if comptime!(plan.projection.weights > 2) {
                    if tile.weight == 2u32 {
                        let weight = &weights.third;
                        sums.add_row(&reader, weight, weight, tile.first, second, plan);
                    }
                }
            }
            sums.reduce(plan);
            sums.normalize(shape, plan);
            if plane_lane(plan.plane) == 0u32 {
                write::<E>(out, &sums, &addends, &tile, shape, begin, plan);
            }
        }
        own += planes;
    }
}

/// The operands that a plane reads beside the weights.
#[derive(CubeType)]
struct Reader<'a, E: Float, N: Size> {
    x: &'a [Vector<E, N>],
    norm: &'a NormWeights<Vector<E, N>>,
    /// See [`stage_rows`].
    staged: &'a Shared<[Four]>,
    /// The first row of x.
    begin: usize,
    /// All rows of x.
    rows: usize,
    /// Vectors of a row.
    vectors: usize,
    /// Vectors between two rows of a weight.
    pitch: usize,
}

#[cube]
impl<'a, E: Float, N: Size> Reader<'a, E, N> {
    fn new(
        x: &'a [Vector<E, N>],
        norm: &'a NormWeights<Vector<E, N>>,
        staged: &'a Shared<[Four]>,
        shape: &LinearShape,
        begin: usize,
    ) -> Reader<'a, E, N> {
        Reader::<'a, E, N> {
            x,
            norm,
            staged,
            begin,
            rows: shape.rows as usize,
            vectors: shape.features as usize / N::value(),
            pitch: shape.pitch as usize / N::value(),
        }
    }
}

/// The sums of a unit, and then those of its plane.
#[derive(CubeType)]
struct Sums {
    /// The products, [outputs, rows].
    products: Array<f32>,
    /// The sums of squares of the rows of x, with a norm.
    squares: Array<f32>,
    /// The sums of the rows of x, with a layer norm.
    totals: Array<f32>,
    /// The sums of weights by the norm's scales, [outputs], with a layer norm.
    scales: Array<f32>,
    /// The sums of weights by the norm's shifts, [outputs], with a layer norm.
    shifts: Array<f32>,
}

#[cube]
fn zeros(#[comptime] count: usize) -> Array<f32> {
    let mut all = Array::<f32>::new(count);
    #[unroll]
    for i in 0..count {
        all[i] = 0.0f32;
    }
    all
}

#[cube]
impl Sums {
    fn new(#[comptime] plan: LinearRowsBlueprint) -> Sums {
        Sums {
            products: zeros(comptime!(plan.outputs * plan.rows)),
            squares: zeros(plan.rows),
            totals: zeros(plan.rows),
            scales: zeros(plan.outputs),
            shifts: zeros(plan.outputs),
        }
    }

    /// Adds this unit's part of the products with row `a` of `first`, and row `b` of `second` if
    /// there are two outputs.
    fn add_row<E: Float, N: Size>(
        &mut self,
        reader: &Reader<'_, E, N>,
        first: &[Vector<E, N>],
        second: &[Vector<E, N>],
        a: usize,
        b: usize,
        #[comptime] plan: LinearRowsBlueprint,
    ) {
        let unroll = comptime!(plan.unroll);
        let outputs = comptime!(plan.outputs);
        let lanes = plane_dim(plan.plane) as usize;
        let vectors = reader.vectors;
        let mut begin = plane_lane(plan.plane) as usize;
        // As many rounds in every unit.
        for _ in 0..vectors.div_ceil(lanes * unroll) {
            let mut loaded = Array::<Vector<E, N>>::new(comptime!(unroll * outputs));
            #[unroll]
            for u in 0..unroll {
                let mut at = begin + u * lanes;
                if comptime!(plan.ragged) {
                    at = min(at, vectors - 1);
                }
                loaded[comptime!(u * outputs)] = load(first, a * reader.pitch + at, plan);
                if comptime!(outputs > 1) {
                    loaded[comptime!(u * outputs + 1)] = load(second, b * reader.pitch + at, plan);
                }
            }
            if comptime!(plan.fenced) {
                issue_loads();
            }
            #[unroll]
            for u in 0..unroll {
                let at = begin + u * lanes;
                // Constant unless the row is ragged.
                let valid = comptime!(!plan.ragged).runtime() || at < vectors;
                if valid {
                    self.add_vector(reader, &loaded, at, comptime!(u * outputs), plan);
                }
            }
            begin += lanes * unroll;
        }
    }

    /// Adds the products of the loaded weights from `from` on with vector `at` of each row of x.
    fn add_vector<E: Float, N: Size>(
        &mut self,
        reader: &Reader<'_, E, N>,
        loaded: &Array<Vector<E, N>>,
        at: usize,
        #[comptime] from: usize,
        #[comptime] plan: LinearRowsBlueprint,
    ) {
        let n = N::value();
        let rows = comptime!(plan.rows);
        let norm = comptime!(plan.norm_of_products());
        let mut scales = Vector::<f32, N>::new(1.0f32);
        let mut shifts = Vector::<f32, N>::new(0.0f32);
        if comptime!(norm != NormKind::None) {
            scales = Vector::<f32, N>::cast_from(reader.norm.scale[at]);
        }
        if comptime!(norm == NormKind::Layer) {
            shifts = Vector::<f32, N>::cast_from(reader.norm.shift[at]);
        }
        let mut scaled = Array::<f32>::new(comptime!(rows * n));
        #[unroll]
        for r in 0..comptime!(if plan.staged > 0 { rows } else { 0 }) {
            #[unroll]
            for f in 0..comptime!(n / 4) {
                let four = reader.staged[comptime!((r * n / 4 + f) * plan.staged) + at];
                #[unroll]
                for e in 0..4usize {
                    scaled[comptime!(r * n + f * 4 + e)] = four.extract(e);
                }
            }
        }
        #[unroll]
        for r in 0..comptime!(if plan.staged > 0 { 0 } else { rows }) {
            let row = min(reader.begin + r, reader.rows - 1);
            let vector = reader.x[row * reader.vectors + at];
            #[unroll]
            for e in 0..n {
                let mut value = f32::cast_from(vector.extract(e));
                if comptime!(norm != NormKind::None) {
                    self.squares[r] += value * value;
                    if comptime!(norm == NormKind::Layer) {
                        self.totals[r] += value;
                    }
                    value *= scales.extract(e);
                }
                scaled[comptime!(r * n + e)] = value;
            }
        }
        #[unroll]
        for o in 0..comptime!(plan.outputs) {
            #[unroll]
            for e in 0..n {
                let weight = f32::cast_from(loaded[comptime!(from + o)].extract(e));
                #[unroll]
                for r in 0..rows {
                    self.products[comptime!(o * rows + r)] += weight * scaled[comptime!(r * n + e)];
                }
                if comptime!(norm == NormKind::Layer) {
                    self.scales[o] += weight * scales.extract(e);
                    self.shifts[o] += weight * shifts.extract(e);
                }
            }
        }
    }

    /// Sums over the plane.
    fn reduce(&mut self, #[comptime] plan: LinearRowsBlueprint) {
        #[unroll]
        for i in 0..comptime!(plan.outputs * plan.rows) {
            self.products[i] = sum_in_plane(self.products[i], plan.plane);
        }
        if comptime!(plan.norm_of_products() != NormKind::None) {
            #[unroll]
            for r in 0..comptime!(plan.rows) {
                self.squares[r] = sum_in_plane(self.squares[r], plan.plane);
            }
        }
        if comptime!(plan.norm_of_products() == NormKind::Layer) {
            #[unroll]
            for r in 0..comptime!(plan.rows) {
                self.totals[r] = sum_in_plane(self.totals[r], plan.plane);
            }
            #[unroll]
            for o in 0..comptime!(plan.outputs) {
                self.scales[o] = sum_in_plane(self.scales[o], plan.plane);
                self.shifts[o] = sum_in_plane(self.shifts[o], plan.plane);
            }
        }
    }

    /// Applies the norm to the products.
    fn normalize(&mut self, shape: &LinearShape, #[comptime] plan: LinearRowsBlueprint) {
        if comptime!(plan.norm_of_products() != NormKind::None) {
            let rows = comptime!(plan.rows);
            let features = f32::cast_from(shape.features);
            #[unroll]
            for r in 0..rows {
                let mean = self.totals[r] / features;
                let squares = max(self.squares[r] / features - mean * mean, 0.0f32);
                let factor = 1.0f32 / (squares + shape.epsilon).sqrt();
                #[unroll]
                for o in 0..comptime!(plan.outputs) {
                    let product = self.products[comptime!(o * rows + r)] - mean * self.scales[o];
                    self.products[comptime!(o * rows + r)] = product * factor + self.shifts[o];
                }
            }
        }
    }
}

/// Loads a vector of weights.
#[cube]
fn load<E: Float, N: Size>(
    weights: &[Vector<E, N>],
    at: usize,
    #[comptime] plan: LinearRowsBlueprint,
) -> Vector<E, N> {
    // Without staged rows, loads that the compiler may move were faster: it moves those of x before
    // the fence. On an H200, one row took 29 us instead of 31 for 4096 outputs of 14336 features.
    if comptime!(plan.staged > 0) {
        Vector::reinterpret(load_words(weights, at))
    } else {
        weights[at]
    }
}

/// Loads the addends of a tile's outputs, [outputs, rows].
#[cube]
fn addends_of_tile<E: Float>(
    biases: &UpToThree<E>,
    residual: &[E],
    tile: &Tile,
    shape: &LinearShape,
    begin: usize,
    #[comptime] plan: LinearRowsBlueprint,
) -> Sequence<Addends> {
    let width = row_width(shape, plan.projection);
    let mut all = Sequence::<Addends>::new();
    #[unroll]
    for o in 0..comptime!(plan.tile()) {
        let output = min(tile.first + o, tile.count - 1);
        #[unroll]
        for r in 0..comptime!(plan.rows) {
            let row = min(begin + r, shape.rows as usize - 1);
            let at = row * width + tile.before + output;
            all.push(load_addends::<E>(
                biases,
                residual,
                tile,
                output,
                at,
                plan.projection,
            ));
        }
    }
    all
}

/// Writes the outputs of a tile.
#[cube]
fn write<E: Float>(
    out: &mut [E],
    sums: &Sums,
    addends: &Sequence<Addends>,
    tile: &Tile,
    shape: &LinearShape,
    begin: usize,
    #[comptime] plan: LinearRowsBlueprint,
) {
    let rows = comptime!(plan.rows);
    let width = row_width(shape, plan.projection);
    #[unroll]
    for o in 0..comptime!(plan.tile()) {
        #[unroll]
        for r in 0..rows {
            let output = tile.first + o;
            let row = begin + r;
            if output < tile.count && row < shape.rows as usize {
                let product = sums.products[comptime!(o * rows + r)];
                let mut up = 0.0f32;
                if comptime!(plan.projection.gated) {
                    up = sums.products[comptime!(rows + r)];
                }
                let value = finish(
                    product,
                    up,
                    &addends[comptime!(o * rows + r)],
                    plan.projection,
                );
                out[row * width + tile.before + output] = E::cast_from(value);
            }
        }
    }
}
