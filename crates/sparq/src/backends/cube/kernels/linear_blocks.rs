//! Linear layers of packed weights over few rows with matrix units: sixteen rows of weights by eight
//! columns of x in one instruction.
//!
//! Codes become halves in registers and are multiplied as they are: by one operation for two of
//! them, and without rounding. The results of the features that share a scale are multiplied by it,
//! and one more product subtracts the zero points or adds the minima. See
//! [`blocks`](crate::backends::cube::parts::blocks) for the weights and
//! [`half_rows`](crate::backends::cube::parts::half_rows) for x.
//!
//! The planes of a cube share its rows of weights and split the features. Their sums are added in
//! shared memory.

use burn::tensor::f16;
use cubecl::cmma::MmaDefinition;
use cubecl::prelude::*;

use crate::backends::cube::parts::blocks::{
    BlockLayout, GROUPS, LANES, MEMBERS, ROWS, Scales, Words, codes_of_pair, load_tile,
    scales_of_row,
};
use crate::backends::cube::parts::half_rows::{FloatRows, HalfRowsBlueprint, SUM_UNIT, VECTORS};
use crate::backends::cube::parts::projection::{
    Addends, LinearShape, NormWeights, ProjectionBlueprint, Tile, UpToThree, finish, load_addends,
    locate_tile, row_width,
};

/// Columns of x of a product.
pub(crate) const COLUMNS: usize = 8;
/// Numbers that a lane holds of a result.
const HELD: usize = 4;

/// The settings that the kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LinearBlocksBlueprint {
    /// The weights and the outputs.
    pub projection: ProjectionBlueprint,
    /// How x becomes halves.
    pub rows: HalfRowsBlueprint,
    /// Vectors of shared memory for x: each cube makes its halves. 0 if a launch before made them.
    pub packed: usize,
    /// Tiles of rows of weights of a cube. With a gate, half of them are its.
    pub weight_tiles: usize,
    /// Columns of a cube, in products.
    pub column_tiles: usize,
    /// There is only one column.
    pub single: bool,
    /// Tiles of each row of weights that a plane loads before it uses the first.
    pub unroll: usize,
}

impl LinearBlocksBlueprint {
    pub fn layout(&self) -> BlockLayout {
        self.rows.layout
    }

    /// Outputs of a cube.
    pub fn tile(&self) -> usize {
        match self.projection.gated {
            true => self.weight_tiles / 2 * ROWS,
            false => self.weight_tiles * ROWS,
        }
    }

    /// Rows of x of a cube.
    pub fn rows_of_cube(&self) -> usize {
        self.column_tiles * COLUMNS / self.rows.halves
    }

    pub fn planes(&self) -> usize {
        self.rows.units as usize / LANES
    }

    /// Sums of a plane.
    fn sums(&self) -> usize {
        self.weight_tiles * self.column_tiles * HELD * LANES
    }

    /// Outputs that a unit finishes.
    fn outputs_of_unit(&self) -> usize {
        let rows = if self.single { 1 } else { self.rows_of_cube() };
        (self.tile() * rows).div_ceil(self.rows.units as usize)
    }

    /// Bytes of shared memory.
    pub fn shared_bytes(&self) -> usize {
        16 * self.packed + 4 * (self.planes() * self.sums() + self.rows.scratch() + COLUMNS)
    }
}

/// The rows of x as a launch before packed them.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct PackedRows {
    /// See [`half_rows`](crate::backends::cube::parts::half_rows).
    pub halves: Box<[Words]>,
    /// The factor that undoes the scaling of each row.
    pub unscales: Box<[f32]>,
}

