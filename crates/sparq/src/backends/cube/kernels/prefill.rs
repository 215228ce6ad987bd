//! Causal attention of many queries with matrix units, after FlashAttention-2.
//!
//! A plane keeps the logits, the running maxima, sums and outputs of its rows in registers. K and V
//! pass through shared memory in tiles, requested one tile ahead. Tiles that no row attends to are
//! not read, and only tiles at the border of a row's positions are masked.

use cubecl::prelude::barrier::copy_async_checked;
use cubecl::prelude::*;

use crate::backends::cube::parts::batch_head::BatchShape;
use crate::backends::cube::parts::cp_async::{commit_group, wait_groups};
use crate::backends::cube::parts::fragments::{
    COLUMNS, DEPTH, RESULT, ROWS, VECTOR, address_by_columns, address_by_rows, load_columns,
    load_rows, load_transposed, max_in_row, multiply, power_of_two, result_column, result_row,
    row_stride, sum_in_row,
};
use crate::backends::cube::parts::online_softmax::KvRows;
use crate::backends::cube::parts::query_rows::{CausalShape, TileRows, rows_of_tile, tile_of_cube};

/// Units of a plane.
const PLANE: usize = 32;
/// Tiles of K and V in shared memory: one in use and one on its way.
const STAGES: usize = 2;
/// The running maximum before the first position. A finite number, so that the difference of two
/// maxima is never NaN; attention weights of rows whose logits are all lower would be 0.
const LOWEST: f32 = -1e30;

/// The sizes that causal attention with matrix units is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PrefillBlueprint {
    /// g.
    pub group: usize,
    /// d, a multiple of 16.
    pub head_dim: usize,
    /// Planes of a cube.
    pub planes: usize,
    /// Blocks of 16 rows of a plane. Two share each load of K and V.
    pub blocks: usize,
    /// Positions of a tile of K and V, a multiple of 16.
    pub keys: usize,
    /// The queries stay in registers. Otherwise they are loaded from shared memory for each tile.
    pub resident: bool,
    /// One cube attends to all positions of a row: it writes the output, and otherwise its state.
    pub single: bool,
}

impl PrefillBlueprint {
    /// Rows of a cube.
    pub fn rows(&self) -> usize {
        self.planes * self.plane_rows()
    }

    /// Rows of a plane.
    pub fn plane_rows(&self) -> usize {
        self.blocks * ROWS
    }

    /// Units of a cube.
    pub fn units(&self) -> usize {
        self.planes * PLANE
    }

    /// Vectors between two rows in shared memory.
    fn stride(&self) -> usize {
        row_stride(self.head_dim)
    }

    /// Vectors of a row.
    fn row(&self) -> usize {
        self.head_dim / VECTOR
    }

    /// The first vector of the tile of K or V in a stage.
    fn tile(&self, stage: usize, values: bool) -> usize {
        (2 * stage + usize::from(values)) * self.keys * self.stride()
    }

    /// The first vector of the queries. Those that stay in registers pass through the last stage.
    fn queries(&self) -> usize {
        self.tile(STAGES - usize::from(self.resident), false)
    }

    /// Vectors in shared memory.
    fn vectors(&self) -> usize {
        let queries = self.queries() + self.rows() * self.stride();
        queries.max(self.tile(STAGES, false))
    }

    /// Bytes of shared memory.
    pub fn shared_bytes(&self) -> usize {
        self.vectors() * 16
    }

    /// Numbers of the logits of a block.
    fn logits(&self) -> usize {
        self.keys / COLUMNS * RESULT
    }

    /// Numbers of the output of a block.
    fn outputs(&self) -> usize {
        self.head_dim / COLUMNS * RESULT
    }
}

