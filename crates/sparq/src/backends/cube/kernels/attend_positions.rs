//! Exact attention over positions that another layer selected: stage 3 without the stages before.

use cubecl::prelude::*;

use crate::backends::cube::parts::batch_head::{BatchShape, locate};
use crate::backends::cube::parts::online_softmax::{KvRows, Positions, store_queries};
use crate::backends::cube::parts::query::load_queries;
use crate::backends::cube::parts::row_codes::RowScales;
use crate::backends::cube::parts::split_attention::{
    CubeSplit, SplitBlueprint, SplitOutput, attend_split,
};

/// The settings that attention over given positions is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AttendPositionsBlueprint {
    /// How a cube attends to its split.
    pub split: SplitBlueprint,
    /// k.
    pub k: usize,
    /// Splits of a list.
    pub splits: usize,
}

impl AttendPositionsBlueprint {
    /// Positions of a split.
    fn share(&self) -> usize {
        self.k.div_ceil(self.splits)
    }

    /// Cubes of a batch head: each attends to one split with the heads of one pass.
    pub fn cubes(&self) -> usize {
        self.splits * self.split.attend.passes()
    }

    /// Bytes of shared memory.
    pub fn shared_bytes(&self) -> usize {
        self.split.attend.shared_bytes() + 4 * self.share()
    }
}

/// The positions that other KV heads selected.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct Lists {
    /// The lists of N KV heads, [B, N, k]; -1 fills up.
    pub positions: Box<[i32]>,
    /// The list of each KV head, [H_kv].
    pub heads: Box<[u32]>,
    /// N.
    pub count: u32,
}

/// Attends with one query per sequence to the positions of the `lists`.
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn attend_positions_kernel<Q: Float, E: Numeric, N: Size>(
    q: &Tensor<Q>,
    rows: &KvRows<E, N>,
    scales: &RowScales,
    lists: &Lists,
    spans: &[u32],
    output: &mut SplitOutput<Q>,
    shape: &BatchShape,
    capacity: u32,
    #[comptime] plan: AttendPositionsBlueprint,
    #[define(Q, E)] _types: [ElemType; 2],
) {
    let attend = comptime!(plan.split.attend);
    let group = comptime!(attend.group);
    let d = comptime!(attend.head_dim);
    let passes = comptime!(attend.passes());
    let share = comptime!(plan.share());
    let units = comptime!(attend.units as usize);
    let capacity = capacity as usize;
    // Cubes that read the same rows are neighbours.
    let pass = CUBE_POS % passes;
    let split = CUBE_POS / passes % plan.splits;
    let index = CUBE_POS / comptime!(plan.cubes());
    if index >= shape.count() {
        terminate!();
    }
    // All loads that do not depend on each other are in flight before the first one is used.
    let sequence = index / shape.kv_heads as usize;
    let kv_head = index % shape.kv_heads as usize;
    let own_queries = load_queries::<Q>(q, sequence, kv_head, group, d, units);
    let first = split * share;
    let own = load_positions(lists, sequence, kv_head, first, plan);
    let batch_head = locate(spans, index, shape);
    let mut queries = Shared::<[f32]>::new_slice(comptime!(group * d));
    store_queries(&mut queries, &own_queries, attend);
    let mut selected = Shared::<[u32]>::new_slice(share);
    #[unroll]
    for x in 0..comptime!(share.div_ceil(units)) {
        let i = x * units + UNIT_POS as usize;
        if i < share {
            // A list of another cache may name positions past the end of this one.
            selected[i] = min(own[x], (capacity - 1) as u32);
        }
    }
    sync_cube();
    let valid = batch_head.end - batch_head.start;
    let end = min(valid, min(first + share, comptime!(plan.k).runtime()));
    let count = end - min(first, end);
    let positions = Positions::gathered(index * capacity, &selected, count);
    let head = pass * attend.heads;
    let split = CubeSplit {
        batch_head: index,
        split,
        splits: comptime!(plan.splits).runtime(),
        head,
        end: min(head + attend.heads, comptime!(group).runtime()),
    };
    attend_split::<Q, E, N>(
        &queries, rows, scales, &positions, &split, output, plan.split,
    );
}

/// Loads this unit's share of the positions of a split, the first of which is number `first` of the
/// list of a KV head.
#[cube]
fn load_positions(
    lists: &Lists,
    sequence: usize,
    kv_head: usize,
    first: usize,
    #[comptime] plan: AttendPositionsBlueprint,
) -> Array<u32> {
    let units = comptime!(plan.split.attend.units as usize);
    let each = comptime!(plan.share().div_ceil(units));
    let count = lists.count as usize;
    let list = min(lists.heads[kv_head] as usize, count - 1);
    let mut own = Array::<u32>::new(each);
    #[unroll]
    for x in 0..each {
        let i = first + x * units + UNIT_POS as usize;
        let i = min(i, comptime!(plan.k - 1).runtime());
        own[x] = u32::cast_from(lists.positions[(sequence * count + list) * plan.k + i]);
    }
    own
}