/// Computes linear layers of packed weights with their epilogue: `out` [rows, outputs]. It computes
/// the tiles of outputs from `first_tile` on, whose weights all have the layout of the plan.
///
/// x [rows, in] comes in vectors of four. The cubes of the same weights follow each other.
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn linear_blocks_kernel<E: Float, N: Size>(
    x: &[Vector<E, N>],
    norm: &NormWeights<Vector<E, N>>,
    packed: &PackedRows,
    weights: &UpToThree<Words>,
    biases: &UpToThree<E>,
    residual: &[E],
    out: &mut [E],
    shape: &LinearShape,
    first_tile: u32,
    #[comptime] plan: LinearBlocksBlueprint,
    #[define(E)] _type: ElemType,
) {
    let blocks = (shape.rows as usize).div_ceil(comptime!(plan.rows_of_cube()));
    let begin = CUBE_POS % blocks * comptime!(plan.rows_of_cube());
    let index = first_tile as usize + CUBE_POS / blocks;
    let tile = locate_tile(shape, index, plan.tile(), plan.projection);
    if !tile.exists {
        terminate!();
    }
    let addends = addends_of_unit::<E>(biases, residual, &tile, shape, begin, plan);
    let reader = Reader::new(weights, &tile, shape, plan);
    let mut step = PLANE_POS as usize;
    let mut loaded = Array::<Words>::new(comptime!(
        plan.unroll * plan.weight_tiles * plan.layout().of_lane()
    ));
    // The first weights are on their way while x is packed.
    reader.load(&mut loaded, step, plan);

    let mut halves = Shared::<[Words]>::new_slice(comptime!(plan.packed.max(1)));
    let mut unscales = Shared::<[f32]>::new_slice(COLUMNS);
    if comptime!(plan.packed > 0) {
        let mut scratch = Shared::<[f32]>::new_slice(comptime!(plan.rows.scratch()));
        let (rows, features) = (shape.rows, shape.features);
        let floats = FloatRows::<E, N>::new(x, norm, rows, features, shape.epsilon);
        for row in 0..shape.rows as usize {
            let unscale = floats.pack(row, &mut halves, &mut scratch, plan.rows);
            if UNIT_POS == 0 {
                unscales[row] = unscale;
            }
        }
        sync_cube();
    }

    let columns = Columns::new(shape, begin, plan);
    let mut sums = Sums::new(plan);
    while step < reader.steps {
        #[unroll]
        for u in 0..comptime!(plan.unroll) {
            let at = step + comptime!(u * plan.planes());
            // Constant for the first.
            if comptime!(u == 0).runtime() || at < reader.steps {
                if comptime!(plan.packed > 0) {
                    sums.add_step(&loaded, &halves, &columns, at, u, plan);
                } else {
                    sums.add_step(&loaded, &packed.halves, &columns, at, u, plan);
                }
            }
        }
        step += comptime!(plan.unroll * plan.planes());
        if step < reader.steps {
            reader.load(&mut loaded, step, plan);
        }
    }
    let mut shared = Shared::<[f32]>::new_slice(comptime!(plan.planes() * plan.sums()));
    sums.store(&mut shared, plan);
    sync_cube();
    let width = row_width(shape, plan.projection);
    #[unroll]
    for i in 0..comptime!(plan.outputs_of_unit()) {
        let (column, row) = place_of(i, plan);
        let output = tile.first + column;
        let inside = row < comptime!(plan.rows_of_cube()) && begin + row < shape.rows as usize;
        if inside && output < tile.count {
            let mut unscale = 1.0f32;
            if comptime!(plan.packed > 0) {
                unscale = unscales[row];
            } else {
                unscale = packed.unscales[begin + row];
            }
            let product = sum_of_planes(&shared, column, row, plan) * unscale;
            let mut up = 0.0f32;
            if comptime!(plan.projection.gated) {
                let beside = column + comptime!(plan.tile());
                up = sum_of_planes(&shared, beside, row, plan) * unscale;
            }
            let value = finish(product, up, &addends[i], plan.projection);
            out[(begin + row) * width + tile.before + output] = E::cast_from(value);
        }
    }
}

/// The weights of a cube.
#[derive(CubeType)]
struct Reader<'a> {
    weights: &'a UpToThree<Words>,
    /// The number of the weight.
    weight: u32,
    /// The first vector of each tile of rows.
    tiles: Array<usize>,
    /// Tiles of a row.
    steps: usize,
}

