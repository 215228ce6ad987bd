//! Causal attention of many queries on Hopper GPUs, after FlashAttention-3.
//!
//! Two warpgroups attend with 64 rows each. A unit of its own requests tiles of K and V as bulk
//! copies into a ring of stages in shared memory. While one warpgroup computes exponentials, the
//! other multiplies. Logits, weights and outputs stay in registers.
//!
//! Tiles that no row attends to are not read, and only tiles at the border of a row's positions are
//! masked.

use cubecl::prelude::barrier::Barrier;
use cubecl::prelude::*;

use crate::backends::cube::parts::batch_head::BatchShape;
use crate::backends::cube::parts::fragments::{
    COLUMNS, RESULT, VECTOR, max_in_row, power_of_two, result_column, result_row, sum_in_row,
};
use crate::backends::cube::parts::query_rows::{CausalShape, TileRows, rows_of_tile, tile_of_cube};
use crate::backends::cube::parts::stage_ring::{StageRing, bytes_of_barriers, wait};
use crate::backends::cube::parts::warpgroup::{
    ALIGNMENT, PLANE, ROWS, UNITS, WIDTH, add_products_of_registers, address_of, bytes_of,
    complete, descriptor, descriptor_of_rows, lane, plane, products_of, warpgroup,
};

/// Warpgroups that attend.
const WARPGROUPS: usize = 2;
/// Units that attend.
const ATTENDING: usize = WARPGROUPS * UNITS;
/// Rows of a cube.
pub(crate) const TILE_ROWS: usize = WARPGROUPS * ROWS;
/// Units of a cube: those that attend, and the plane of the one that requests.
pub(crate) const CUBE_UNITS: usize = ATTENDING + PLANE;
/// Tiles in shared memory: K and V of two ranges of positions.
const STAGES: usize = 4;
/// The running maximum before the first position. A finite number, so that the difference of two
/// maxima is never NaN; attention weights of rows whose logits are all lower would be 0.
const LOWEST: f32 = -1e30;

/// The sizes that causal attention with `wgmma` is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PrefillWgmmaBlueprint {
    /// g.
    pub group: usize,
    /// d, a multiple of [`WIDTH`].
    pub head_dim: usize,
    /// Positions of a tile of K and V, a multiple of 16.
    pub keys: usize,
    /// The name of the cache's type in PTX.
    pub element: &'static str,
}

impl PrefillWgmmaBlueprint {
    /// Vectors of a row.
    fn row(&self) -> usize {
        self.head_dim / VECTOR
    }

    /// Vectors of a stage.
    fn stage(&self) -> usize {
        self.keys * self.row()
    }

    /// The first vector of the queries.
    fn queries(&self) -> usize {
        STAGES * self.stage()
    }

    /// Vectors in shared memory.
    fn vectors(&self) -> usize {
        self.queries() + TILE_ROWS * self.row()
    }

    /// Bytes of shared memory.
    pub fn shared_bytes(&self) -> usize {
        self.vectors() * 16 + bytes_of_barriers(STAGES + 1)
    }

    /// Logits of a lane.
    pub fn logits(&self) -> usize {
        self.keys * ROWS / UNITS
    }

    /// Numbers of the output of a lane.
    pub fn outputs(&self) -> usize {
        self.head_dim * ROWS / UNITS
    }

    /// Registers of the weights of a lane, two in each.
    pub fn weights(&self) -> usize {
        self.logits() / 2
    }
}

