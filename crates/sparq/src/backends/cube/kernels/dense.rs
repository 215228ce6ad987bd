//! Dense attention. With few batch heads, the positions of a sequence are split over cubes
//! (split-K), and a second launch merges the splits.

use cubecl::prelude::*;

use crate::backends::cube::parts::batch_head::{BatchHead, BatchShape, locate};
use crate::backends::cube::parts::online_softmax::{
    AttendBlueprint, KvRows, Positions, store_queries,
};
use crate::backends::cube::parts::query::load_queries;
use crate::backends::cube::parts::query_rows::output_row;
use crate::backends::cube::parts::reduce::{cube_max, cube_sum};
use crate::backends::cube::parts::row_codes::RowScales;
use crate::backends::cube::parts::score::LARGEST_SCORE;
use crate::backends::cube::parts::split_attention::{
    CubeSplit, SplitBlueprint, SplitOutput, attend_split,
};

/// The most splits of a sequence.
pub(crate) const MOST_SPLITS: usize = 512;

/// Splits whose outputs a unit loads before it uses the first.
const SPLITS_AT_ONCE: usize = 8;

/// Attends with one query per sequence to all its positions.
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn dense_kernel<Q: Float, E: Numeric, N: Size>(
    q: &Tensor<Q>,
    rows: &KvRows<E, N>,
    scales: &RowScales,
    spans: &[u32],
    output: &mut SplitOutput<Q>,
    shape: &BatchShape,
    capacity: u32,
    splits: u32,
    #[comptime] plan: SplitBlueprint,
    #[define(Q, E)] _types: [ElemType; 2],
) {
    let d = comptime!(plan.attend.head_dim);
    let group = comptime!(plan.attend.group);
    let units = comptime!(plan.attend.units as usize);
    let splits = splits as usize;
    let index = CUBE_POS / splits;
    let split = CUBE_POS % splits;
    if index >= shape.count() {
        terminate!();
    }
    // The loads of the query come before those of the span, so that both are in flight.
    let sequence = index / shape.kv_heads as usize;
    let kv_head = index % shape.kv_heads as usize;
    let own = load_queries::<Q>(q, sequence, kv_head, group, d, units);
    let batch_head = locate(spans, index, shape);
    let mut queries = Shared::<[f32]>::new_slice(comptime!(group * d));
    store_queries(&mut queries, &own, plan.attend);
    sync_cube();
    let (from, count) = range_of_split(&batch_head, split, splits, plan.attend);

    let unused = Shared::<[u32]>::new_slice(1usize);
    let positions = Positions::range(index * capacity as usize, from, count, &unused);
    let split = CubeSplit {
        batch_head: index,
        split,
        splits,
        head: 0usize.runtime(),
        end: comptime!(group).runtime(),
    };
    attend_split::<Q, E, N>(&queries, rows, scales, &positions, &split, output, plan);
}

/// Returns the first position of a split and the number of its positions.
///
/// Splits are whole rounds of the cube, so that units idle in the last split only.
#[cube]
fn range_of_split(
    batch_head: &BatchHead,
    split: usize,
    splits: usize,
    #[comptime] plan: AttendBlueprint,
) -> (usize, usize) {
    let round = comptime!(plan.rows_at_once * plan.units as usize / plan.lanes);
    let share = (batch_head.end - batch_head.start)
        .div_ceil(splits)
        .div_ceil(round)
        * round;
    let from = min(batch_head.start + split * share, batch_head.end);
    let count = min(share, batch_head.end - from);
    (from, count)
}

/// The sizes that the merge of splits is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MergeBlueprint {
    /// g.
    pub group: usize,
    /// d.
    pub head_dim: usize,
    /// Units of a cube.
    pub units: u32,
    /// See [`reduce`](crate::backends::cube::parts::reduce).
    pub plane: u32,
}

impl MergeBlueprint {
    /// Returns the units that share a component, each with a part of the splits.
    fn parts(&self) -> usize {
        (self.units as usize / self.head_dim).max(1)
    }
}

