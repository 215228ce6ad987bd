//! Causal attention of many queries in single precision, without matrix units.
//!
//! Units are a grid of row groups and lanes. A unit computes the logits of four rows for its keys,
//! and then the outputs of the same rows for its vectors. K and V share one tile in shared memory.

use cubecl::prelude::*;

use crate::backends::cube::parts::batch_head::BatchShape;
use crate::backends::cube::parts::online_softmax::KvRows;
use crate::backends::cube::parts::query_rows::{CausalShape, TileRows, rows_of_tile, tile_of_cube};
use crate::backends::cube::parts::score::LARGEST_SCORE;

/// Rows of a unit.
const OWN: usize = 4;
/// Elements of a vector.
const VECTOR: usize = 4;

/// The sizes that causal attention without matrix units is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PlainPrefillBlueprint {
    /// g.
    pub group: usize,
    /// d, a multiple of 4.
    pub head_dim: usize,
    /// Groups of four rows.
    pub row_groups: usize,
    /// Units that share the rows of a group.
    pub lanes: usize,
    /// Keys of a unit.
    pub keys: usize,
    /// One cube attends to all positions of a row: it writes the output, and otherwise its state.
    pub single: bool,
}

impl PlainPrefillBlueprint {
    /// Rows of a cube.
    pub fn rows(&self) -> usize {
        OWN * self.row_groups
    }

    /// Positions of a tile.
    pub fn tile_keys(&self) -> usize {
        self.lanes * self.keys
    }

    /// Units of a cube.
    pub fn units(&self) -> usize {
        self.row_groups * self.lanes
    }

    /// Vectors of a row.
    fn row(&self) -> usize {
        self.head_dim / VECTOR
    }

    /// Vectors between two rows in shared memory: an odd number, so that the vectors at one place
    /// of neighbouring rows are in different banks.
    fn stride(&self) -> usize {
        self.row() | 1
    }

    /// Vectors of a row of the output that a unit holds.
    fn vectors(&self) -> usize {
        self.row().div_ceil(self.lanes)
    }

    /// Bytes of shared memory.
    pub fn shared_bytes(&self) -> usize {
        let vectors = (self.rows() + self.tile_keys()) * self.stride();
        let numbers = self.rows() * (self.tile_keys() + 1 + self.lanes);
        4 * (VECTOR * vectors + numbers)
    }
}

/// The shared memory of a cube.
#[derive(CubeType)]
struct Memory {
    /// The queries, divided by sqrt(d).
    queries: Shared<[Vector<f32, Const<4>>]>,
    /// A tile of K, and then of V.
    tile: Shared<[Vector<f32, Const<4>>]>,
    /// The attention weights, [rows, keys], with a gap after each row.
    weights: Shared<[f32]>,
    /// A number of every unit for each of its rows, [rows, lanes].
    partial: Shared<[f32]>,
}

/// The state of a unit's rows.
#[derive(CubeType)]
struct OwnRows {
    /// The first position of each row.
    begin: Array<u32>,
    /// One past the last position of each row.
    stop: Array<u32>,
    /// The largest logit.
    largest: Array<f32>,
    /// The sum of exponentials of this unit's keys.
    sum: Array<f32>,
    /// The outputs of this unit's vectors, [4, vectors].
    output: Array<Vector<f32, Const<4>>>,
}

/// Does what [`prefill_kernel`](super::prefill::prefill_kernel) does. `rows` are in vectors of 4.
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn plain_prefill_kernel<Q: Float, E: Float, N: Size>(
    q: &Tensor<Q>,
    rows: &KvRows<E, N>,
    spans: &[u32],
    out: &mut [Q],
    states: &mut [f32],
    shape: &BatchShape,
    causal: &CausalShape,
    #[comptime] plan: PlainPrefillBlueprint,
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
        comptime!(plan.tile_keys()),
        plan.group,
    );
    let mut memory = Memory {
        queries: Shared::new_slice(comptime!(plan.rows() * plan.stride())),
        tile: Shared::new_slice(comptime!(plan.tile_keys() * plan.stride())),
        weights: Shared::new_slice(comptime!(plan.rows() * (plan.tile_keys() + 1))),
        partial: Shared::new_slice(comptime!(plan.rows() * plan.lanes)),
    };
    store_queries::<Q>(q, &mut memory, &tile, plan);
    let mut own = OwnRows::new(&tile, plan);
    let base = place.index * causal.capacity as usize;
    let mut at = tile.from;
    while at < tile.to {
        sync_cube();
        store_tile::<E, N>(&rows.keys, &mut memory.tile, base, at, tile.stop, plan);
        sync_cube();
        let mut logits = own.logits(&mut memory, at as u32, plan);
        sync_cube();
        store_tile::<E, N>(&rows.values, &mut memory.tile, base, at, tile.stop, plan);
        own.update(&mut memory, &mut logits, plan);
        sync_cube();
        own.add_values(&memory, plan);
        at += comptime!(plan.tile_keys());
    }
    own.share_sums(&mut memory, plan);
    let first = (place.index * causal.splits as usize + place.split) * tile.count;
    own.write::<Q>(out, states, &memory, first, &tile, plan);
}

