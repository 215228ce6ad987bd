//! Linear layers of packed weights over few rows without matrix units.
//!
//! A cube computes 16 outputs, for up to [`MOST_ROWS`] rows of x. The eight rows of each half of a
//! tile, its members and four of its groups make 128 units; several such teams split the features.
//! Neighbouring units load neighbouring words.

use cubecl::prelude::*;

use crate::backends::cube::parts::blocks::{
    BlockLayout, FEATURES, GROUP, GROUPS, MEMBERS, ROWS, RUN, first_of_run, weights_of_member,
};
use crate::backends::cube::parts::projection::{
    LinearShape, ProjectionBlueprint, Tile, UpToThree, finish, load_addends, locate_tile, row_width,
};

/// The most rows of x of a cube.
pub(crate) const MOST_ROWS: usize = 4;
/// Groups that a unit's neighbours share.
const NEIGHBOURS: usize = 4;
/// Units of a team.
pub(crate) const TEAM: usize = 8 * MEMBERS * NEIGHBOURS;
/// Units that share an output.
const SHARERS: usize = MEMBERS * NEIGHBOURS;

/// The settings that the kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LinearBlocksPlainBlueprint {
    /// The weights and the outputs; the norm went before.
    pub projection: ProjectionBlueprint,
    pub layout: BlockLayout,
    /// Rows of x of a cube.
    pub rows: usize,
    /// Teams of a cube.
    pub teams: usize,
}

impl LinearBlocksPlainBlueprint {
    /// Weights that a unit reads at once: a gate and its partner, or one.
    fn beside(&self) -> usize {
        if self.projection.gated { 2 } else { 1 }
    }

    /// Sums of a unit: those of both halves of a tile.
    fn sums(&self) -> usize {
        2 * self.beside() * self.rows
    }

    fn units(&self) -> usize {
        self.teams * TEAM
    }

    /// Bytes of shared memory.
    pub fn shared_bytes(&self) -> usize {
        4 * self.sums() * self.units()
    }
}

/// Computes linear layers of packed weights with their epilogue: `out` [rows, outputs]. It computes
/// the tiles of outputs from `first_tile` on, whose weights all have the layout of the plan.
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn linear_blocks_plain_kernel<E: Float, N: Size>(
    x: &[Vector<E, N>],
    weights: &UpToThree<u32>,
    biases: &UpToThree<E>,
    residual: &[E],
    out: &mut [E],
    shape: &LinearShape,
    first_tile: u32,
    #[comptime] plan: LinearBlocksPlainBlueprint,
    #[define(E)] _type: ElemType,
) {
    let rows = comptime!(plan.rows);
    let blocks = (shape.rows as usize).div_ceil(rows);
    let begin = CUBE_POS % blocks * rows;
    let index = first_tile as usize + CUBE_POS / blocks;
    let tile = locate_tile(shape, index, ROWS, plan.projection);
    if !tile.exists {
        terminate!();
    }
    let mut sums = Array::<f32>::new(comptime!(plan.sums()));
    #[unroll]
    for i in 0..comptime!(plan.sums()) {
        sums[i] = 0.0f32;
    }
    if tile.weight == 0u32 {
        add_products::<E, N>(
            &mut sums,
            x,
            &weights.first,
            &tile,
            shape,
            begin,
            0usize,
            plan,
        );
    }
    if comptime!(plan.projection.gated) {
        let to = comptime!(2 * rows);
        add_products::<E, N>(&mut sums, x, &weights.second, &tile, shape, begin, to, plan);
    } else if comptime!(plan.projection.weights > 1) {
        if tile.weight == 1u32 {
            add_products::<E, N>(
                &mut sums,
                x,
                &weights.second,
                &tile,
                shape,
                begin,
                0usize,
                plan,
            );
        }
    }
    if comptime!(plan.projection.weights > 2) {
        if tile.weight == 2u32 {
            add_products::<E, N>(
                &mut sums,
                x,
                &weights.third,
                &tile,
                shape,
                begin,
                0usize,
                plan,
            );
        }
    }
    let unit = UNIT_POS as usize;
    let mut shared = Shared::<[f32]>::new_slice(comptime!(plan.sums() * plan.units()));
    #[unroll]
    for i in 0..comptime!(plan.sums()) {
        shared[comptime!(i * plan.units()) + unit] = sums[i];
    }
    sync_cube();
    let width = row_width(shape, plan.projection);
    let (output, row) = (tile.first + unit % ROWS, unit / ROWS);
    if row < rows && begin + row < shape.rows as usize && output < tile.count {
        let product = sum_of_sharers(&shared, unit % ROWS, row, 0usize, plan);
        let mut up = 0.0f32;
        if comptime!(plan.projection.gated) {
            up = sum_of_sharers(&shared, unit % ROWS, row, comptime!(2 * rows), plan);
        }
        let at = (begin + row) * width + tile.before + output;
        let addends = load_addends::<E>(biases, residual, &tile, output, at, plan.projection);
        out[at] = E::cast_from(finish(product, up, &addends, plan.projection));
    }
}