/// Merges the `states` of [`SplitOutput`], or those of `len` queries per sequence, into `out`
/// [B, H, len, d]: one cube for each of the `rows` of the output.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(crate) fn merge_splits_kernel<Q: Float>(
    states: &[f32],
    out: &mut [Q],
    splits: u32,
    rows: u32,
    len: u32,
    #[comptime] plan: MergeBlueprint,
    #[define(Q)] _type: ElemType,
) {
    if CUBE_POS >= rows as usize {
        terminate!();
    }
    let d = comptime!(plan.head_dim);
    let units = comptime!(plan.units as usize);
    let parts = comptime!(plan.parts());
    let splits = splits as usize;
    let rows = len as usize * plan.group;
    let (batch_head, row) = (CUBE_POS / rows, CUBE_POS % rows);
    let states_of_split = rows * comptime!(d + 2);
    let base = batch_head * splits * states_of_split + row * comptime!(d + 2);
    let target = output_row(batch_head, row, len as usize, plan.group) * d;
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(units / plan.plane as usize));
    let mut factors = Shared::<[f32]>::new_slice(comptime!(MOST_SPLITS + SPLITS_AT_ONCE * parts));
    let of_row = SplitStates {
        base,
        stride: states_of_split,
        count: splits,
    };
    let sum = weigh_splits(states, &of_row, &mut scratch, &mut factors, plan);
    sync_cube();
    let mut values = Shared::<[f32]>::new_slice(comptime!(parts * d));
    sum_outputs(states, &of_row, &factors, &mut values, plan);
    sync_cube();
    for round in 0..d.div_ceil(units) {
        let c = round * units + UNIT_POS as usize;
        if c < d {
            let mut value = 0.0f32;
            #[unroll]
            for part in 0..parts {
                value += values[part * d + c];
            }
            out[target + c] = Q::cast_from(value / sum);
        }
    }
}

/// The states of the splits of one row.
#[derive(CubeType)]
struct SplitStates {
    /// The first number of the first split's state.
    base: usize,
    /// The numbers between the states of two splits.
    stride: usize,
    /// The number of splits.
    count: usize,
}

#[cube]
impl SplitStates {
    /// The first number of the state of `split`.
    fn of(&self, split: usize) -> usize {
        self.base + split * self.stride
    }
}

/// Writes the factor of each split, e^(its maximum - the maximum of all), and returns the sum of
/// exponentials of all splits.
#[cube]
fn weigh_splits(
    states: &[f32],
    of_row: &SplitStates,
    scratch: &mut Shared<[f32]>,
    factors: &mut Shared<[f32]>,
    #[comptime] plan: MergeBlueprint,
) -> f32 {
    let units = comptime!(plan.units as usize);
    let splits = of_row.count;
    let mut top = (-LARGEST_SCORE).runtime();
    let mut split = UNIT_POS as usize;
    while split < splits {
        top = max(top, states[of_row.of(split)]);
        split += units;
    }
    let top = cube_max(top, scratch, plan.units, plan.plane);
    let mut sum = 0.0f32;
    let mut split = UNIT_POS as usize;
    while split < splits {
        let at = of_row.of(split);
        let factor = (states[at] - top).exp();
        factors[split] = factor;
        sum += states[at + 1] * factor;
        split += units;
    }
    let sum = cube_sum(sum, scratch, plan.units, plan.plane);
    let whole = max(sum, f32::MIN_POSITIVE);
    // Past the last split, `sum_outputs` reads the last one again, with a factor of 0.
    let mut split = splits + UNIT_POS as usize;
    while split < splits + comptime!(SPLITS_AT_ONCE * plan.parts()) {
        factors[split] = 0.0f32;
        split += units;
    }
    whole
}

/// Writes the weighted sums of the outputs, [parts, d]: each part has its share of the splits.
#[cube]
fn sum_outputs(
    states: &[f32],
    of_row: &SplitStates,
    factors: &Shared<[f32]>,
    values: &mut Shared<[f32]>,
    #[comptime] plan: MergeBlueprint,
) {
    let d = comptime!(plan.head_dim);
    let units = comptime!(plan.units as usize);
    let parts = comptime!(plan.parts());
    let splits = of_row.count;
    for round in 0..comptime!(parts * d).div_ceil(units) {
        let i = round * units + UNIT_POS as usize;
        if i < comptime!(parts * d) {
            let mut value = 0.0f32;
            let mut split = i / d;
            while split < splits {
                let mut loaded = Array::<f32>::new(SPLITS_AT_ONCE);
                #[unroll]
                for u in 0..SPLITS_AT_ONCE {
                    let at = min(split + u * parts, splits - 1);
                    loaded[u] = states[of_row.of(at) + 2 + i % d];
                }
                #[unroll]
                for u in 0..SPLITS_AT_ONCE {
                    value += loaded[u] * factors[split + u * parts];
                }
                split += comptime!(SPLITS_AT_ONCE * parts);
            }
            values[i] = value;
        }
    }
}
