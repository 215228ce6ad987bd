//! Linear layers over up to 32 rows with matrix units: sixteen rows of weights by eight rows of x
//! in one instruction.
//!
//! Weights are the rows of A and rows of x the columns of B. Lane l of `mma.m16n8k16` holds
//! - rows l / 4 and l / 4 + 8 of A and of the result;
//! - features 2 (l % 4) and its neighbour, and both again 8 further on, of A and of B;
//! - column l / 4 of B, and columns 2 (l % 4) and its neighbour of the result.
//!
//! A sum does not depend on the order of its features. A lane loads 16 bytes of a row, which are
//! the features that it holds in two products, and the same 16 bytes of x. So weights go from
//! memory to the matrix units without shared memory.
//!
//! The planes of a cube share its rows of weights and split the features. Their sums are added in
//! shared memory.

use cubecl::cmma::MmaDefinition;
use cubecl::prelude::*;

use crate::backends::cube::parts::loads::{Words, issue_loads, load_words};
use crate::backends::cube::parts::projection::{
    Addends, LinearShape, ProjectionBlueprint, Tile, UpToThree, finish, load_addends, locate_tile,
    row_width,
};

/// Rows of weights of a product.
const WEIGHTS: usize = 16;
/// Rows of weights between the two that a lane holds.
const HALF: usize = WEIGHTS / 2;
/// Rows of x of a product.
pub(crate) const ROWS: usize = 8;
/// Features of a product.
const DEPTH: usize = 16;
/// Units of a plane.
const PLANE: usize = 32;
/// Lanes that load neighbouring vectors of a row.
const MEMBERS: usize = 4;
/// Numbers that a lane holds of a result.
const HELD: usize = 4;

/// Numbers of a half type in [`Words`].
pub(crate) const PER_VECTOR: usize = 8;

/// The settings that the kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LinearMmaBlueprint {
    /// The weights and the outputs. The norm went before: in each cube it would be computed again,
    /// which costs more than its launch.
    pub projection: ProjectionBlueprint,
    /// Rows of A of a cube, in products. With a gate, half of them are its rows.
    pub weight_tiles: usize,
    /// Columns of B of a cube, in products.
    pub row_tiles: usize,
    /// Vectors of each row of weights that a lane loads before it uses the first.
    pub unroll: usize,
    /// The vectors of a row are no multiple of those that a cube loads at once.
    pub ragged: bool,
    /// Planes of a cube.
    pub planes: usize,
    /// See [`issue_loads`].
    pub fenced: bool,
}

impl LinearMmaBlueprint {
    /// Outputs of a cube.
    pub fn tile(&self) -> usize {
        match self.projection.gated {
            true => self.weight_tiles / 2 * WEIGHTS,
            false => self.weight_tiles * WEIGHTS,
        }
    }

    /// Vectors of a row that a cube loads at once.
    pub fn vectors_at_once(&self) -> usize {
        self.planes * self.vectors_of_plane()
    }

    /// Vectors of a row that a plane loads at once.
    fn vectors_of_plane(&self) -> usize {
        MEMBERS * self.unroll
    }

    /// Sums of a plane.
    fn sums(&self) -> usize {
        self.weight_tiles * self.row_tiles * HELD * PLANE
    }

    /// Rows of x that the cube has room for.
    fn rows(&self) -> usize {
        self.row_tiles * ROWS
    }

    fn units(&self) -> usize {
        self.planes * PLANE
    }

    /// Outputs that a unit finishes.
    fn outputs_of_unit(&self) -> usize {
        (self.tile() * self.rows()).div_ceil(self.units())
    }

    /// Bytes of shared memory.
    pub fn shared_bytes(&self) -> usize {
        4 * self.planes * self.sums()
    }
}

