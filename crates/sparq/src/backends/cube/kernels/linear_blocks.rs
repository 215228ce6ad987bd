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
    BlockLayout, GROUPS, LANES, MEMBERS, ROWS, RowScales, Scales, Words, codes_of_pair, load_codes,
    load_scales, scales_of_row,
};
use crate::backends::cube::parts::half_rows::{FloatRows, HalfRowsBlueprint, SUM_UNIT, VECTORS};
use crate::backends::cube::parts::projection::{
    Addends, LinearShape, NormWeights, ProjectionBlueprint, Tile, UpToThree, finish, load_addends,
    row_width,
};

/// Columns of x of a product.
pub(crate) const COLUMNS: usize = 8;
/// Vectors of x that a unit copies at once.
const COPIES: usize = 8;
/// Numbers that a lane holds of a result.
const HELD: usize = 4;

/// The settings that the kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LinearBlocksBlueprint {
    /// The weights and the outputs.
    pub projection: ProjectionBlueprint,
    /// How x becomes halves.
    pub rows: HalfRowsBlueprint,
    /// Rows of x that each cube packs for itself. 0 if a launch before packs x.
    pub packs: usize,
    /// Vectors of packed x in shared memory; 0 if cubes read it where that launch wrote it.
    pub shared: usize,
    /// Tiles of rows of weights of a cube. With a gate, half of them are its.
    pub weight_tiles: usize,
    /// Columns of a cube, in products.
    pub column_tiles: usize,
    /// There is only one column.
    pub single: bool,
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
        16 * self.shared + 4 * (self.planes() * self.sums() + self.rows.scratch() + COLUMNS)
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

/// The cubes of each part of a row of the output.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct CubesOfParts {
    pub first: u32,
    pub second: u32,
    pub third: u32,
}

/// Computes linear layers of packed weights with their epilogue: `out` [rows, outputs]. The parts of
/// a row that have cubes all have the layout of the plan.
///
/// x [rows, in] comes in vectors of four. A cube computes tiles of one weight, one after the other:
/// it packs x, or loads it, only once.
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
    cubes: &CubesOfParts,
    #[comptime] plan: LinearBlocksBlueprint,
    #[define(E)] _type: ElemType,
) {
    let floats = FloatRows::<E, N>::new(x, norm, shape.rows, shape.features, shape.epsilon);
    let addends = Addition::<E>::new(biases, residual);
    let mut memory = Memory::new(plan);
    let first = cubes.first as usize;
    let second = first + cubes.second as usize;
    let parts = comptime!(plan.projection.parts());
    if CUBE_POS < first {
        let work = Work::new(shape, CUBE_POS, first, 0u32, 0usize, shape.first, plan);
        let (gate, up) = (&weights.first, &weights.second);
        compute::<E, N>(
            &floats,
            packed,
            gate,
            up,
            &addends,
            out,
            &mut memory,
            shape,
            &work,
            plan,
        );
    }
    if comptime!(parts > 1) {
        if CUBE_POS >= first && CUBE_POS < second {
            let before = shape.first as usize;
            let (cube, cubes) = (CUBE_POS - first, second - first);
            let work = Work::new(shape, cube, cubes, 1u32, before, shape.second, plan);
            let weight = &weights.second;
            compute::<E, N>(
                &floats,
                packed,
                weight,
                weight,
                &addends,
                out,
                &mut memory,
                shape,
                &work,
                plan,
            );
        }
    }
    if comptime!(parts > 2) {
        if CUBE_POS >= second {
            let before = (shape.first + shape.second) as usize;
            let (cube, cubes) = (CUBE_POS - second, cubes.third as usize);
            let work = Work::new(shape, cube, cubes, 2u32, before, shape.third, plan);
            let weight = &weights.third;
            compute::<E, N>(
                &floats,
                packed,
                weight,
                weight,
                &addends,
                out,
                &mut memory,
                shape,
                &work,
                plan,
            );
        }
    }
}

/// The shared memory of a cube.
#[derive(CubeType)]
struct Memory {
    /// Packed rows of x.
    halves: Shared<[Words]>,
    /// The factors that undo the scaling of the rows.
    unscales: Shared<[f32]>,
    /// See [`FloatRows::pack`].
    scratch: Shared<[f32]>,
    /// The sums of each plane.
    sums: Shared<[f32]>,
}