/// Adds this unit's part of the products to the sums from `to` on, [2, rows].
#[cube]
#[allow(clippy::too_many_arguments)]
fn add_products<E: Float, N: Size>(
    sums: &mut Array<f32>,
    x: &[Vector<E, N>],
    weight: &[u32],
    tile: &Tile,
    shape: &LinearShape,
    begin: usize,
    #[comptime] to: usize,
    #[comptime] plan: LinearBlocksPlainBlueprint,
) {
    let features = shape.features as usize;
    let steps = shape.pitch as usize;
    let unit = UNIT_POS as usize % TEAM;
    let (team, neighbour) = (UNIT_POS as usize / TEAM, unit % NEIGHBOURS);
    let (row, member) = (unit / SHARERS, unit / NEIGHBOURS % MEMBERS);
    // As many rounds in every unit.
    let rounds = (steps * comptime!(GROUPS / NEIGHBOURS)).div_ceil(comptime!(plan.teams));
    for round in 0..rounds {
        let part = round * comptime!(plan.teams) + team;
        let group = part * NEIGHBOURS + neighbour;
        let feature = group * GROUP;
        if feature < features {
            let first = tile.first / ROWS * steps + feature / FEATURES;
            let first = first * comptime!(plan.layout.words());
            #[unroll]
            for half in 0..2usize {
                let weights = weights_of_member(
                    weight,
                    first,
                    row + comptime!(8 * half),
                    group % GROUPS,
                    member,
                    plan.layout,
                );
                #[unroll]
                for r in 0..comptime!(plan.rows) {
                    let of_x = min(begin + r, shape.rows as usize - 1) * features;
                    #[unroll]
                    for run in 0..2usize {
                        let at = of_x + feature + first_of_run(run.runtime(), member);
                        let vector = x[at / RUN];
                        #[unroll]
                        for i in 0..RUN {
                            sums[comptime!(to + half * plan.rows + r)] += weights
                                [comptime!(run * RUN + i)]
                                * f32::cast_from(vector.extract(i));
                        }
                    }
                }
            }
        }
    }
}

/// Returns the sum of an output, counted in the tile, over the units that share it; `first` is the
/// first of the weight's sums.
#[cube]
fn sum_of_sharers(
    shared: &Shared<[f32]>,
    output: usize,
    row: usize,
    #[comptime] first: usize,
    #[comptime] plan: LinearBlocksPlainBlueprint,
) -> f32 {
    let of_sum = first + output / 8 * plan.rows + row;
    let at = of_sum * plan.units() + output % 8 * SHARERS;
    let mut sum = 0.0f32;
    for team in 0..comptime!(plan.teams) {
        #[unroll]
        for i in 0..SHARERS {
            sum += shared[at + team * TEAM + i];
        }
    }
    sum
}