/// Computes linear layers with their epilogue: `out` [rows, outputs].
///
/// x [rows, in] and the weights [out, in] are in half precision.
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn linear_mma_kernel<E: Float>(
    x: &[Words],
    weights: &UpToThree<Words>,
    biases: &UpToThree<E>,
    residual: &[E],
    out: &mut [E],
    shape: &LinearShape,
    #[comptime] plan: LinearMmaBlueprint,
    #[define(E)] _type: ElemType,
) {
    let tile = locate_tile(shape, CUBE_POS, plan.tile(), plan.projection);
    if !tile.exists {
        terminate!();
    }
    let addends = addends_of_unit::<E>(biases, residual, &tile, shape, plan);
    let mut sums = Sums::new(plan);
    let reader = Reader::new(x, shape);
    if comptime!(plan.projection.gated) {
        let (gate, up) = (&weights.first, &weights.second);
        sums.add_tile::<E>(&reader, gate, up, &tile, plan);
    } else {
        if tile.weight == 0u32 {
            let weight = &weights.first;
            sums.add_tile::<E>(&reader, weight, weight, &tile, plan);
        }
        if comptime!(plan.projection.weights > 1) {
            if tile.weight == 1u32 {
                let weight = &weights.second;
                sums.add_tile::<E>(&reader, weight, weight, &tile, plan);
            }
        }
        if comptime!(plan.projection.weights > 2) {
            if tile.weight == 2u32 {
                let weight = &weights.third;
                sums.add_tile::<E>(&reader, weight, weight, &tile, plan);
            }
        }
    }
    let mut shared = Shared::<[f32]>::new_slice(comptime!(plan.planes * plan.sums()));
    sums.store(&mut shared, plan);
    sync_cube();
    let width = row_width(shape, plan.projection);
    #[unroll]
    for i in 0..comptime!(plan.outputs_of_unit()) {
        let (column, row) = place_of(i, plan);
        let output = tile.first + column;
        if row < shape.rows as usize && output < tile.count && column < comptime!(plan.tile()) {
            let product = sum_of_planes(&shared, column, row, plan);
            let mut up = 0.0f32;
            if comptime!(plan.projection.gated) {
                let beside = column + comptime!(plan.tile());
                up = sum_of_planes(&shared, beside, row, plan);
            }
            let value = finish(product, up, &addends[i], plan.projection);
            out[row * width + tile.before + output] = E::cast_from(value);
        }
    }
}

/// The operands that a cube reads beside the weights.
#[derive(CubeType)]
struct Reader<'a> {
    x: &'a [Words],
    /// Rows of x.
    rows: usize,
    /// Vectors of a row.
    vectors: usize,
    /// Vectors between two rows of a weight.
    pitch: usize,
}

#[cube]
impl<'a> Reader<'a> {
    fn new(x: &'a [Words], shape: &LinearShape) -> Reader<'a> {
        Reader::<'a> {
            x,
            rows: shape.rows as usize,
            vectors: shape.features as usize / PER_VECTOR,
            pitch: shape.pitch as usize / PER_VECTOR,
        }
    }

    /// Loads this lane's vectors of all rows of x, [unroll, `row_tiles`]. Past the last row it
    /// loads that again.
    fn load(&self, begin: usize, #[comptime] plan: LinearMmaBlueprint) -> Array<Words> {
        let lane = UNIT_POS_PLANE as usize;
        let mut loaded = Array::<Words>::new(comptime!(plan.unroll * plan.row_tiles));
        #[unroll]
        for u in 0..comptime!(plan.unroll) {
            let mut at = begin + comptime!(MEMBERS * u) + lane % MEMBERS;
            if comptime!(plan.ragged) {
                at = min(at, self.vectors - 1);
            }
            #[unroll]
            for t in 0..comptime!(plan.row_tiles) {
                let row = comptime!(t * ROWS).runtime() + lane / MEMBERS;
                let row = min(row, self.rows - 1);
                loaded[comptime!(u * plan.row_tiles + t)] =
                    load_vector(self.x, row * self.vectors + at, plan);
            }
        }
        loaded
    }
}

/// The sums of a lane.
#[derive(CubeType)]
struct Sums {
    /// The results of the products, [weight_tiles, row_tiles, 4].
    products: Array<f32>,
}

#[cube]
impl Sums {
    fn new(#[comptime] plan: LinearMmaBlueprint) -> Sums {
        let count = comptime!(plan.weight_tiles * plan.row_tiles * HELD);
        let mut products = Array::<f32>::new(count);
        #[unroll]
        for i in 0..count {
            products[i] = 0.0f32;
        }
        Sums { products }
    }