#[cube]
impl<'a> Reader<'a> {
    fn new(
        weights: &'a UpToThree<Words>,
        tile: &Tile,
        shape: &LinearShape,
        #[comptime] plan: LinearBlocksBlueprint,
    ) -> Reader<'a> {
        let steps = shape.pitch as usize;
        let last = (tile.count - 1) / ROWS;
        let mut tiles = Array::<usize>::new(comptime!(plan.weight_tiles));
        #[unroll]
        for i in 0..comptime!(plan.weight_tiles) {
            // Past the last rows of the weight, those are loaded again.
            let rows = min(
                tile.first / ROWS + comptime!(i * ROWS % plan.tile() / ROWS),
                last,
            );
            tiles[i] = rows * steps * comptime!(plan.layout().vectors());
        }
        Reader::<'a> {
            weights,
            weight: tile.weight,
            tiles,
            steps,
        }
    }

    /// Loads this lane's vectors of the tiles from `step` on: [unroll, `weight_tiles`, vectors].
    fn load(
        &self,
        loaded: &mut Array<Words>,
        step: usize,
        #[comptime] plan: LinearBlocksBlueprint,
    ) {
        if comptime!(plan.projection.gated) {
            let tiles = comptime!(plan.weight_tiles / 2);
            self.load_from(loaded, &self.weights.first, step, 0usize, tiles, plan);
            self.load_from(
                loaded,
                &self.weights.second,
                step,
                tiles,
                plan.weight_tiles,
                plan,
            );
        } else {
            let tiles = comptime!(plan.weight_tiles);
            if self.weight == 0u32 {
                self.load_from(loaded, &self.weights.first, step, 0usize, tiles, plan);
            }
            if comptime!(plan.projection.weights > 1) {
                if self.weight == 1u32 {
                    self.load_from(loaded, &self.weights.second, step, 0usize, tiles, plan);
                }
            }
            if comptime!(plan.projection.weights > 2) {
                if self.weight == 2u32 {
                    self.load_from(loaded, &self.weights.third, step, 0usize, tiles, plan);
                }
            }
        }
    }

    fn load_from(
        &self,
        loaded: &mut Array<Words>,
        weight: &[Words],
        step: usize,
        #[comptime] first: usize,
        #[comptime] end: usize,
        #[comptime] plan: LinearBlocksBlueprint,
    ) {
        let layout = comptime!(plan.layout());
        #[unroll]
        for u in 0..comptime!(plan.unroll) {
            let at = min(step + comptime!(u * plan.planes()), self.steps - 1);
            #[unroll]
            for i in first..end {
                let tile = self.tiles[i] + at * comptime!(layout.vectors());
                let to = comptime!((u * plan.weight_tiles + i) * layout.of_lane());
                load_tile(loaded, weight, tile, to, layout);
            }
        }
    }
}

/// Where a lane's columns of x are.
#[derive(CubeType)]
struct Columns {
    /// All columns.
    count: usize,
    /// The lane's vector of each tile of columns, relative to those of a group.
    vectors: Array<usize>,
}

#[cube]
impl Columns {
    fn new(shape: &LinearShape, begin: usize, #[comptime] plan: LinearBlocksBlueprint) -> Columns {
        let lane = UNIT_POS_PLANE as usize;
        let count = shape.rows as usize * comptime!(plan.rows.halves);
        let first = begin * comptime!(plan.rows.halves);
        let mut vectors = Array::<usize>::new(comptime!(plan.column_tiles));
        #[unroll]
        for t in 0..comptime!(plan.column_tiles) {
            // Past the last column, it is multiplied again.
            let column = min(first + comptime!(t * COLUMNS) + lane / MEMBERS, count - 1);
            vectors[t] = column * MEMBERS + lane % MEMBERS;
        }
        Columns { count, vectors }
    }
}

/// The sums of a lane.
#[derive(CubeType)]
struct Sums {
    /// The results of the products, [`weight_tiles`, `column_tiles`, 4].
    products: Array<f32>,
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
    fn new(#[comptime] plan: LinearBlocksBlueprint) -> Sums {
        Sums {
            products: zeros(comptime!(plan.weight_tiles * plan.column_tiles * HELD)),
        }
    }

