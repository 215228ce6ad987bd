//! The products of a plane: those of codes, by their scales, and those of scales or minima by sums
//! of x.

use burn::tensor::f16;
use cubecl::cmma::MmaDefinition;
use cubecl::prelude::*;

use super::{COLUMNS, HELD, LinearBlocksBlueprint};
use crate::backends::cube::parts::blocks::{
    GROUPS, LANES, MEMBERS, ROWS, RowScales, Scales, Words, codes_of_pair, scales_of_row,
};
use crate::backends::cube::parts::half_rows::{SUM_UNIT, VECTORS};
use crate::backends::cube::parts::projection::LinearShape;
use crate::backends::cube::parts::warpgroup::{lane, plane};

/// Where a lane's columns of x are.
#[derive(CubeType)]
pub(super) struct Columns {
    /// Vectors of all columns of a group.
    of_group: usize,
    /// The lane's vector of each tile of columns, relative to those of a group.
    vectors: Array<usize>,
    /// The rows of x of its two results of each row of weights, if the cube packs them.
    rows: Array<usize>,
}

#[cube]
impl Columns {
    pub fn new(
        shape: &LinearShape,
        begin: usize,
        #[comptime] plan: LinearBlocksBlueprint,
    ) -> Columns {
        let lane = lane() as usize;
        let mut vectors = Array::<usize>::new(comptime!(plan.column_tiles));
        let mut rows = Array::<usize>::new(2usize);
        if comptime!(plan.single) {
            vectors[0] = lane % MEMBERS;
            rows[0] = 0usize.runtime();
            rows[1] = 0usize.runtime();
        } else {
            let count = shape.rows as usize * comptime!(plan.rows.halves);
            let first = begin * comptime!(plan.rows.halves);
            #[unroll]
            for t in 0..comptime!(plan.column_tiles) {
                // Past the last column, it is multiplied again.
                let column = min(first + comptime!(t * COLUMNS) + lane / MEMBERS, count - 1);
                vectors[t] = column * MEMBERS + lane % MEMBERS;
            }
            #[unroll]
            for e in 0..2usize {
                let column = min(lane % MEMBERS * 2 + e, count - 1);
                rows[e] = column / comptime!(plan.rows.halves);
            }
        }
        Columns {
            of_group: vectors_of_group(shape, plan),
            vectors,
            rows,
        }
    }

    /// Loads the lane's vectors of x of step `step`, if the plane loads them ahead.
    pub fn load_step(
        &self,
        halves: &[Words],
        step: usize,
        #[comptime] plan: LinearBlocksBlueprint,
    ) -> Array<Words> {
        let count = comptime!(if plan.loads_x_ahead() { VECTORS } else { 0 });
        self.load(halves, step, 0usize, count, plan)
    }

    /// Loads the lane's vectors of x of `count` groups of a step, [groups, `column_tiles`].
    fn load(
        &self,
        halves: &[Words],
        step: usize,
        #[comptime] group: usize,
        #[comptime] count: usize,
        #[comptime] plan: LinearBlocksBlueprint,
    ) -> Array<Words> {
        let tiles = comptime!(plan.column_tiles);
        let mut x = Array::<Words>::new(comptime!((count * tiles).max(1)));
        #[unroll]
        for i in 0..count {
            let first = (step * VECTORS + comptime!(group + i)) * self.of_group;
            #[unroll]
            for t in 0..tiles {
                x[comptime!(i * tiles + t)] = halves[first + self.vectors[t]];
            }
        }
        x
    }

    /// Returns the factors that undo the scaling of x in step `step`, of the lane's two columns.
    pub fn unscales(
        &self,
        all: &Shared<[f32]>,
        step: usize,
        #[comptime] plan: LinearBlocksBlueprint,
    ) -> Array<f32> {
        let mut unscales = Array::<f32>::new(2usize);
        #[unroll]
        for e in 0..2usize {
            unscales[e] = 1.0f32;
            if comptime!(plan.packs > 0) {
                unscales[e] = all[self.rows[e] * comptime!(plan.rows.steps()) + step];
            }
        }
        unscales
    }
}

/// The sums of a lane.
#[derive(CubeType)]
pub(super) struct Sums {
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
    pub fn new(#[comptime] plan: LinearBlocksBlueprint) -> Sums {
        Sums {
            products: zeros(comptime!(plan.weight_tiles * plan.column_tiles * HELD)),
        }
    }

    pub fn clear(&mut self, #[comptime] plan: LinearBlocksBlueprint) {
        #[unroll]
        for i in 0..comptime!(plan.weight_tiles * plan.column_tiles * HELD) {
            self.products[i] = 0.0f32;
        }
    }