/// Attends with the last T positions of each sequence, q [B, H, T, d], to K and V up to their own
/// position; see [`SparqBackend::causal_attention`](crate::ops::SparqBackend::causal_attention).
///
/// Writes `out` [B, H, T, d], or with splits `states` [B, H_kv, splits, T g, 2 + d] as
/// [`dense_kernel`](super::dense::dense_kernel) does.
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn prefill_kernel<Q: Float, E: Float, N: Size>(
    q: &Tensor<Q>,
    rows: &KvRows<E, N>,
    spans: &[u32],
    out: &mut [Vector<Q, Const<2>>],
    states: &mut [f32],
    shape: &BatchShape,
    causal: &CausalShape,
    #[comptime] plan: PrefillBlueprint,
    #[define(Q, E)] _types: [ElemType; 2],
) {
    let place = tile_of_cube(shape, causal);
    if place.index >= shape.count() {
        terminate!();
    }
    let tile = rows_of_tile(
        spans,
        &place,
        shape,
        causal,
        comptime!(plan.rows()),
        plan.keys,
        plan.group,
    );
    let mut shared =
        Shared::<[Vector<E, N>]>::new_aligned_slice(comptime!(plan.vectors()), 16usize);
    let base = place.index * causal.capacity as usize;
    let mut at = tile.from;
    request_tile::<E, N>(rows, &mut shared, base, at, tile.stop, 0usize, plan);
    commit_group();
    store_queries::<Q, E, N>(q, &mut shared, &tile, plan);
    sync_cube();
    let own = own_rows(&tile, plan);
    let mut queries = Array::<Vector<E, Const<2>>>::new(comptime!(if plan.resident {
        plan.blocks * plan.head_dim / DEPTH * 4
    } else {
        1
    }));
    if comptime!(plan.resident) {
        #[unroll]
        for block in 0..plan.blocks {
            #[unroll]
            for step in 0..comptime!(plan.head_dim / DEPTH) {
                let loaded = load_rows::<E, N>(&shared, query_address(block, step, plan));
                #[unroll]
                for x in 0..4usize {
                    queries[comptime!((block * plan.head_dim / DEPTH + step) * 4 + x)] = loaded[x];
                }
            }
        }
    }
    let mut state = RowStates::new(plan);
    let mut stage = 0usize;
    while at < tile.to {
        wait_groups(0usize);
        sync_cube();
        let next = at + comptime!(plan.keys);
        if next < tile.to {
            request_tile::<E, N>(rows, &mut shared, base, next, tile.stop, 1 - stage, plan);
        }
        commit_group();
        if at < own.last_stop && next > own.first_begin {
            let mut logits = logits_of_tile::<E, N>(&shared, &queries, stage, plan);
            if at < own.last_begin || next > own.first_stop {
                mask(&mut logits, &tile, at, plan);
            }
            let weights = state.update::<E>(&mut logits, plan);
            add_values::<E, N>(&mut state, &shared, &weights, stage, plan);
        }
        stage = 1 - stage;
        at = next;
    }
    // Without a position there was no turn: the first tile may still be on its way.
    wait_groups(0usize);
    if comptime!(plan.single) {
        state.write_output::<Q>(out, &tile, plan);
    } else {
        let first = (place.index * causal.splits as usize + place.split) * tile.count;
        state.write_state(states, first, &tile, plan);
    }
}

/// Requests the tile of K and of V from position `from` on, for stage `stage`. Positions from
/// `stop` on become zeros: they may hold NaN, which a weight of 0 does not cancel.
#[cube]
fn request_tile<E: Float, N: Size>(
    rows: &KvRows<E, N>,
    shared: &mut Shared<[Vector<E, N>]>,
    base: usize,
    from: usize,
    stop: usize,
    stage: usize,
    #[comptime] plan: PrefillBlueprint,
) {
    let row = comptime!(plan.row());
    let stride = comptime!(plan.stride());
    let units = comptime!(plan.units());
    let vectors = comptime!(plan.keys * row);
    let first = stage * comptime!(plan.tile(1, false));
    #[unroll]
    for round in 0..comptime!(vectors.div_ceil(units)) {
        let i = comptime!(round * units) + UNIT_POS as usize;
        // Known without a remainder, so that the branch disappears.
        if comptime!((round + 1) * units <= vectors).runtime() || i < vectors {
            let position = from + i / row;
            let valid = select(position < stop, 1usize, 0usize);
            let source = (base + min(position, stop - min(stop, 1usize))) * row + i % row;
            let target = first + i / row * stride + i % row;
            copy_async_checked(
                &rows.keys[source..source + valid],
                &mut shared[target..target + 1],
                comptime!(VECTOR as u32),
            );
            let target = target + comptime!(plan.tile(0, true));
            copy_async_checked(
                &rows.values[source..source + valid],
                &mut shared[target..target + 1],
                comptime!(VECTOR as u32),
            );
        }
    }
}

