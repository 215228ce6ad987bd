//! Taking back appends: the spans and the sum of V of a cache.

use cubecl::prelude::*;

use crate::backends::cube::parts::batch_head::BatchShape;
use crate::backends::cube::parts::row_codes::component;

/// Sets the sum of V to that of a mark plus the values kept since, and moves the spans; see
/// [`SparqBackend::roll_back`](crate::ops::SparqBackend::roll_back). One cube for each batch head.
///
/// `values` [B, H_kv, S_max, d] in floats or in codes with `scales` [B, H_kv, S_max], `v_sum` and
/// `mark` [B, H_kv, d], `spans` and `moves` [3, B].
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn roll_back_kernel<E: Numeric>(
    values: &[E],
    scales: &[f32],
    v_sum: &mut [f32],
    mark: &mut [f32],
    spans: &mut [u32],
    moves: &[u32],
    shape: &BatchShape,
    capacity: u32,
    #[comptime] d: usize,
    #[comptime] coded: bool,
    #[define(E)] _type: ElemType,
) {
    let index = CUBE_POS;
    if index >= shape.count() {
        terminate!();
    }
    let (batch, kv_heads) = (shape.batch as usize, shape.kv_heads as usize);
    let sequence = index / kv_heads;
    let start = moves[sequence];
    let end = moves[2 * batch + sequence];
    let first = max(start, moves[batch + sequence]) as usize;
    let mut c = UNIT_POS as usize;
    while c < d.runtime() {
        let mut sum = mark[index * d + c];
        for position in first..end as usize {
            let row = index * capacity as usize + position;
            sum += component::<E>(values, scales, row, c, d, coded);
        }
        v_sum[index * d + c] = sum;
        mark[index * d + c] = sum;
        c += CUBE_DIM as usize;
    }
    if UNIT_POS == 0 && index % kv_heads == 0 {
        spans[sequence] = start;
        spans[batch + sequence] = end;
        spans[2 * batch + sequence] = 0u32;
    }
}