    /// Adds the products of the loaded tiles number `u` with the features of step `step`.
    fn add_step(
        &mut self,
        loaded: &Array<Words>,
        halves: &[Words],
        columns: &Columns,
        step: usize,
        #[comptime] u: usize,
        #[comptime] plan: LinearBlocksBlueprint,
    ) {
        let layout = comptime!(plan.layout());
        let of_group = columns.count * MEMBERS;
        let first = step * VECTORS * of_group;
        #[unroll]
        for i in 0..comptime!(plan.weight_tiles) {
            let at = comptime!((u * plan.weight_tiles + i) * layout.of_lane());
            let low = scales_of_row(loaded, at, 0usize, layout);
            let high = scales_of_row(loaded, at, 1usize, layout);
            let mut products = zeros(comptime!(plan.column_tiles * HELD));
            #[unroll]
            for group in 0..GROUPS {
                let mut a = Array::<u32>::new(8usize);
                #[unroll]
                for pair in 0..4usize {
                    a[comptime!(2 * pair)] = codes_of_pair(loaded, at, 0usize, group, pair, layout);
                    a[comptime!(2 * pair + 1)] =
                        codes_of_pair(loaded, at, 1usize, group, pair, layout);
                }
                #[unroll]
                for t in 0..comptime!(plan.column_tiles) {
                    let x = halves[first + group * of_group + columns.vectors[t]];
                    let to = comptime!(t * HELD);
                    let zero = zeros(HELD);
                    if comptime!(layout.scales == Scales::Bytes) {
                        let result = multiply(&zero, &a, x, 0usize);
                        let (one, two) = (
                            low.factors[comptime!(2 * group)],
                            high.factors[comptime!(2 * group)],
                        );
                        add_scaled(&mut products, &result, one, two, to, plan.single);
                        let result = multiply(&zero, &a, x, 1usize);
                        let (one, two) = (
                            low.factors[comptime!(2 * group + 1)],
                            high.factors[comptime!(2 * group + 1)],
                        );
                        add_scaled(&mut products, &result, one, two, to, plan.single);
                    } else {
                        let result = multiply(&zero, &a, x, 0usize);
                        let result = multiply(&result, &a, x, 1usize);
                        let (one, two) = (low.factors[group], high.factors[group]);
                        add_scaled(&mut products, &result, one, two, to, plan.single);
                    }
                }
            }
            let mut shifts = Array::<u32>::new(8usize);
            #[unroll]
            for half in 0..2usize {
                shifts[comptime!(4 * half)] = low.low_shifts;
                shifts[comptime!(4 * half + 1)] = high.low_shifts;
                shifts[comptime!(4 * half + 2)] = low.high_shifts;
                shifts[comptime!(4 * half + 3)] = high.high_shifts;
            }
            // The products of codes are by 2^-24.
            let unit = comptime!(SUM_UNIT / 16_777_216.0);
            #[unroll]
            for t in 0..comptime!(plan.column_tiles) {
                let x = halves[first + GROUPS * of_group + columns.vectors[t]];
                let mut result = multiply(&zeros(HELD), &shifts, x, 0usize);
                if comptime!(layout.scales == Scales::Bytes) {
                    result = multiply(&result, &shifts, x, 1usize);
                }
                let to = comptime!((i * plan.column_tiles + t) * HELD);
                let mut of_tile = Array::<f32>::new(HELD);
                #[unroll]
                for e in 0..HELD {
                    of_tile[e] = products[comptime!(t * HELD + e)];
                }
                add_scaled(
                    &mut self.products,
                    &of_tile,
                    low.factor,
                    high.factor,
                    to,
                    plan.single,
                );
                let (one, two) = (low.shift * unit, high.shift * unit);
                add_scaled(&mut self.products, &result, one, two, to, plan.single);
            }
        }
    }

