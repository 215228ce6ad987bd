//! Exact attention of a cube to its split of a batch head's positions, with some of the heads.

use cubecl::prelude::*;

use super::online_softmax::{AttendBlueprint, CubeSoftmax, KvRows, Positions, attend};
use super::row_codes::RowScales;
use super::score::LARGEST_SCORE;

/// The settings that attention to splits is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SplitBlueprint {
    /// How positions are attended to.
    pub attend: AttendBlueprint,
    /// One cube attends to all positions of a batch head.
    pub single: bool,
}

/// The result of attention.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct SplitOutput<Q: Float> {
    /// The attention output without splits, [B, H, d].
    pub out: Box<[Q]>,
    /// Otherwise the maximum, the sum and the output of each split,
    /// [B, H_kv, splits, g, 2 + d], for
    /// [`merge_splits_kernel`](super::super::kernels::dense::merge_splits_kernel).
    pub states: Box<[f32]>,
}

/// The work of a cube.
#[derive(CubeType)]
pub(crate) struct CubeSplit {
    /// The number of the batch head among all.
    pub batch_head: usize,
    /// The number of the split.
    pub split: usize,
    /// Splits of a batch head.
    pub splits: usize,
    /// The first head of the group.
    pub head: usize,
    /// One past the last head of the group.
    pub end: usize,
}

/// Attends to the positions of `split` and writes the output or the state of its heads.
///
/// `queries` are as in [`attend`]. `positions` may be none.
#[cube]
pub(crate) fn attend_split<Q: Float, E: Numeric, N: Size>(
    queries: &Shared<[f32]>,
    rows: &KvRows<E, N>,
    scales: &RowScales,
    positions: &Positions<'_>,
    split: &CubeSplit,
    output: &mut SplitOutput<Q>,
    #[comptime] plan: SplitBlueprint,
) {
    let d = comptime!(plan.attend.head_dim);
    let group = comptime!(plan.attend.group);
    let heads = comptime!(plan.attend.heads);
    let units = comptime!(plan.attend.units as usize);
    let any = positions.any();
    let mut result = CubeSoftmax::new(plan.attend);
    let mut head = split.head;
    while head < split.end {
        if any {
            attend::<E, N>(
                queries,
                rows,
                scales,
                positions,
                head,
                &mut result,
                plan.attend,
            );
        }
        for round in 0..comptime!(heads * d).div_ceil(units) {
            let i = round * units + UNIT_POS as usize;
            if i < comptime!(heads * d) {
                let h = i / d;
                let here = head + h;
                if here < split.end {
                    if comptime!(plan.single) {
                        let mut value = 0.0f32;
                        if any {
                            value = result.normalised(i, h);
                        }
                        let row = split.batch_head * group + here;
                        output.out[row * d + i % d] = Q::cast_from(value);
                    } else {
                        let row = split.batch_head * split.splits + split.split;
                        let at = (row * group + here) * comptime!(d + 2);
                        write_state(&mut output.states, at, i, h, any, &result, d);
                    }
                }
            }
        }
        sync_cube();
        head += heads;
    }
}

/// Writes element `i` of the outputs, which belongs to head `h`, to the state at `at`. Element 0 of
/// each head brings the maximum and the sum.
#[cube]
fn write_state(
    states: &mut [f32],
    at: usize,
    i: usize,
    h: usize,
    any: bool,
    result: &CubeSoftmax,
    #[comptime] d: usize,
) {
    let mut value = 0.0f32;
    let mut largest = (-LARGEST_SCORE).runtime();
    let mut sum = 0.0f32;
    if any {
        value = result.output[i];
        largest = result.largest[h];
        sum = result.sum[h];
    }
    states[at + 2 + i % d] = value;
    if i % d == 0 {
        states[at] = largest;
        states[at + 1] = sum;
    }
}