#[cube]
impl Memory {
    fn new(#[comptime] plan: LinearBlocksBlueprint) -> Memory {
        Memory {
            halves: Shared::<[Words]>::new_slice(comptime!(plan.shared.max(1))),
            unscales: Shared::<[f32]>::new_slice(COLUMNS),
            scratch: Shared::<[f32]>::new_slice(comptime!(plan.rows.scratch())),
            sums: Shared::<[f32]>::new_slice(comptime!(plan.planes() * plan.sums())),
        }
    }
}

/// The numbers that are added to the products.
#[derive(CubeType)]
struct Addition<'a, E: Float> {
    biases: &'a UpToThree<E>,
    residual: &'a [E],
}

#[cube]
impl<'a, E: Float> Addition<'a, E> {
    fn new(biases: &'a UpToThree<E>, residual: &'a [E]) -> Addition<'a, E> {
        Addition::<'a, E> { biases, residual }
    }
}

/// Computes the tiles of a cube, whose weights are in `first`, or with a gate in `first` and
/// `second`.
#[cube]
#[allow(clippy::too_many_arguments)]
fn compute<E: Float, N: Size>(
    floats: &FloatRows<'_, E, N>,
    packed: &PackedRows,
    first: &[Words],
    second: &[Words],
    addition: &Addition<'_, E>,
    out: &mut [E],
    memory: &mut Memory,
    shape: &LinearShape,
    work: &Work,
    #[comptime] plan: LinearBlocksBlueprint,
) {
    let vectors = comptime!(plan.rows.vectors());
    let mut x = Array::<Vector<E, N>>::new(comptime!(vectors * plan.packs));
    let mut scales = Array::<Vector<E, N>>::new(vectors);
    if comptime!(plan.packs > 0) {
        #[unroll]
        for row in 0..comptime!(plan.packs) {
            floats.load(row.runtime(), &mut x, comptime!(row * vectors), plan.rows);
        }
        floats.load_scales(&mut scales, plan.rows);
    }
    let mut ahead = Ahead::new(first, second, work, plan);
    let mut loaded = Array::<Words>::new(comptime!(plan.weight_tiles * plan.layout().of_lane()));
    // The first weights are on their way while x is packed.
    #[unroll]
    for i in 0..comptime!(plan.weight_tiles) {
        let codes = comptime!((0, plan.layout().first_scales()));
        ahead.load_codes(&mut loaded, i, codes, plan);
        ahead.load_scales(&mut loaded, i, plan);
    }
    if comptime!(plan.packs > 0) {
        #[unroll]
        for row in 0..comptime!(plan.packs) {
            let from = comptime!(row * vectors);
            let unscale = floats.pack(
                row.runtime(),
                &x,
                &scales,
                &mut memory.halves,
                &mut memory.scratch,
                from,
                plan.rows,
            );
            if UNIT_POS == 0 {
                memory.unscales[row] = unscale;
            }
        }
        sync_cube();
    } else if comptime!(plan.shared > 0) {
        copy_halves(&packed.halves, &mut memory.halves, plan);
        sync_cube();
    }

    let width = row_width(shape, plan.projection);
    let mut sums = Sums::new(plan);
    let mut item = work.cube;
    let mut round = 0u32;
    while item < work.items {
        let begin = work.first_row(item, plan);
        let tile = work.tile(item, plan);
        let unit = unit_of_round(round, plan);
        let addends = addends_of_unit::<E>(addition, &tile, shape, begin, unit, plan);
        let columns = Columns::new(shape, begin, plan);
        sums.clear(plan);
        let mut step = PLANE_POS as usize;
        while step < work.steps {
            ahead.advance(work, plan);
            if comptime!(plan.shared > 0) {
                sums.add_step(&mut loaded, &ahead, &memory.halves, &columns, step, plan);
            } else {
                sums.add_step(&mut loaded, &ahead, &packed.halves, &columns, step, plan);
            }
            step += comptime!(plan.planes());
        }
        // Another unit may still read the sums of the tile before.
        sync_cube();
        sums.store(&mut memory.sums, plan);
        sync_cube();
        #[unroll]
        for i in 0..comptime!(plan.outputs_of_unit()) {
            let (column, row) = place_of(i, unit, plan);
            let output = tile.first + column;
            let inside = row < comptime!(plan.rows_of_cube()) && begin + row < shape.rows as usize;
            if inside && output < tile.count {
                let mut unscale = 1.0f32;
                if comptime!(plan.packs > 0) {
                    unscale = memory.unscales[row];
                } else {
                    unscale = packed.unscales[begin + row];
                }
                let product = sum_of_planes(&memory.sums, column, row, plan) * unscale;
                let mut up = 0.0f32;
                if comptime!(plan.projection.gated) {
                    let beside = column + comptime!(plan.tile());
                    up = sum_of_planes(&memory.sums, beside, row, plan) * unscale;
                }
                let value = finish(product, up, &addends[i], plan.projection);
                out[(begin + row) * width + tile.before + output] = E::cast_from(value);
            }
        }
        item += work.cubes;
        round += 1u32;
    }
}