    /// Adds the products of the loaded tiles, bundle `bundle` of an item, with the features of step
    /// `step`. `held` are the vectors of [`Columns::load_step`].
    #[allow(clippy::too_many_arguments)]
    pub fn add(
        &mut self,
        loaded: &Array<Words>,
        held: &Array<Words>,
        halves: &[Words],
        columns: &Columns,
        unscales: &Array<f32>,
        step: usize,
        #[comptime] bundle: usize,
        #[comptime] plan: LinearBlocksBlueprint,
    ) {
        let layout = comptime!(plan.layout());
        let mut low = Sequence::<RowScales>::new();
        let mut high = Sequence::<RowScales>::new();
        #[unroll]
        for i in 0..comptime!(plan.beside) {
            let at = comptime!(i * layout.of_lane());
            low.push(scales_of_row(loaded, at, 0usize, layout));
            high.push(scales_of_row(loaded, at, 1usize, layout));
        }
        let of_tile = comptime!(plan.column_tiles * HELD);
        let mut products = zeros(comptime!(plan.beside * of_tile));
        let groups = comptime!(plan.groups_at_once());
        #[unroll]
        for batch in 0..comptime!(GROUPS / groups) {
            let first = comptime!(batch * groups);
            let x = x_of_groups(held, halves, columns, step, first, groups, plan);
            #[unroll]
            for i in 0..comptime!(plan.beside) {
                let (at, to) = comptime!((i * layout.of_lane(), i * of_tile));
                let (low, high) = (&low[i], &high[i]);
                let range = comptime!((first, groups));
                add_groups(&mut products, loaded, low, high, &x, at, to, range, plan);
            }
        }
        let x = x_of_groups(held, halves, columns, step, GROUPS, 1usize, plan);
        #[unroll]
        for i in 0..comptime!(plan.beside) {
            let from = comptime!(i * of_tile);
            let number = comptime!(bundle * plan.beside + i);
            let (low, high) = (&low[i], &high[i]);
            self.add_tile(&products, low, high, &x, unscales, from, number, plan);
        }
    }

    /// Adds the products of tile `i` of an item, those of `products` from `from` on, and its sums
    /// of x by the zero points or minima.
    #[allow(clippy::too_many_arguments)]
    fn add_tile(
        &mut self,
        products: &Array<f32>,
        low: &RowScales,
        high: &RowScales,
        x: &Array<Words>,
        unscales: &Array<f32>,
        #[comptime] from: usize,
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
            let vector = x[t];
            let mut result = zeros(HELD);
            multiply(&mut result, 0usize, &shifts, 0usize, vector, 0usize);
            if comptime!(plan.layout().scales == Scales::Bytes) {
                multiply(&mut result, 0usize, &shifts, 0usize, vector, 1usize);
            }
            let to = comptime!((i * plan.column_tiles + t) * HELD);
            #[unroll]
            for e in 0..HELD {
                // The second of two columns does not exist if there is only one.
                if comptime!(!plan.single || e % 2 == 0) {
                    let (factor, shift) = if comptime!(e < 2) {
                        (low.factor, low.shift)
                    } else {
                        (high.factor, high.shift)
                    };
                    let of_codes = products[comptime!(from + t * HELD + e)] * factor;
                    let sum = of_codes + result[e] * (shift * unit);
                    self.products[comptime!(to + e)] += sum * unscales[comptime!(e % 2)];
                }
            }
        }
    }

    /// Writes the sums of a plane for the item at `place` to shared memory.
    pub fn store(
        &self,
        shared: &mut Shared<[f32]>,
        place: usize,
        #[comptime] plan: LinearBlocksBlueprint,
    ) {
        let lane = lane() as usize;
        let first = (place * comptime!(plan.planes()) + plane()) * plan.sums();
        #[unroll]
        for i in 0..comptime!(plan.weight_tiles * plan.column_tiles) {
            let first = first + comptime!(i * plan.sums_of_tile());
            if comptime!(plan.single) {
                if lane % MEMBERS == 0 {
                    shared[first + lane / MEMBERS] = self.products[comptime!(i * HELD)];
                    let next = self.products[comptime!(i * HELD + 2)];
                    shared[first + lane / MEMBERS + 8] = next;
                }
            } else {
                #[unroll]
                for e in 0..HELD {
                    let product = self.products[comptime!(i * HELD + e)];
                    shared[first + comptime!(e * LANES) + lane] = product;
                }
            }
        }
    }
}

#[cube]
fn vectors_of_group(shape: &LinearShape, #[comptime] plan: LinearBlocksBlueprint) -> usize {
    if comptime!(plan.single) {
        MEMBERS.runtime()
    } else {
        shape.rows as usize * comptime!(plan.rows.halves * MEMBERS)
    }
}

/// Returns the lane's vectors of x of `count` groups of a step: of `held` if it has them.
#[cube]
fn x_of_groups(
    held: &Array<Words>,
    halves: &[Words],
    columns: &Columns,
    step: usize,
    #[comptime] group: usize,
    #[comptime] count: usize,
    #[comptime] plan: LinearBlocksBlueprint,
) -> Array<Words> {
    if comptime!(plan.loads_x_ahead()) {
        let mut x = Array::<Words>::new(count);
        #[unroll]
        for i in 0..count {
            x[i] = held[comptime!(group + i)];
        }
        x
    } else {
        columns.load(halves, step, group, count, plan)
    }
}