/// Stores the queries of the tile's rows.
#[cube]
fn store_queries<Q: Float>(
    q: &Tensor<Q>,
    memory: &mut Memory,
    tile: &TileRows,
    #[comptime] plan: PlainPrefillBlueprint,
) {
    let row = comptime!(plan.row());
    let scale = comptime!(1.0 / (plan.head_dim as f32).sqrt());
    let all = comptime!(plan.rows() * row);
    for round in 0..all.div_ceil(comptime!(plan.units())) {
        let i = round * comptime!(plan.units()) + UNIT_POS as usize;
        if i < all {
            let query = tile.query::<Q>(q, tile.first + i / row, plan.group);
            let from = query + i % row * comptime!(VECTOR) * q.stride(3);
            let mut vector = Vector::<f32, Const<4>>::new(0.0f32);
            #[unroll]
            for e in 0..VECTOR {
                vector.insert(e, f32::cast_from(q[from + e * q.stride(3)]) * scale);
            }
            memory.queries[i / row * comptime!(plan.stride()) + i % row] = vector;
        }
    }
}

/// Stores the rows of K or V from position `from` on. Positions from `stop` on become zeros: they
/// may hold NaN, which a weight of 0 does not cancel.
#[cube]
fn store_tile<E: Float, N: Size>(
    rows: &[Vector<E, N>],
    tile: &mut Shared<[Vector<f32, Const<4>>]>,
    base: usize,
    from: usize,
    stop: usize,
    #[comptime] plan: PlainPrefillBlueprint,
) {
    let row = comptime!(plan.row());
    let all = comptime!(plan.tile_keys() * row);
    for round in 0..all.div_ceil(comptime!(plan.units())) {
        let i = round * comptime!(plan.units()) + UNIT_POS as usize;
        if i < all {
            let position = from + i / row;
            let mut vector = Vector::<f32, Const<4>>::new(0.0f32);
            if position < stop {
                let loaded = rows[(base + position) * row + i % row];
                #[unroll]
                for e in 0..VECTOR {
                    vector.insert(e, f32::cast_from(loaded.extract(e)));
                }
            }
            tile[i / row * comptime!(plan.stride()) + i % row] = vector;
        }
    }
}

/// This unit's group of rows.
#[cube]
fn row_group(#[comptime] plan: PlainPrefillBlueprint) -> usize {
    UNIT_POS as usize / plan.lanes
}

/// This unit's number among those that share its rows.
#[cube]
fn lane(#[comptime] plan: PlainPrefillBlueprint) -> usize {
    UNIT_POS as usize % plan.lanes
}

#[cube]
impl OwnRows {
    fn new(tile: &TileRows, #[comptime] plan: PlainPrefillBlueprint) -> OwnRows {
        let mut begin = Array::<u32>::new(OWN);
        let mut stop = Array::<u32>::new(OWN);
        let mut largest = Array::<f32>::new(OWN);
        let mut sum = Array::<f32>::new(OWN);
        let vectors = comptime!(OWN * plan.vectors());
        let mut output = Array::<Vector<f32, Const<4>>>::new(vectors);
        #[unroll]
        for x in 0..OWN {
            let token = tile.token(tile.first + row_group(plan) * OWN + x, plan.group);
            begin[x] = tile.span.begin(token) as u32;
            stop[x] = tile.span.stop(token) as u32;
            largest[x] = -LARGEST_SCORE;
            sum[x] = 0.0f32;
        }
        #[unroll]
        for i in 0..vectors {
            output[i] = Vector::new(0.0f32);
        }
        OwnRows {
            begin,
            stop,
            largest,
            sum,
            output,
        }
    }

    /// Returns the logits of this unit's keys of a tile from position `from` on, [4, keys]. Those
    /// that a row does not attend to are negative and large. Writes the largest of each row to
    /// `partial`.
    fn logits(
        &self,
        memory: &mut Memory,
        from: u32,
        #[comptime] plan: PlainPrefillBlueprint,
    ) -> Array<f32> {
        let (group, lane) = (row_group(plan), lane(plan));
        let keys = comptime!(plan.keys);
        let stride = comptime!(plan.stride());
        let mut logits = Array::<f32>::new(comptime!(OWN * keys));
        #[unroll]
        for i in 0..comptime!(OWN * keys) {
            logits[i] = 0.0f32;
        }
        for part in 0..comptime!(plan.row()).runtime() {
            let mut k = Array::<Vector<f32, Const<4>>>::new(keys);
            #[unroll]
            for y in 0..keys {
                k[y] = memory.tile[(lane + y * plan.lanes) * stride + part];
            }
            #[unroll]
            for x in 0..OWN {
                let q = memory.queries[(group * OWN + x) * stride + part];
                #[unroll]
                for y in 0..keys {
                    let other = k[y];
                    #[unroll]
                    for e in 0..VECTOR {
                        logits[comptime!(x * keys + y)] += q.extract(e) * other.extract(e);
                    }
                }
            }
        }
        #[unroll]
        for x in 0..OWN {
            let mut top = (-LARGEST_SCORE).runtime();
            #[unroll]
            for y in 0..keys {
                let i = comptime!(x * keys + y);
                let position = from + (lane + y * plan.lanes) as u32;
                let seen = position >= self.begin[x] && position < self.stop[x];
                logits[i] = select(seen, logits[i], -LARGEST_SCORE);
                top = max(top, logits[i]);
            }
            memory.partial[(group * OWN + x) * plan.lanes + lane] = top;
        }
        logits
    }