/// Stores the queries of the tile's rows in the cache's type.
#[cube]
fn store_queries<Q: Float, E: Float, N: Size>(
    q: &Tensor<Q>,
    shared: &mut Shared<[Vector<E, N>]>,
    tile: &TileRows,
    #[comptime] plan: PrefillBlueprint,
) {
    let row = comptime!(plan.row());
    let vectors = comptime!(plan.rows() * row);
    let mut i = UNIT_POS as usize;
    while i < vectors {
        let query = tile.query::<Q>(q, tile.first + i / row, plan.group);
        let from = query + i % row * comptime!(VECTOR) * q.stride(3);
        let mut vector = Vector::<E, N>::new(E::from_int(0));
        #[unroll]
        for e in 0..VECTOR {
            vector.insert(e, E::cast_from(q[from + e * q.stride(3)]));
        }
        shared[comptime!(plan.queries()) + i / row * comptime!(plan.stride()) + i % row] = vector;
        i += comptime!(plan.units());
    }
}

/// The positions of this plane's rows.
#[derive(CubeType)]
struct OwnRows {
    /// The first position of the first row.
    first_begin: usize,
    /// The first position of the last row.
    last_begin: usize,
    /// One past the last position of the first row.
    first_stop: usize,
    /// One past the last position of the last row.
    last_stop: usize,
}

#[cube]
fn own_rows(tile: &TileRows, #[comptime] plan: PrefillBlueprint) -> OwnRows {
    let row = tile.first + plane() * comptime!(plan.plane_rows());
    let first = tile.token(row, plan.group);
    let last = tile.token(row + comptime!(plan.plane_rows() - 1), plan.group);
    OwnRows {
        first_begin: tile.span.begin(first),
        last_begin: tile.span.begin(last),
        first_stop: tile.span.stop(first),
        // A plane without rows has no positions.
        last_stop: select(row < tile.count, tile.span.stop(last), 0usize),
    }
}

#[cube]
fn plane() -> usize {
    UNIT_POS as usize / PLANE
}

#[cube]
fn lane() -> u32 {
    UNIT_POS % comptime!(PLANE as u32)
}

/// The address of this lane for block `block` of the plane's queries and components from 16 `step`
/// on.
#[cube]
fn query_address(
    #[comptime] block: usize,
    #[comptime] step: usize,
    #[comptime] plan: PrefillBlueprint,
) -> usize {
    let (row, vector) = address_by_rows(lane());
    let row = plane() * comptime!(plan.plane_rows()) + row as usize;
    row * comptime!(plan.stride())
        + vector as usize
        + comptime!(plan.queries() + block * ROWS * plan.stride() + 2 * step)
}

/// Returns the products of this plane's queries and the keys of a stage, [blocks, keys / 8, 4].
#[cube]
fn logits_of_tile<E: Float, N: Size>(
    shared: &Shared<[Vector<E, N>]>,
    queries: &Array<Vector<E, Const<2>>>,
    stage: usize,
    #[comptime] plan: PrefillBlueprint,
) -> Array<f32> {
    let steps = comptime!(plan.head_dim / DEPTH);
    let mut logits = Array::<f32>::new(comptime!(plan.blocks * plan.logits()));
    #[unroll]
    for i in 0..comptime!(plan.blocks * plan.logits()) {
        logits[i] = 0.0f32;
    }
    let (row, vector) = address_by_columns(lane());
    let first = stage * comptime!(plan.tile(1, false))
        + row as usize * comptime!(plan.stride())
        + vector as usize;
    #[unroll]
    for step in 0..steps {
        let mut a = Array::<Vector<E, Const<2>>>::new(comptime!(4 * plan.blocks));
        #[unroll]
        for block in 0..plan.blocks {
            if comptime!(plan.resident) {
                #[unroll]
                for x in 0..4usize {
                    a[comptime!(4 * block + x)] =
                        queries[comptime!((block * steps + step) * 4 + x)];
                }
            } else {
                let loaded = load_rows::<E, N>(shared, query_address(block, step, plan));
                #[unroll]
                for x in 0..4usize {
                    a[comptime!(4 * block + x)] = loaded[x];
                }
            }
        }
        #[unroll]
        for pair in 0..comptime!(plan.keys / 16) {
            let at = first + comptime!(pair * 16 * plan.stride() + 2 * step);
            let b = load_columns::<E, N>(shared, at);
            #[unroll]
            for block in 0..plan.blocks {
                #[unroll]
                for half in 0..2usize {
                    let sums = comptime!(block * plan.logits() + (2 * pair + half) * RESULT);
                    multiply::<E>(&mut logits, &a, &b, block, half, sums);
                }
            }
        }
    }
    logits
}

