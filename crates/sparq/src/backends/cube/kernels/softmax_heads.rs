//! The softmax sums of each head of a group, in a launch before the positions are ranked.

use cubecl::prelude::*;

use crate::backends::cube::parts::batch_head::{BatchShape, locate};
use crate::backends::cube::parts::group_softmax::{
    HEAD_STATS, exponentiate, mask_outside, pass_logits, span_in_tile, write_head_stats,
};
use crate::backends::cube::parts::logits::{KeySketch, SketchBlueprint, sketch_tile};
use crate::backends::cube::parts::query::{ChosenComponents, query_of};

/// Writes, for every head and tile, the largest approximate logit and the sum of exponentials
/// relative to it: `stats` [B, H_kv, tiles, g, [`HEAD_STATS`]].
///
/// The other arguments are those of
/// [`score_tiles_kernel`](super::score_tiles::score_tiles_kernel).
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn softmax_heads_kernel<Q: Float, K: Numeric, N: Size>(
    q: &Tensor<Q>,
    sketch: &KeySketch<Vector<K, N>>,
    spans: &[u32],
    chosen: &ChosenComponents,
    stats: &mut [f32],
    shape: &BatchShape,
    capacity: u32,
    tiles: u32,
    #[comptime] plan: SketchBlueprint,
    #[define(Q, K)] _types: [ElemType; 2],
) {
    let group = comptime!(plan.query.heads());
    let planes = comptime!(plan.query.planes());
    let tiles = tiles as usize;
    let index = CUBE_POS / tiles;
    let tile = CUBE_POS % tiles;
    if index >= shape.count() {
        terminate!();
    }
    let batch_head = locate(spans, index, shape);
    let (start, end) = (batch_head.start, batch_head.end);
    let tile_start = tile * comptime!(plan.tile_len());
    // The loads of the query come before the first use of the span, so that both are in flight.
    let query = query_of::<Q>(q, &sketch.scale, chosen, &batch_head, plan.query);
    if tile_start >= end {
        terminate!();
    }
    let at = sketch_tile::<K, N>(
        &sketch.elements,
        index,
        capacity as usize,
        tile_start,
        end,
        plan,
    );
    let out = (index * tiles + tile) * comptime!(group * HEAD_STATS);
    let mut states = Shared::<[f32]>::new_slice(comptime!(HEAD_STATS * plan.pass() * planes));
    let mut first = 0usize;
    while first < group {
        let mut values = Array::<f32>::new(comptime!(plan.held()));
        pass_logits::<K, N>(&mut values, 0usize, &at, &query, first, plan);
        if tile_start < start || tile_start + comptime!(plan.tile_len()) > end {
            let (start, end) = span_in_tile(tile_start, start, end);
            mask_outside(&mut values, 0usize, start, end, plan);
        }
        let mut tops = Array::<f32>::new(comptime!(plan.tops()));
        exponentiate(&mut values, 0usize, &mut tops, 0usize, &mut states, plan);
        write_head_stats(&states, first, out, stats, plan);
        first += comptime!(plan.pass());
    }
}