    /// Adds this plane's part of the products of a tile, whose rows are in `first`, or with a gate
    /// in `first` and `second`.
    fn add_tile<E: Float>(
        &mut self,
        reader: &Reader<'_>,
        first: &[Words],
        second: &[Words],
        tile: &Tile,
        #[comptime] plan: LinearMmaBlueprint,
    ) {
        let rows = rows_of_lane(tile, reader.pitch, plan);
        let mut begin = PLANE_POS as usize * comptime!(plan.vectors_of_plane());
        while begin < reader.vectors {
            let loaded = load(first, second, &rows, begin, reader.vectors, plan);
            let x = reader.load(begin, plan);
            if comptime!(plan.fenced) {
                issue_loads();
            }
            #[unroll]
            for u in 0..comptime!(plan.unroll) {
                self.multiply::<E>(&loaded, &x, begin, reader.vectors, u, plan);
            }
            begin += comptime!(plan.vectors_at_once());
        }
    }

    /// Adds the products of loaded vector `u` of each row of weights and of x.
    fn multiply<E: Float>(
        &mut self,
        loaded: &Array<Words>,
        x: &Array<Words>,
        begin: usize,
        vectors: usize,
        #[comptime] u: usize,
        #[comptime] plan: LinearMmaBlueprint,
    ) {
        let at = begin + comptime!(MEMBERS * u) + UNIT_POS_PLANE as usize % MEMBERS;
        #[unroll]
        for t in 0..comptime!(plan.row_tiles) {
            let vector = x[comptime!(u * plan.row_tiles + t)];
            let mut b = Array::<u32>::new(4usize);
            #[unroll]
            for w in 0..4usize {
                let mut word = vector.extract(w);
                if comptime!(plan.ragged) {
                    word = select(at < vectors, word, 0u32);
                }
                b[w] = word;
            }
            #[unroll]
            for m in 0..comptime!(plan.weight_tiles) {
                let pair = comptime!(2 * (u * plan.weight_tiles + m));
                let sum = comptime!(HELD * (m * plan.row_tiles + t));
                let (low, high) = (loaded[pair], loaded[comptime!(pair + 1)]);
                #[unroll]
                for half in 0..2usize {
                    add_product::<E>(&mut self.products, low, high, &b, half, sum);
                }
            }
        }
    }

    /// Writes the sums of a plane to shared memory.
    fn store(&self, shared: &mut Shared<[f32]>, #[comptime] plan: LinearMmaBlueprint) {
        let (plane, lane) = (PLANE_POS as usize, UNIT_POS_PLANE as usize);
        #[unroll]
        for i in 0..comptime!(plan.weight_tiles * plan.row_tiles * HELD) {
            shared[plane * plan.sums() + i * PLANE + lane] = self.products[i];
        }
    }
}

/// Returns the first vector of each row of weights that this lane loads, [2 `weight_tiles`]. Past
/// the last row of the weight it loads that again.
#[cube]
fn rows_of_lane(tile: &Tile, pitch: usize, #[comptime] plan: LinearMmaBlueprint) -> Array<usize> {
    let mut rows = Array::<usize>::new(comptime!(2 * plan.weight_tiles));
    #[unroll]
    for i in 0..comptime!(2 * plan.weight_tiles) {
        let row = comptime!(i * HALF % plan.tile()) + UNIT_POS_PLANE as usize / MEMBERS;
        rows[i] = min(tile.first + row, tile.count - 1) * pitch;
    }
    rows
}

#[cube]
fn load_vector(from: &[Words], at: usize, #[comptime] plan: LinearMmaBlueprint) -> Words {
    if comptime!(plan.fenced) {
        load_words(from, at)
    } else {
        from[at]
    }
}