    /// Updates maxima and sums, scales the outputs and writes the weights of this unit's keys.
    fn update(
        &mut self,
        memory: &mut Memory,
        logits: &mut Array<f32>,
        #[comptime] plan: PlainPrefillBlueprint,
    ) {
        let (group, lane) = (row_group(plan), lane(plan));
        let keys = comptime!(plan.keys);
        #[unroll]
        for x in 0..OWN {
            let row = group * OWN + x;
            let mut top = self.largest[x];
            for other in 0..comptime!(plan.lanes).runtime() {
                top = max(top, memory.partial[row * plan.lanes + other]);
            }
            let keep = (self.largest[x] - top).exp();
            self.largest[x] = top;
            self.sum[x] *= keep;
            #[unroll]
            for i in 0..comptime!(plan.vectors()) {
                self.output[comptime!(x * plan.vectors() + i)] *= Vector::new(keep);
            }
            #[unroll]
            for y in 0..keys {
                let logit = logits[comptime!(x * keys + y)];
                // No logit of a position is so low, unless it overflowed.
                let weight = select(logit > -LARGEST_SCORE, (logit - top).exp(), 0.0f32);
                self.sum[x] += weight;
                memory.weights[row * comptime!(plan.tile_keys() + 1) + lane + y * plan.lanes] =
                    weight;
            }
        }
    }

    /// Adds the weighted values of a tile to the outputs.
    fn add_values(&mut self, memory: &Memory, #[comptime] plan: PlainPrefillBlueprint) {
        let (group, lane) = (row_group(plan), lane(plan));
        let vectors = comptime!(plan.vectors());
        for key in 0..comptime!(plan.tile_keys()).runtime() {
            let mut values = Array::<Vector<f32, Const<4>>>::new(vectors);
            #[unroll]
            for i in 0..vectors {
                // Past the last vector, the last one is read again and its sum is not used.
                let part = min(lane + i * plan.lanes, comptime!(plan.row() - 1).runtime());
                values[i] = memory.tile[key * comptime!(plan.stride()) + part];
            }
            #[unroll]
            for x in 0..OWN {
                let row = (group * OWN + x) * comptime!(plan.tile_keys() + 1);
                let weight = Vector::<f32, Const<4>>::new(memory.weights[row + key]);
                #[unroll]
                for i in 0..vectors {
                    self.output[comptime!(x * vectors + i)] += values[i] * weight;
                }
            }
        }
    }

    /// Writes this unit's sums to `partial`. Ends with a barrier.
    fn share_sums(&self, memory: &mut Memory, #[comptime] plan: PlainPrefillBlueprint) {
        sync_cube();
        #[unroll]
        for x in 0..OWN {
            let row = row_group(plan) * OWN + x;
            memory.partial[row * plan.lanes + lane(plan)] = self.sum[x];
        }
        sync_cube();
    }

    /// Writes the output, or the states from state `first` on.
    fn write<Q: Float>(
        &self,
        out: &mut [Q],
        states: &mut [f32],
        memory: &Memory,
        first: usize,
        tile: &TileRows,
        #[comptime] plan: PlainPrefillBlueprint,
    ) {
        let (group, lane) = (row_group(plan), lane(plan));
        #[unroll]
        for x in 0..OWN {
            let mut sum = 0.0f32;
            for other in 0..comptime!(plan.lanes).runtime() {
                sum += memory.partial[(group * OWN + x) * plan.lanes + other];
            }
            let factor = 1.0f32 / max(sum, f32::MIN_POSITIVE);
            let row = tile.first + group * OWN + x;
            if row < tile.count {
                let at = (first + row) * comptime!(plan.head_dim + 2);
                if comptime!(!plan.single) && lane == 0 {
                    states[at] = self.largest[x];
                    states[at + 1] = sum;
                }
                #[unroll]
                for i in 0..comptime!(plan.vectors()) {
                    let part = lane + i * plan.lanes;
                    if part < comptime!(plan.row()) {
                        let vector = self.output[comptime!(x * plan.vectors() + i)];
                        #[unroll]
                        for e in 0..VECTOR {
                            let c = part * comptime!(VECTOR) + e;
                            if comptime!(plan.single) {
                                let to = tile.output(row, plan.group) * plan.head_dim + c;
                                out[to] = Q::cast_from(vector.extract(e) * factor);
                            } else {
                                states[at + 2 + c] = vector.extract(e);
                            }
                        }
                    }
                }
            }
        }
    }
}