/// Attends with the last T positions of each sequence, q [B, H, T, d], to K and V up to their own
/// position; see [`SparqBackend::causal_attention`](crate::ops::SparqBackend::causal_attention).
///
/// `keys` and `values` are [B H_kv, d / 64, S_max, 64]. `L`, `O` and `W` are the plan's
/// [`logits`](PrefillWgmmaBlueprint::logits), outputs and weights. There are no splits.
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn prefill_wgmma_kernel<Q: Float, E: Float, L: Size, O: Size, W: Size>(
    q: &Tensor<Q>,
    keys: &TensorMap<E, Tiled>,
    values: &TensorMap<E, Tiled>,
    spans: &[u32],
    out: &mut [Vector<Q, Const<2>>],
    shape: &BatchShape,
    causal: &CausalShape,
    #[comptime] plan: PrefillWgmmaBlueprint,
    #[define(Q, E)] _types: [ElemType; 2],
) {
    let place = tile_of_cube(shape, causal);
    if place.index >= shape.count() {
        terminate!();
    }
    let tile = rows_of_tile(
        spans, &place, shape, causal, TILE_ROWS, plan.keys, plan.group,
    );
    let mut shared = Shared::<[Vector<E, Const<VECTOR>>]>::new_aligned_slice(
        comptime!(plan.vectors()),
        ALIGNMENT,
    );
    // Where all units that attend meet: when the queries are stored, and when values are cleared.
    let meetings = Shared::<[Barrier]>::new_slice(2usize);
    if UNIT_POS == 0u32 {
        meetings[0].init_manual(comptime!(ATTENDING as u32));
        meetings[1].init_manual(comptime!(ATTENDING as u32));
    }
    let mut ring = StageRing::new(STAGES, ATTENDING);
    if UNIT_POS as usize >= ATTENDING {
        if lane() == 0u32 {
            let index = place.index as i32;
            let mut at = tile.from;
            while at < tile.to {
                request::<E>(keys, &mut shared, &mut ring, index, at as i32, plan);
                request::<E>(values, &mut shared, &mut ring, index, at as i32, plan);
                at += plan.keys;
            }
        }
    } else {
        store_queries::<Q, E>(q, &mut shared, &tile, plan);
        meet(&meetings[0]);
        let state = attend::<E, L, O, W>(&mut shared, &mut ring, &meetings[1], &tile, plan);
        state.write::<Q>(out, &tile, plan);
    }
}

/// Requests a tile for the next stage, as soon as it is free.
#[cube]
fn request<E: Float>(
    rows: &TensorMap<E, Tiled>,
    shared: &mut Shared<[Vector<E, Const<VECTOR>>]>,
    ring: &mut StageRing,
    index: i32,
    at: i32,
    #[comptime] plan: PrefillWgmmaBlueprint,
) {
    let barrier = ring.refill(comptime!(plan.stage() * 16));
    let first = ring.stage * comptime!(plan.stage());
    let target = &mut shared[first..first + comptime!(plan.stage())];
    barrier.tma_load_4d(rows, target, index, 0, at, 0);
    ring.advance();
}

/// Waits until all units that attend have come, and the products see what they stored before.
#[cube]
fn meet(meeting: &Barrier) {
    sync_async_proxy_shared();
    meeting.arrive();
    wait(meeting, 0u32);
}

/// The place in a tile of `rows` rows, swizzled, of vector `vector` of row `row`.
#[cube]
fn place_of(row: usize, vector: usize, #[comptime] rows: usize) -> usize {
    let chunks = comptime!(WIDTH / VECTOR);
    (vector / chunks * rows + row) * chunks + ((vector % chunks) ^ (row % 8))
}

/// Stores the queries of the tile's rows in the cache's type.
#[cube]
fn store_queries<Q: Float, E: Float>(
    q: &Tensor<Q>,
    shared: &mut Shared<[Vector<E, Const<VECTOR>>]>,
    tile: &TileRows,
    #[comptime] plan: PrefillWgmmaBlueprint,
) {
    let row = comptime!(plan.row());
    let mut i = UNIT_POS as usize;
    while i < comptime!(TILE_ROWS * row) {
        let query = tile.query::<Q>(q, tile.first + i / row, plan.group);
        let from = query + i % row * VECTOR * q.stride(3);
        let mut vector = Vector::<E, Const<VECTOR>>::empty();
        #[unroll]
        for e in 0..VECTOR {
            vector.insert(e, E::cast_from(q[from + e * q.stride(3)]));
        }
        shared[comptime!(plan.queries()) + place_of(i / row, i % row, TILE_ROWS)] = vector;
        i += ATTENDING;
    }
}