/// Replaces the logits of positions that their row does not attend to by negative infinity. The
/// tile begins at position `from`.
#[cube]
fn mask(logits: &mut Array<f32>, tile: &TileRows, from: usize, #[comptime] plan: PrefillBlueprint) {
    let column = from + result_column(lane()) as usize;
    #[unroll]
    for block in 0..plan.blocks {
        #[unroll]
        for half in 0..2usize {
            let token = tile.token(row_of(tile, block, half, plan), plan.group);
            let (begin, stop) = (tile.span.begin(token), tile.span.stop(token));
            let count = stop - min(begin, stop);
            #[unroll]
            for n in 0..comptime!(plan.keys / COLUMNS) {
                #[unroll]
                for e in 0..2usize {
                    let i = comptime!(block * plan.logits() + n * RESULT + 2 * half + e);
                    let position = column + comptime!(n * COLUMNS + e);
                    // The difference wraps to a large number before `begin`.
                    let hidden = position - begin >= count;
                    logits[i] = select(hidden, f32::NEG_INFINITY, logits[i]);
                }
            }
        }
    }
}

/// The row of half `half` of block `block` that this lane holds.
#[cube]
fn row_of(
    tile: &TileRows,
    #[comptime] block: usize,
    #[comptime] half: usize,
    #[comptime] plan: PrefillBlueprint,
) -> usize {
    tile.first
        + plane() * comptime!(plan.plane_rows())
        + result_row(lane()) as usize
        + comptime!(block * ROWS + 8 * half)
}

/// The running states of a plane's rows.
#[derive(CubeType)]
struct RowStates {
    /// The largest logit, not scaled, [blocks, 2].
    largest: Array<f32>,
    /// This lane's part of the sum of exponentials, [blocks, 2].
    sum: Array<f32>,
    /// [blocks, d / 8, 4].
    output: Array<f32>,
}

#[cube]
impl RowStates {
    fn new(#[comptime] plan: PrefillBlueprint) -> RowStates {
        let mut largest = Array::<f32>::new(comptime!(2 * plan.blocks));
        let mut sum = Array::<f32>::new(comptime!(2 * plan.blocks));
        let mut output = Array::<f32>::new(comptime!(plan.blocks * plan.outputs()));
        #[unroll]
        for i in 0..comptime!(2 * plan.blocks) {
            largest[i] = LOWEST;
            sum[i] = 0.0f32;
        }
        #[unroll]
        for i in 0..comptime!(plan.blocks * plan.outputs()) {
            output[i] = 0.0f32;
        }
        RowStates {
            largest,
            sum,
            output,
        }
    }

    /// Adds the logits of a tile, and returns its weights as blocks of A, [keys / 16, blocks, 4].
    fn update<E: Float>(
        &mut self,
        logits: &mut Array<f32>,
        #[comptime] plan: PrefillBlueprint,
    ) -> Array<Vector<E, Const<2>>> {
        let tiles = comptime!(plan.keys / COLUMNS);
        // The scale of the logits, for powers of two.
        let scale = comptime!(std::f32::consts::LOG2_E / (plan.head_dim as f32).sqrt());
        #[unroll]
        for block in 0..plan.blocks {
            #[unroll]
            for half in 0..2usize {
                let first = comptime!(block * plan.logits() + 2 * half);
                let row = comptime!(2 * block + half);
                let mut top = self.largest[row];
                let mut own = logits[first];
                #[unroll]
                for i in 1..comptime!(2 * tiles) {
                    own = max(own, logits[comptime!(first + i / 2 * RESULT + i % 2)]);
                }
                top = max(top, max_in_row(own));
                let keep = power_of_two((self.largest[row] - top) * scale);
                let origin = top * scale;
                let mut sum = self.sum[row] * keep;
                #[unroll]
                for i in 0..comptime!(2 * tiles) {
                    let at = comptime!(first + i / 2 * RESULT + i % 2);
                    let weight = power_of_two(logits[at] * scale - origin);
                    logits[at] = weight;
                    sum += weight;
                }
                #[unroll]
                for i in 0..comptime!(plan.head_dim / COLUMNS * 2) {
                    let at = comptime!(block * plan.outputs() + 2 * half + i / 2 * RESULT + i % 2);
                    self.output[at] *= keep;
                }
                self.largest[row] = top;
                self.sum[row] = sum;
            }
        }
        let mut weights = Array::<Vector<E, Const<2>>>::new(comptime!(plan.blocks * tiles * 2));
        #[unroll]
        for block in 0..plan.blocks {
            #[unroll]
            for n in 0..tiles {
                #[unroll]
                for half in 0..2usize {
                    let at = comptime!(block * plan.logits() + n * RESULT + 2 * half);
                    let mut two = Vector::<f32, Const<2>>::new(logits[at]);
                    two.insert(1usize, logits[comptime!(at + 1)]);
                    let to = comptime!((n / 2 * plan.blocks + block) * 4 + n % 2 * 2 + half);
                    weights[to] = Vector::cast_from(two);
                }
            }
        }
        weights
    }