/// Copies packed rows to shared memory, several vectors of a unit at once.
#[cube]
fn copy_halves(from: &[Words], to: &mut Shared<[Words]>, #[comptime] plan: LinearBlocksBlueprint) {
    let units = comptime!(plan.rows.units as usize);
    for round in 0..comptime!(plan.shared.div_ceil(units * COPIES)) {
        let first = round * comptime!(units * COPIES) + UNIT_POS as usize;
        let mut loaded = Array::<Words>::new(COPIES);
        #[unroll]
        for i in 0..COPIES {
            let at = first + comptime!(i * units);
            loaded[i] = from[min(at, comptime!(plan.shared - 1))];
        }
        #[unroll]
        for i in 0..COPIES {
            let at = first + comptime!(i * units);
            if at < comptime!(plan.shared) {
                to[at] = loaded[i];
            }
        }
    }
}

/// The work of a cube: every item that is `cubes` further on than the one before. An item is a tile
/// of outputs of a weight and a block of rows of x. The blocks of a tile follow each other.
#[derive(CubeType)]
struct Work {
    /// The first item, and the items between two of them.
    cube: usize,
    cubes: usize,
    /// All items of the weight.
    items: usize,
    blocks: usize,
    /// The number of the weight, the outputs before it and its own.
    weight: u32,
    before: usize,
    count: usize,
    /// Tiles of a row of weights.
    steps: usize,
}

#[cube]
impl Work {
    fn new(
        shape: &LinearShape,
        cube: usize,
        cubes: usize,
        weight: u32,
        before: usize,
        count: u32,
        #[comptime] plan: LinearBlocksBlueprint,
    ) -> Work {
        let blocks = (shape.rows as usize).div_ceil(comptime!(plan.rows_of_cube()));
        let tiles = (count as usize).div_ceil(comptime!(plan.tile()));
        Work {
            cube,
            cubes,
            items: tiles * blocks,
            blocks,
            weight,
            before,
            count: count as usize,
            steps: shape.pitch as usize,
        }
    }

    fn tile(&self, item: usize, #[comptime] plan: LinearBlocksBlueprint) -> Tile {
        Tile {
            weight: self.weight,
            first: item / self.blocks * comptime!(plan.tile()),
            count: self.count,
            before: self.before,
            exists: true.runtime(),
        }
    }

    fn first_row(&self, item: usize, #[comptime] plan: LinearBlocksBlueprint) -> usize {
        item % self.blocks * comptime!(plan.rows_of_cube())
    }
}

/// The weights that a plane loads next, while it multiplies by others.
#[derive(CubeType)]
struct Ahead<'a> {
    first: &'a [Words],
    second: &'a [Words],
    item: usize,
    /// The first vector of each tile of rows.
    tiles: Array<usize>,
    /// The tile of each row.
    step: usize,
    /// There are such weights.
    exists: bool,
}