/// Clears the rows of a stage from `first` on. They may hold NaN, which a weight of 0 does not
/// cancel.
#[cube]
fn clear_rows<E: Float>(
    shared: &mut Shared<[Vector<E, Const<VECTOR>>]>,
    stage: usize,
    first: usize,
    #[comptime] plan: PrefillWgmmaBlueprint,
) {
    let row = comptime!(plan.row());
    let mut i = first * row + UNIT_POS as usize;
    while i < comptime!(plan.stage()) {
        let at = stage * comptime!(plan.stage()) + place_of(i / row, i % row, plan.keys);
        shared[at] = Vector::new(E::from_int(0));
        i += ATTENDING;
    }
}

/// Attends with this warpgroup's rows to the positions of the tile, and returns their states.
#[cube]
fn attend<E: Float, L: Size, O: Size, W: Size>(
    shared: &mut Shared<[Vector<E, Const<VECTOR>>]>,
    ring: &mut StageRing,
    cleared: &Barrier,
    tile: &TileRows,
    #[comptime] plan: PrefillWgmmaBlueprint,
) -> RowStates<O> {
    let base = address_of(&shared[0..1]);
    let rows =
        comptime!(plan.queries() * 16) as u32 + warpgroup() * comptime!(bytes_of(ROWS) as u32);
    let queries = descriptor(base + rows);
    let first = tile.first + warpgroup() as usize * ROWS;
    let first_token = tile.token(first, plan.group);
    let last_token = tile.token(first + comptime!(ROWS - 1), plan.group);
    let whole_from = tile.span.begin(last_token);
    let whole_to = tile.span.stop(first_token);
    let mut state = RowStates::<O>::new();
    let mut at = tile.from;
    let mut values = ring.stage;
    while at < tile.to {
        ring.wait();
        let keys = ring.stage;
        let address = base + keys as u32 * comptime!(plan.stage() as u32 * 16);
        let products = products_of::<L>(
            queries,
            descriptor(address),
            plan.head_dim,
            comptime!([TILE_ROWS, plan.keys]),
            plan.element,
        );
        // Waits for the products with the values before as well.
        let products = complete::<L>(products);
        ring.release(keys);
        if at > tile.from {
            ring.release(values);
        }
        ring.advance();
        let mut logits = Array::<f32>::new(comptime!(plan.logits()));
        #[unroll]
        for i in 0..comptime!(plan.logits()) {
            logits[i] = products.extract(i);
        }
        let next = at + plan.keys;
        if at < whole_from || next > whole_to {
            mask(&mut logits, tile, at, plan);
        }
        let weights = state.update::<E, W>(&mut logits, plan);
        ring.wait();
        values = ring.stage;
        if next > tile.stop {
            clear_rows::<E>(shared, values, tile.stop - at, plan);
            meet(cleared);
        }
        let address = base + values as u32 * comptime!(plan.stage() as u32 * 16);
        let rows = descriptor_of_rows(address, plan.keys);
        state.output = add_products_of_registers::<O, W>(state.output, weights, rows, plan.element);
        ring.advance();
        at = next;
    }
    state.output = complete::<O>(state.output);
    state
}

/// Replaces the logits of positions that their row does not attend to by negative infinity. The
/// tile begins at position `from`.
#[cube]
fn mask(
    logits: &mut Array<f32>,
    tile: &TileRows,
    from: usize,
    #[comptime] plan: PrefillWgmmaBlueprint,
) {
    let column = from + result_column(lane()) as usize;
    #[unroll]
    for half in 0..2usize {
        let token = tile.token(row_of(tile, half), plan.group);
        let (begin, stop) = (tile.span.begin(token), tile.span.stop(token));
        let count = stop - min(begin, stop);
        #[unroll]
        for n in 0..comptime!(plan.keys / COLUMNS) {
            #[unroll]
            for e in 0..2usize {
                let i = comptime!(n * RESULT + 2 * half + e);
                let position = column + comptime!(n * COLUMNS + e);
                // The difference wraps to a large number before `begin`.
                let hidden = position - begin >= count;
                logits[i] = select(hidden, f32::NEG_INFINITY, logits[i]);
            }
        }
    }
}

