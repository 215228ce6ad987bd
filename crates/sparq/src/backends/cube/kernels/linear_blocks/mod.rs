//! Linear layers of packed weights over few rows with matrix units: sixteen rows of weights by
//! eight columns of x in one instruction.
//!
//! Codes become halves in registers and are multiplied as they are: by one operation for two of
//! them, and without rounding. The results of the features that share a scale are multiplied by it,
//! and one more product subtracts the zero points or adds the minima. See
//! [`blocks`](crate::backends::cube::parts::blocks) for the weights and
//! [`half_rows`](crate::backends::cube::parts::half_rows) for x.
//!
//! The planes of a cube share its rows of weights and split the features. Each copies its tiles to
//! slots of its own in shared memory, some tiles ahead, and goes on without waiting for the other
//! planes: only when the sums of many rows are held in shared memory are those of the planes added.

mod copies;
mod sums;
mod work;

use cubecl::prelude::*;

use self::copies::Copies;
use self::sums::{Columns, Sums};
use self::work::Work;
use crate::backends::cube::parts::blocks::{BlockLayout, LANES, MEMBERS, ROWS, Scales, Words};
use crate::backends::cube::parts::half_rows::{FloatRows, HalfRowsBlueprint, rms_factor};
use crate::backends::cube::parts::projection::{
    Addends, LinearShape, NormKind, NormWeights, ProjectionBlueprint, UpToThree, finish,
    load_addends, row_width,
};
use crate::backends::cube::parts::warpgroup::{lane, plane};

/// Columns of x of a product.
pub(crate) const COLUMNS: usize = 8;
/// Vectors of x that a unit copies at once.
const COPIES: usize = 8;
/// Numbers that a lane holds of a result.
const HELD: usize = 4;
/// Products of a tile at the same time.
const PRODUCTS: usize = 4;

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
    /// Tiles of rows of weights of an item. With a gate, half of them are its.
    pub weight_tiles: usize,
    /// Tiles of them that a plane copies at once, and multiplies by the same numbers of x.
    pub beside: usize,
    /// Slots of a plane for that many tiles.
    pub slots: usize,
    /// They are bulk copies. Without, the units copy, and many copies on their way delay others.
    pub bulk: bool,
    /// Items whose sums are held.
    pub held: usize,
    /// Columns of a cube, in products.
    pub column_tiles: usize,
    /// There is only one column.
    pub single: bool,
    /// All rows of x are those of a cube.
    pub whole: bool,
}

impl LinearBlocksBlueprint {
    pub fn layout(&self) -> BlockLayout {
        self.rows.layout
    }

    /// Outputs of an item.
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
        self.rows.planes()
    }

    /// Sums of a tile by a product's columns.
    fn sums_of_tile(&self) -> usize {
        if self.single { ROWS } else { HELD * LANES }
    }

    /// Sums of a plane for an item.
    fn sums(&self) -> usize {
        self.weight_tiles * self.column_tiles * self.sums_of_tile()
    }

    /// Whether a plane loads x of a step before its tiles have come. Codes of 8 bits leave no
    /// registers for it.
    fn loads_x_ahead(&self) -> bool {
        self.column_tiles == 1 && self.layout().code_bits == 4
    }

    /// Groups whose products follow each other, for each of which a lane holds codes and results.
    fn groups_at_once(&self) -> usize {
        match self.layout().code_bits {
            4 => (PRODUCTS / self.column_tiles).max(1),
            _ => 1,
        }
    }

    /// Bytes of the sums of an item.
    pub fn bytes_of_item(&self) -> usize {
        4 * self.planes() * self.sums()
    }

    /// Outputs of an item, in all its rows of x.
    fn outputs(&self) -> usize {
        let rows = if self.single { 1 } else { self.rows_of_cube() };
        self.tile() * rows
    }

    /// Outputs of the items held that a unit finishes.
    fn outputs_of_unit(&self) -> usize {
        (self.held * self.outputs()).div_ceil(self.rows.units as usize)
    }

    /// Vectors of a slot.
    fn slot(&self) -> usize {
        self.beside * self.layout().vectors()
    }

    /// Bytes of a slot of every plane.
    pub fn bytes_of_slots(&self) -> usize {
        16 * self.planes() * self.slot()
    }

    fn barriers(&self) -> usize {
        if self.bulk {
            self.slots * self.planes()
        } else {
            1
        }
    }

    /// The factors that undo the scaling of x, of each row that the cube packs and each step.
    fn unscales(&self) -> usize {
        (self.packs * self.rows.steps()).max(1)
    }

    /// The sums of squares of each of these rows and each plane.
    fn squares(&self) -> usize {
        (self.packs * self.planes()).max(1)
    }

    /// Bytes of shared memory.
    pub fn shared_bytes(&self) -> usize {
        16 * self.shared
            + self.slots * self.bytes_of_slots()
            + 8 * self.barriers()
            + self.held * self.bytes_of_item()
            + 4 * (self.unscales() + self.squares())
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

/// Computes linear layers of packed weights with their epilogue: `out` [rows, outputs]. The parts
/// of a row that have cubes all have the layout of the plan.
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
    /// The factors that undo the scaling of each row and step.
    unscales: Shared<[f32]>,
    /// The sums of squares of each row and plane.
    squares: Shared<[f32]>,
    /// The sums of each plane for each item held.
    sums: Shared<[f32]>,
    /// The slots of each plane.
    slots: Shared<[Words]>,
    /// Each slot's barrier for bulk copies.
    barriers: Shared<[u64]>,
}