#[cube]
impl<'a> Ahead<'a> {
    fn new(
        first: &'a [Words],
        second: &'a [Words],
        work: &Work,
        #[comptime] plan: LinearBlocksBlueprint,
    ) -> Ahead<'a> {
        let mut ahead = Ahead::<'a> {
            first,
            second,
            item: work.cube,
            tiles: Array::<usize>::new(comptime!(plan.weight_tiles)),
            step: PLANE_POS as usize,
            exists: work.cube < work.items,
        };
        ahead.locate(work, plan);
        ahead
    }

    fn locate(&mut self, work: &Work, #[comptime] plan: LinearBlocksBlueprint) {
        let first = work.tile(self.item, plan).first;
        #[unroll]
        for i in 0..comptime!(plan.weight_tiles) {
            // Past the last rows of the weight, those are loaded again.
            let rows = min(
                first / ROWS + comptime!(i * ROWS % plan.tile() / ROWS),
                (work.count - 1) / ROWS,
            );
            self.tiles[i] = rows * work.steps * comptime!(plan.layout().vectors());
        }
    }

    /// Moves to the plane's next step, which may be the first of the cube's next item.
    fn advance(&mut self, work: &Work, #[comptime] plan: LinearBlocksBlueprint) {
        self.step += comptime!(plan.planes());
        if self.step >= work.steps {
            self.step = PLANE_POS as usize;
            self.item += work.cubes;
            self.exists = self.item < work.items;
            self.locate(work, plan);
        }
    }

    /// Loads this lane's vectors `codes` of codes and upper bits of tile `i`.
    fn load_codes(
        &self,
        loaded: &mut Array<Words>,
        #[comptime] i: usize,
        #[comptime] codes: (usize, usize),
        #[comptime] plan: LinearBlocksBlueprint,
    ) {
        let layout = comptime!(plan.layout());
        let tile = self.tiles[i] + self.step * comptime!(layout.vectors());
        let at = comptime!(i * layout.of_lane());
        if self.exists {
            if comptime!(plan.projection.gated && 2 * i >= plan.weight_tiles) {
                load_codes(loaded, self.second, tile, at, codes);
            } else {
                load_codes(loaded, self.first, tile, at, codes);
            }
        }
    }

    /// Loads this lane's vectors of scales of tile `i`.
    fn load_scales(
        &self,
        loaded: &mut Array<Words>,
        #[comptime] i: usize,
        #[comptime] plan: LinearBlocksBlueprint,
    ) {
        let layout = comptime!(plan.layout());
        let tile = self.tiles[i] + self.step * comptime!(layout.vectors());
        let at = comptime!(i * layout.of_lane());
        if self.exists {
            if comptime!(plan.projection.gated && 2 * i >= plan.weight_tiles) {
                load_scales(loaded, self.second, tile, at, layout);
            } else {
                load_scales(loaded, self.first, tile, at, layout);
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

    fn clear(&mut self, #[comptime] plan: LinearBlocksBlueprint) {
        #[unroll]
        for i in 0..comptime!(plan.weight_tiles * plan.column_tiles * HELD) {
            self.products[i] = 0.0f32;
        }
    }

    /// Adds the products of the loaded tiles with the features of step `step`. As soon as a vector
    /// has been multiplied, the one after it is loaded in its place.
    fn add_step(
        &mut self,
        loaded: &mut Array<Words>,
        ahead: &Ahead<'_>,
        halves: &[Words],
        columns: &Columns,
        step: usize,
        #[comptime] plan: LinearBlocksBlueprint,
    ) {
        let layout = comptime!(plan.layout());
        let of_group = columns.count * MEMBERS;
        let first = step * VECTORS * of_group;
        #[unroll]
        for i in 0..comptime!(plan.weight_tiles) {
            let at = comptime!(i * layout.of_lane());
            let low = scales_of_row(&*loaded, at, 0usize, layout);
            let high = scales_of_row(&*loaded, at, 1usize, layout);
            ahead.load_scales(loaded, i, plan);
            let mut products = zeros(comptime!(plan.column_tiles * HELD));
            #[unroll]
            for group in 0..GROUPS {
                let x = first + group * of_group;
                add_group(
                    &mut products,
                    &*loaded,
                    &low,
                    &high,
                    halves,
                    columns,
                    x,
                    at,
                    group,
                    plan,
                );
                let of_vector = comptime!(layout.groups_of_vector());
                if comptime!((group + 1) % of_vector == 0) {
                    let end = comptime!(2 * (group + 1) / of_vector);
                    ahead.load_codes(loaded, i, comptime!((end - 2, end)), plan);
                }
            }
            if comptime!(layout.upper_bits > 0) {
                let upper = comptime!((layout.code_bits, layout.first_scales()));
                ahead.load_codes(loaded, i, upper, plan);
            }
            let x = first + GROUPS * of_group;
            self.add_tile(&products, &low, &high, halves, columns, x, i, plan);
        }
    }

    /// Adds the products of a tile, `products`, and its sums of x by the zero points or minima.
    fn add_tile(
        &mut self,
        products: &Array<f32>,
        low: &RowScales,
        high: &RowScales,
        halves: &[Words],
        columns: &Columns,
        x: usize,
        #[comptime] i: usize,
        #[comptime] plan: LinearBlocksBlueprint,
    ) {
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
            let vector = halves[x + columns.vectors[t]];
            let mut result = multiply(&zeros(HELD), &shifts, vector, 0usize);
            if comptime!(plan.layout().scales == Scales::Bytes) {
                result = multiply(&result, &shifts, vector, 1usize);
            }
            let to = comptime!((i * plan.column_tiles + t) * HELD);
            let mut of_codes = Array::<f32>::new(HELD);
            #[unroll]
            for e in 0..HELD {
                of_codes[e] = products[comptime!(t * HELD + e)];
            }
            let sums = &mut self.products;
            add_scaled(sums, &of_codes, low.factor, high.factor, to, plan.single);
            add_scaled(
                sums,
                &result,
                low.shift * unit,
                high.shift * unit,
                to,
                plan.single,
            );
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

/// Adds the products of a group by its scales to `products`. `x` is the first vector of the group,
/// and `at` the lane's first of the tile.
#[cube]
#[allow(clippy::too_many_arguments)]
fn add_group(
    products: &mut Array<f32>,
    loaded: &Array<Words>,
    low: &RowScales,
    high: &RowScales,
    halves: &[Words],
    columns: &Columns,
    x: usize,
    #[comptime] at: usize,
    #[comptime] group: usize,
    #[comptime] plan: LinearBlocksBlueprint,
) {
    let layout = comptime!(plan.layout());
    let mut a = Array::<u32>::new(8usize);
    #[unroll]
    for pair in 0..4usize {
        a[comptime!(2 * pair)] = codes_of_pair(loaded, at, 0usize, group, pair, layout);
        a[comptime!(2 * pair + 1)] = codes_of_pair(loaded, at, 1usize, group, pair, layout);
    }
    #[unroll]
    for t in 0..comptime!(plan.column_tiles) {
        let vector = halves[x + columns.vectors[t]];
        let to = comptime!(t * HELD);
        let result = multiply(&zeros(HELD), &a, vector, 0usize);
        if comptime!(layout.scales == Scales::Bytes) {
            let (one, two) = (comptime!(2 * group), comptime!(2 * group + 1));
            let (a_low, a_high) = (low.factors[one], high.factors[one]);
            add_scaled(products, &result, a_low, a_high, to, plan.single);
            let result = multiply(&zeros(HELD), &a, vector, 1usize);
            let (b_low, b_high) = (low.factors[two], high.factors[two]);
            add_scaled(products, &result, b_low, b_high, to, plan.single);
        } else {
            let result = multiply(&result, &a, vector, 1usize);
            let (a_low, a_high) = (low.factors[group], high.factors[group]);
            add_scaled(products, &result, a_low, a_high, to, plan.single);
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

/// Returns this unit's number among those that finish the outputs of a round: another plane begins
/// each time.
#[cube]
fn unit_of_round(round: u32, #[comptime] plan: LinearBlocksBlueprint) -> usize {
    let units = comptime!(plan.rows.units);
    ((UNIT_POS + round * comptime!(LANES as u32)) % units) as usize
}

/// Returns the output and the row of x of result number `i` of a unit. Neighbouring units write
/// neighbouring outputs.
#[cube]
fn place_of(
    #[comptime] i: usize,
    unit: usize,
    #[comptime] plan: LinearBlocksBlueprint,
) -> (usize, usize) {
    let place = comptime!(i * plan.rows.units as usize) + unit;
    let row = place / comptime!(plan.tile());
    (place % comptime!(plan.tile()), row)
}

/// Loads the addends of a unit's results.
#[cube]
fn addends_of_unit<E: Float>(
    addition: &Addition<'_, E>,
    tile: &Tile,
    shape: &LinearShape,
    begin: usize,
    unit: usize,
    #[comptime] plan: LinearBlocksBlueprint,
) -> Sequence<Addends> {
    let width = row_width(shape, plan.projection);
    let mut all = Sequence::<Addends>::new();
    #[unroll]
    for i in 0..comptime!(plan.outputs_of_unit()) {
        let (column, row) = place_of(i, unit, plan);
        let output = min(tile.first + column, tile.count - 1);
        let row = min(begin + row, shape.rows as usize - 1);
        let at = row * width + tile.before + output;
        let projection = comptime!(plan.projection);
        all.push(load_addends::<E>(
            addition.biases,
            addition.residual,
            tile,
            output,
            at,
            projection,
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