/// Adds the products of the groups (first, count) by their scales to `products` from `to` on. `at`
/// is the lane's first vector of the tile.
///
/// The second product of a group waits for its first, so that those of other groups go between.
#[cube]
#[allow(clippy::too_many_arguments)]
fn add_groups(
    products: &mut Array<f32>,
    loaded: &Array<Words>,
    low: &RowScales,
    high: &RowScales,
    x: &Array<Words>,
    #[comptime] at: usize,
    #[comptime] to: usize,
    #[comptime] groups: (usize, usize),
    #[comptime] plan: LinearBlocksBlueprint,
) {
    let layout = comptime!(plan.layout());
    let (first, count) = comptime!(groups);
    let tiles = comptime!(plan.column_tiles);
    let mut a = Array::<u32>::new(comptime!(8 * count));
    #[unroll]
    for i in 0..count {
        let group = comptime!(first + i);
        #[unroll]
        for pair in 0..4usize {
            let word = comptime!(8 * i + 2 * pair);
            a[word] = codes_of_pair(loaded, at, 0usize, group, pair, layout);
            a[comptime!(word + 1)] = codes_of_pair(loaded, at, 1usize, group, pair, layout);
        }
    }
    let mut results = zeros(comptime!(count * tiles * HELD));
    #[unroll]
    for half in 0..2usize {
        #[unroll]
        for i in 0..count {
            #[unroll]
            for t in 0..tiles {
                let number = comptime!(i * tiles + t);
                let of = comptime!(number * HELD);
                multiply(&mut results, of, &a, comptime!(8 * i), x[number], half);
            }
        }
        // The halves have scales of their own, or one for both.
        let apart = comptime!(layout.scales == Scales::Bytes);
        if comptime!(apart || half == 1) {
            #[unroll]
            for i in 0..count {
                let group = comptime!(first + i);
                let scale = comptime!(if apart { 2 * group + half } else { group });
                let (low, high) = (low.factors[scale], high.factors[scale]);
                #[unroll]
                for t in 0..tiles {
                    let from = comptime!((i * tiles + t) * HELD);
                    let to = comptime!(to + t * HELD);
                    add_scaled(products, &results, low, high, from, to, plan.single);
                    if comptime!(half == 0) {
                        #[unroll]
                        for e in 0..HELD {
                            results[comptime!(from + e)] = 0.0f32;
                        }
                    }
                }
            }
        }
    }
}

/// Adds four results from `from` on, two of each row, by the rows' factors to the sums from `to`
/// on.
#[cube]
fn add_scaled(
    sums: &mut Array<f32>,
    result: &Array<f32>,
    low: f32,
    high: f32,
    #[comptime] from: usize,
    #[comptime] to: usize,
    #[comptime] single: bool,
) {
    #[unroll]
    for e in 0..HELD {
        // The second of two columns does not exist if there is only one.
        if comptime!(!single || e % 2 == 0) {
            let factor = if comptime!(e < 2) { low } else { high };
            sums[comptime!(to + e)] += result[comptime!(from + e)] * factor;
        }
    }
}

/// Adds the products of one half of the features to the four sums from `to` on: words 4 `half` ..
/// 4 `half` + 4 of `a` from `at` on with two words of x.
#[cube]
fn multiply(
    sums: &mut Array<f32>,
    #[comptime] to: usize,
    a: &Array<u32>,
    #[comptime] at: usize,
    x: Words,
    #[comptime] half: usize,
) {
    let product = MmaDefinition::<f16, f16, f32>::new(ROWS, COLUMNS, 16usize);
    let mut left = Array::<Vector<f16, Const<2>>>::new(4usize);
    let mut right = Array::<Vector<f16, Const<2>>>::new(2usize);
    let mut before = Array::<Vector<f32, Const<2>>>::new(2usize);
    #[unroll]
    for i in 0..4usize {
        left[i] = Vector::reinterpret(a[comptime!(at + 4 * half + i)]);
    }
    #[unroll]
    for i in 0..2usize {
        right[i] = Vector::reinterpret(x.extract(comptime!(2 * half + i)));
        let mut two = Vector::<f32, Const<2>>::new(0.0f32);
        two.insert(0usize, sums[comptime!(to + 2 * i)]);
        two.insert(1usize, sums[comptime!(to + 2 * i + 1)]);
        before[i] = two;
    }
    let after = product.execute(&left, &right, &before);
    #[unroll]
    for i in 0..2usize {
        sums[comptime!(to + 2 * i)] = after[i].extract(0usize);
        sums[comptime!(to + 2 * i + 1)] = after[i].extract(1usize);
    }
}