#[cube]
impl Memory {
    fn new(#[comptime] plan: LinearBlocksBlueprint) -> Memory {
        Memory {
            halves: Shared::<[Words]>::new_slice(comptime!(plan.shared.max(1))),
            barriers: Shared::<[u64]>::new_slice(comptime!(plan.barriers())),
            unscales: Shared::<[f32]>::new_slice(comptime!(plan.unscales())),
            squares: Shared::<[f32]>::new_slice(comptime!(plan.squares())),
            sums: Shared::<[f32]>::new_slice(comptime!(plan.held * plan.planes() * plan.sums())),
            slots: Shared::<[Words]>::new_slice(comptime!(
                plan.slots * plan.planes() * plan.slot()
            )),
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
    let mut copies = Copies::new(first, second, &*memory, work, plan);
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
    // The first weights are on their way while x is packed, but behind x of all planes.
    sync_cube();
    #[unroll]
    for slot in 0..comptime!(plan.slots) {
        copies.request(memory, work, slot, plan);
    }
    if comptime!(plan.packs > 0) {
        #[unroll]
        for row in 0..comptime!(plan.packs) {
            let from = comptime!(row * vectors);
            let squares = floats.pack_steps(
                row.runtime(),
                &x,
                &scales,
                &mut memory.halves,
                &mut memory.unscales,
                from,
                plan.rows,
            );
            if lane() == 0 {
                memory.squares[comptime!(row * plan.planes()) + plane()] = squares;
            }
        }
        // A plane multiplies by what it packed.
        sync_plane();
    } else if comptime!(plan.shared > 0) {
        copy_halves(&packed.halves, &mut memory.halves, plan);
        sync_cube();
    }

    let mut sums = Sums::new(plan);
    let mut loaded = Array::<Words>::new(comptime!(plan.beside * plan.layout().of_lane()));
    let mut first_item = work.cube;
    while first_item < work.items {
        let addends = addends_of_unit::<E>(addition, shape, work, first_item, plan);
        let mut item = first_item;
        let mut place = 0usize;
        while place < comptime!(plan.held) && item < work.items {
            let columns = Columns::new(shape, work.first_row(item, plan), plan);
            sums.clear(plan);
            let mut step = plane();
            while step < work.steps {
                #[unroll]
                for bundle in 0..comptime!(plan.weight_tiles / plan.beside) {
                    let unscales = columns.unscales(&memory.unscales, step, plan);
                    if comptime!(plan.shared > 0) {
                        let held = columns.load_step(&memory.halves, step, plan);
                        copies.receive(memory, &mut loaded, work, bundle, plan);
                        let x = &memory.halves;
                        sums.add(&loaded, &held, x, &columns, &unscales, step, bundle, plan);
                    } else {
                        let held = columns.load_step(&packed.halves, step, plan);
                        copies.receive(memory, &mut loaded, work, bundle, plan);
                        let x = &packed.halves;
                        sums.add(&loaded, &held, x, &columns, &unscales, step, bundle, plan);
                    }
                }
                step += comptime!(plan.planes());
            }
            sums.store(&mut memory.sums, place, plan);
            item += work.cubes;
            place += 1usize;
        }
        sync_cube();
        finish_items::<E>(
            &addends, out, &*memory, packed, shape, work, first_item, plan,
        );
        first_item = item;
        if first_item < work.items {
            // Another unit may still read the sums.
            sync_cube();
        }
    }
}

/// Adds the sums of the planes for the items from `first_item` on, and writes their outputs.
#[cube]
#[allow(clippy::too_many_arguments)]
fn finish_items<E: Float>(
    addends: &Sequence<Addends>,
    out: &mut [E],
    memory: &Memory,
    packed: &PackedRows,
    shape: &LinearShape,
    work: &Work,
    first_item: usize,
    #[comptime] plan: LinearBlocksBlueprint,
) {
    let width = row_width(shape, plan.projection);
    #[unroll]
    for i in 0..comptime!(plan.outputs_of_unit()) {
        let (place, column, row) = place_of(i, plan);
        let item = first_item + place * work.cubes;
        let begin = work.first_row(item, plan);
        let tile = work.tile(item, plan);
        let output = tile.first + column;
        let inside = place < comptime!(plan.held) && item < work.items;
        let inside = inside && begin + row < shape.rows as usize;
        if inside && output < tile.count {
            let mut unscale = 1.0f32;
            if comptime!(plan.packs == 0) {
                unscale = packed.unscales[begin + row];
            } else if comptime!(plan.projection.norm == NormKind::Rms) {
                let mut squares = 0.0f32;
                #[unroll]
                for plane in 0..comptime!(plan.planes()) {
                    squares += memory.squares[row * comptime!(plan.planes()) + plane];
                }
                unscale = rms_factor(squares, shape.features as usize, shape.epsilon);
            }
            let product = sum_of_planes(&memory.sums, place, column, row, plan) * unscale;
            let mut up = 0.0f32;
            if comptime!(plan.projection.gated) {
                let beside = column + comptime!(plan.tile());
                up = sum_of_planes(&memory.sums, place, beside, row, plan) * unscale;
            }
            let value = finish(product, up, &addends[i], plan.projection);
            out[(begin + row) * width + tile.before + output] = E::cast_from(value);
        }
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

/// Returns the place of the item, the output and the row of x of result number `i` of a unit.
/// Neighbouring units read neighbouring sums.
#[cube]
fn place_of(
    #[comptime] i: usize,
    #[comptime] plan: LinearBlocksBlueprint,
) -> (usize, usize, usize) {
    let number = comptime!(i * plan.rows.units as usize) + UNIT_POS as usize;
    let place = number / comptime!(plan.outputs());
    let of_item = number % comptime!(plan.outputs());
    if comptime!(plan.single) {
        (place, of_item, 0usize.runtime())
    } else {
        // The two halves of a row are in one lane.
        let halves = comptime!(plan.rows.halves);
        let of_tile = comptime!(plan.sums_of_tile() / halves);
        let (tile, held) = (of_item / of_tile, of_item % of_tile / LANES);
        let lane = of_item % LANES;
        let of_lane = comptime!(2 / halves);
        let output = held / of_lane * 8 + lane / MEMBERS;
        let row = lane % MEMBERS * of_lane + held % of_lane;
        let columns = comptime!(plan.column_tiles);
        let first_row = tile % columns * comptime!(COLUMNS / halves);
        (place, tile / columns * ROWS + output, first_row + row)
    }
}

/// Loads the addends of a unit's results for the items from `first_item` on.
#[cube]
fn addends_of_unit<E: Float>(
    addition: &Addition<'_, E>,
    shape: &LinearShape,
    work: &Work,
    first_item: usize,
    #[comptime] plan: LinearBlocksBlueprint,
) -> Sequence<Addends> {
    let width = row_width(shape, plan.projection);
    let mut all = Sequence::<Addends>::new();
    #[unroll]
    for i in 0..comptime!(plan.outputs_of_unit()) {
        let (place, column, row) = place_of(i, plan);
        let item = min(first_item + place * work.cubes, work.items - 1);
        let tile = work.tile(item, plan);
        let output = min(tile.first + column, tile.count - 1);
        let row = min(work.first_row(item, plan) + row, shape.rows as usize - 1);
        let at = row * width + tile.before + output;
        let projection = comptime!(plan.projection);
        all.push(load_addends::<E>(
            addition.biases,
            addition.residual,
            &tile,
            output,
            at,
            projection,
        ));
    }
    all
}

/// Returns the sum over the planes for a row of weights and a row of x of the item at `place`, both
/// counted in the item.
#[cube]
fn sum_of_planes(
    shared: &Shared<[f32]>,
    place: usize,
    weight: usize,
    row: usize,
    #[comptime] plan: LinearBlocksBlueprint,
) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for half in 0..comptime!(plan.rows.halves) {
        let column = row * comptime!(plan.rows.halves) + half;
        let tiles = weight / ROWS * plan.column_tiles + column / COLUMNS;
        let mut of_tile = weight % ROWS;
        if comptime!(!plan.single) {
            let lane = weight % 8 * MEMBERS + column % COLUMNS / 2;
            let held = weight % ROWS / 8 * 2 + column % 2;
            of_tile = held * LANES + lane;
        }
        let first = place * comptime!(plan.planes() * plan.sums());
        let at = first + tiles * comptime!(plan.sums_of_tile()) + of_tile;
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