/// Loads this lane's vectors of all rows of weights, [unroll, `weight_tiles`, 2].
#[cube]
fn load(
    first: &[Words],
    second: &[Words],
    rows: &Array<usize>,
    begin: usize,
    vectors: usize,
    #[comptime] plan: LinearMmaBlueprint,
) -> Array<Words> {
    let count = comptime!(2 * plan.weight_tiles);
    let mut loaded = Array::<Words>::new(comptime!(count * plan.unroll));
    #[unroll]
    for u in 0..comptime!(plan.unroll) {
        let mut at = begin + comptime!(MEMBERS * u) + UNIT_POS_PLANE as usize % MEMBERS;
        if comptime!(plan.ragged) {
            at = min(at, vectors - 1);
        }
        #[unroll]
        for i in 0..count {
            if comptime!(plan.projection.gated && i >= plan.weight_tiles) {
                loaded[comptime!(u * count + i)] = load_vector(second, rows[i] + at, plan);
            } else {
                loaded[comptime!(u * count + i)] = load_vector(first, rows[i] + at, plan);
            }
        }
    }
    loaded
}

/// Adds the product of one half of the features of two rows of weights and of x to the four sums
/// from `at` on.
#[cube]
fn add_product<E: Float>(
    sums: &mut Array<f32>,
    low: Words,
    high: Words,
    x: &Array<u32>,
    #[comptime] half: usize,
    #[comptime] at: usize,
) {
    let product = MmaDefinition::<E, E, f32>::new(WEIGHTS, ROWS, DEPTH);
    let mut a = Array::<Vector<E, Const<2>>>::new(4usize);
    let mut b = Array::<Vector<E, Const<2>>>::new(2usize);
    let mut c = Array::<Vector<f32, Const<2>>>::new(2usize);
    #[unroll]
    for i in 0..2usize {
        let word = comptime!(2 * half + i);
        a[comptime!(2 * i)] = Vector::reinterpret(low.extract(word));
        a[comptime!(2 * i + 1)] = Vector::reinterpret(high.extract(word));
        b[i] = Vector::reinterpret(x[word]);
        let mut two = Vector::<f32, Const<2>>::new(0.0f32);
        two.insert(0usize, sums[comptime!(at + 2 * i)]);
        two.insert(1usize, sums[comptime!(at + 2 * i + 1)]);
        c[i] = two;
    }
    let d = product.execute(&a, &b, &c);
    #[unroll]
    for i in 0..2usize {
        sums[comptime!(at + 2 * i)] = d[i].extract(0usize);
        sums[comptime!(at + 2 * i + 1)] = d[i].extract(1usize);
    }
}

/// Returns the output and the row of x of this unit's result number `i`. Neighbouring units write
/// neighbouring outputs.
#[cube]
fn place_of(#[comptime] i: usize, #[comptime] plan: LinearMmaBlueprint) -> (usize, usize) {
    let place = comptime!(i * plan.units()) + UNIT_POS as usize;
    let row = place / comptime!(plan.tile());
    (place % comptime!(plan.tile()), row)
}

/// Loads the addends of this unit's results.
#[cube]
fn addends_of_unit<E: Float>(
    biases: &UpToThree<E>,
    residual: &[E],
    tile: &Tile,
    shape: &LinearShape,
    #[comptime] plan: LinearMmaBlueprint,
) -> Sequence<Addends> {
    let width = row_width(shape, plan.projection);
    let mut all = Sequence::<Addends>::new();
    #[unroll]
    for i in 0..comptime!(plan.outputs_of_unit()) {
        let (column, row) = place_of(i, plan);
        let output = min(tile.first + column, tile.count - 1);
        let row = min(row, shape.rows as usize - 1);
        let at = row * width + tile.before + output;
        let projection = comptime!(plan.projection);
        all.push(load_addends::<E>(
            biases, residual, tile, output, at, projection,
        ));
    }
    all
}

/// Returns the sum over the planes for a row of weights and a row of x, both counted in the cube.
#[cube]
fn sum_of_planes(
    shared: &Shared<[f32]>,
    weight: usize,
    row: usize,
    #[comptime] plan: LinearMmaBlueprint,
) -> f32 {
    let lane = weight % HALF * MEMBERS + row % ROWS / 2;
    let held = weight / HALF % 2 * 2 + row % 2;
    let tiles = weight / WEIGHTS * plan.row_tiles + row / ROWS;
    let at = (tiles * HELD + held) * PLANE + lane;
    let mut sum = 0.0f32;
    #[unroll]
    for plane in 0..comptime!(plan.planes) {
        sum += shared[comptime!(plane * plan.sums()) + at];
    }
    sum
}