    /// Writes the sums of a plane to shared memory.
    fn store(&self, shared: &mut Shared<[f32]>, #[comptime] plan: LinearBlocksBlueprint) {
        let (plane, lane) = (PLANE_POS as usize, UNIT_POS_PLANE as usize);
        #[unroll]
        for i in 0..comptime!(plan.weight_tiles * plan.column_tiles * HELD) {
            shared[plane * plan.sums() + i * LANES + lane] = self.products[i];
        }
    }
}

/// Adds four results, two of each row, by the rows' factors to the sums from `to` on.
#[cube]
fn add_scaled(
    sums: &mut Array<f32>,
    result: &Array<f32>,
    low: f32,
    high: f32,
    #[comptime] to: usize,
    #[comptime] single: bool,
) {
    #[unroll]
    for e in 0..HELD {
        // The second of two columns does not exist if there is only one.
        if comptime!(!single || e % 2 == 0) {
            let factor = if comptime!(e < 2) { low } else { high };
            sums[comptime!(to + e)] += result[e] * factor;
        }
    }
}

/// Returns `sums` and the products of one half of the features: words 4 `half` .. 4 `half` + 4 of
/// `a` with two words of x.
#[cube]
fn multiply(sums: &Array<f32>, a: &Array<u32>, x: Words, #[comptime] half: usize) -> Array<f32> {
    let product = MmaDefinition::<f16, f16, f32>::new(ROWS, COLUMNS, 16usize);
    let mut left = Array::<Vector<f16, Const<2>>>::new(4usize);
    let mut right = Array::<Vector<f16, Const<2>>>::new(2usize);
    let mut before = Array::<Vector<f32, Const<2>>>::new(2usize);
    #[unroll]
    for i in 0..4usize {
        left[i] = Vector::reinterpret(a[comptime!(4 * half + i)]);
    }
    #[unroll]
    for i in 0..2usize {
        right[i] = Vector::reinterpret(x.extract(comptime!(2 * half + i)));
        let mut two = Vector::<f32, Const<2>>::new(0.0f32);
        two.insert(0usize, sums[comptime!(2 * i)]);
        two.insert(1usize, sums[comptime!(2 * i + 1)]);
        before[i] = two;
    }
    let after = product.execute(&left, &right, &before);
    let mut results = Array::<f32>::new(HELD);
    #[unroll]
    for i in 0..2usize {
        results[comptime!(2 * i)] = after[i].extract(0usize);
        results[comptime!(2 * i + 1)] = after[i].extract(1usize);
    }
    results
}

/// Returns the output and the row of x of this unit's result number `i`. Neighbouring units write
/// neighbouring outputs.
#[cube]
fn place_of(#[comptime] i: usize, #[comptime] plan: LinearBlocksBlueprint) -> (usize, usize) {
    let place = comptime!(i * plan.rows.units as usize) + UNIT_POS as usize;
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
    begin: usize,
    #[comptime] plan: LinearBlocksBlueprint,
) -> Sequence<Addends> {
    let width = row_width(shape, plan.projection);
    let mut all = Sequence::<Addends>::new();
    #[unroll]
    for i in 0..comptime!(plan.outputs_of_unit()) {
        let (column, row) = place_of(i, plan);
        let output = min(tile.first + column, tile.count - 1);
        let row = min(begin + row, shape.rows as usize - 1);
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
    #[comptime] plan: LinearBlocksBlueprint,
) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for half in 0..comptime!(plan.rows.halves) {
        let column = row * comptime!(plan.rows.halves) + half;
        let lane = weight % 8 * MEMBERS + column % COLUMNS / 2;
        let held = weight % ROWS / 8 * 2 + column % 2;
        let tiles = weight / ROWS * plan.column_tiles + column / COLUMNS;
        let at = (tiles * HELD + held) * LANES + lane;
        #[unroll]
        for plane in 0..comptime!(plan.planes()) {
            sum += shared[comptime!(plane * plan.sums()) + at];
        }
    }
    // The products are by 2^-24, and those with scales of 6 bits by as much again.
    let unit = 16_777_216.0f32;
    if comptime!(plan.layout().scales == Scales::SixBits) {
        sum * unit * unit
    } else {
        sum * unit
    }
}