    /// Writes the outputs of this lane's rows.
    fn write_output<Q: Float>(
        &self,
        out: &mut [Vector<Q, Const<2>>],
        tile: &TileRows,
        #[comptime] plan: PrefillBlueprint,
    ) {
        #[unroll]
        for block in 0..plan.blocks {
            #[unroll]
            for half in 0..2usize {
                let row = row_of(tile, block, half, plan);
                let sum = sum_in_row(self.sum[comptime!(2 * block + half)]);
                let factor = 1.0f32 / max(sum, f32::MIN_POSITIVE);
                if row < tile.count {
                    let first = tile.output(row, plan.group) * comptime!(plan.head_dim / 2)
                        + result_column(lane()) as usize / 2;
                    #[unroll]
                    for n in 0..comptime!(plan.head_dim / COLUMNS) {
                        let at = comptime!(block * plan.outputs() + n * RESULT + 2 * half);
                        let mut two = Vector::<f32, Const<2>>::new(self.output[at] * factor);
                        two.insert(1usize, self.output[comptime!(at + 1)] * factor);
                        out[first + comptime!(n * COLUMNS / 2)] = Vector::cast_from(two);
                    }
                }
            }
        }
    }

    /// Writes the states of this lane's rows; those of the tile's batch head and split begin with
    /// state `first`.
    fn write_state(
        &self,
        states: &mut [f32],
        first: usize,
        tile: &TileRows,
        #[comptime] plan: PrefillBlueprint,
    ) {
        let scale = comptime!(1.0 / (plan.head_dim as f32).sqrt());
        #[unroll]
        for block in 0..plan.blocks {
            #[unroll]
            for half in 0..2usize {
                let row = row_of(tile, block, half, plan);
                let sum = sum_in_row(self.sum[comptime!(2 * block + half)]);
                if row < tile.count {
                    let at = (first + row) * comptime!(plan.head_dim + 2);
                    let column = result_column(lane()) as usize;
                    if column == 0 {
                        states[at] = self.largest[comptime!(2 * block + half)] * scale;
                        states[at + 1] = sum;
                    }
                    #[unroll]
                    for n in 0..comptime!(plan.head_dim / COLUMNS) {
                        #[unroll]
                        for e in 0..2usize {
                            let i = comptime!(block * plan.outputs() + n * RESULT + 2 * half + e);
                            states[at + 2 + column + comptime!(n * COLUMNS + e)] = self.output[i];
                        }
                    }
                }
            }
        }
    }
}

/// Adds the weighted values of a stage to the outputs.
#[cube]
fn add_values<E: Float, N: Size>(
    state: &mut RowStates,
    shared: &Shared<[Vector<E, N>]>,
    weights: &Array<Vector<E, Const<2>>>,
    stage: usize,
    #[comptime] plan: PrefillBlueprint,
) {
    let (row, vector) = address_by_rows(lane());
    let first = stage * comptime!(plan.tile(1, false))
        + row as usize * comptime!(plan.stride())
        + vector as usize;
    #[unroll]
    for step in 0..comptime!(plan.keys / DEPTH) {
        #[unroll]
        for pair in 0..comptime!(plan.head_dim / 16) {
            let at = comptime!(plan.tile(0, true) + step * DEPTH * plan.stride() + 2 * pair);
            let b = load_transposed::<E, N>(shared, first + at);
            #[unroll]
            for block in 0..plan.blocks {
                #[unroll]
                for half in 0..2usize {
                    let sums = comptime!(block * plan.outputs() + (2 * pair + half) * RESULT);
                    let a = comptime!(step * plan.blocks + block);
                    multiply::<E>(&mut state.output, weights, &b, a, half, sums);
                }
            }
        }
    }
}