/// The row of half `half` that this lane holds.
#[cube]
fn row_of(tile: &TileRows, #[comptime] half: usize) -> usize {
    let first = tile.first + plane() * comptime!(ROWS * PLANE / UNITS);
    first + result_row(lane()) as usize + comptime!(8 * half)
}

/// The running states of a lane's two rows.
#[derive(CubeType)]
struct RowStates<O: Size> {
    /// The largest logit, not scaled, [2].
    largest: Array<f32>,
    /// This lane's part of the sum of exponentials, [2].
    sum: Array<f32>,
    /// [d / 8, 4].
    output: Vector<f32, O>,
}

#[cube]
impl<O: Size> RowStates<O> {
    fn new() -> RowStates<O> {
        let mut largest = Array::<f32>::new(2usize);
        let mut sum = Array::<f32>::new(2usize);
        #[unroll]
        for half in 0..2usize {
            largest[half] = LOWEST;
            sum[half] = 0.0f32;
        }
        RowStates::<O> {
            largest,
            sum,
            output: Vector::new(0.0f32),
        }
    }

    /// Adds the logits of a tile, and returns its weights as A of the next product.
    fn update<E: Float, W: Size>(
        &mut self,
        logits: &mut Array<f32>,
        #[comptime] plan: PrefillWgmmaBlueprint,
    ) -> Vector<u32, W> {
        let columns = comptime!(plan.keys / COLUMNS * 2);
        // The scale of the logits, for powers of two.
        let scale = comptime!(std::f32::consts::LOG2_E / (plan.head_dim as f32).sqrt());
        #[unroll]
        for half in 0..2usize {
            let mut own = logits[comptime!(2 * half)];
            #[unroll]
            for i in 1..columns {
                own = max(own, logits[comptime!(2 * half + i / 2 * RESULT + i % 2)]);
            }
            let top = max(self.largest[half], max_in_row(own));
            let keep = power_of_two((self.largest[half] - top) * scale);
            let origin = top * scale;
            let mut sum = self.sum[half] * keep;
            #[unroll]
            for i in 0..columns {
                let at = comptime!(2 * half + i / 2 * RESULT + i % 2);
                let weight = power_of_two(logits[at] * scale - origin);
                logits[at] = weight;
                sum += weight;
            }
            #[unroll]
            for i in 0..comptime!(plan.head_dim / COLUMNS * 2) {
                let at = comptime!(2 * half + i / 2 * RESULT + i % 2);
                let kept = self.output.extract(at) * keep;
                self.output.insert(at, kept);
            }
            self.largest[half] = top;
            self.sum[half] = sum;
        }
        let mut weights = Vector::<u32, W>::empty();
        #[unroll]
        for pair in 0..comptime!(plan.logits() / 2) {
            let mut two = Vector::<f32, Const<2>>::new(logits[comptime!(2 * pair)]);
            two.insert(1usize, logits[comptime!(2 * pair + 1)]);
            weights.insert(
                pair,
                u32::reinterpret(Vector::<E, Const<2>>::cast_from(two)),
            );
        }
        weights
    }

    /// Writes the outputs of this lane's rows.
    fn write<Q: Float>(
        &self,
        out: &mut [Vector<Q, Const<2>>],
        tile: &TileRows,
        #[comptime] plan: PrefillWgmmaBlueprint,
    ) {
        #[unroll]
        for half in 0..2usize {
            let row = row_of(tile, half);
            let factor = 1.0f32 / max(sum_in_row(self.sum[half]), f32::MIN_POSITIVE);
            if row < tile.count {
                let first = tile.output(row, plan.group) * comptime!(plan.head_dim / 2)
                    + result_column(lane()) as usize / 2;
                #[unroll]
                for n in 0..comptime!(plan.head_dim / COLUMNS) {
                    let at = comptime!(n * RESULT + 2 * half);
                    let mut two = Vector::<f32, Const<2>>::new(self.output.extract(at) * factor);
                    two.insert(1usize, self.output.extract(comptime!(at + 1)) * factor);
                    out[first + comptime!(n * COLUMNS / 2)] = Vector::cast_from(two);
                }
            }
        }
    }
}
