//! Steps 4 to 7 by one cube for each key/value head: choice of the positions, exact attention over them, mean value.

use cubecl::prelude::*;

use super::attend::{AttendPlan, Attended, attend};
use super::common::*;
use super::select::{SelectPlan, merge_stats, select_positions};
use super::spread::take_emitted;

/// From the logits and statistics (and, if `emitted`, what the cubes of [`emit_kernel`](super::spread::emit_kernel) chose) of the score kernels to the output [B, H, d], the kept positions [B, H_kv, `width`] and alpha [B, H].
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn finish_kernel<Q: Float, E: Float, N: Size>(
    q: &Tensor<Q>,
    keys: &[Vector<E, N>],
    values: &[Vector<E, N>],
    v_sum: &[f32],
    spans: &[u32],
    logits: &[Vector<f32, Const<4>>],
    stats: &[f32],
    state: &[u32],
    above: &[u32],
    border: &[u32],
    out: &mut [Q],
    positions: &mut [i32],
    alpha: &mut [f32],
    batch: u32,
    kv_heads: u32,
    capacity: u32,
    tiles: u32,
    tile_len: u32,
    width: u32,
    #[comptime] mean_value: bool,
    #[comptime] emitted: bool,
    #[comptime] choice: SelectPlan,
    #[comptime] plan: AttendPlan,
    #[define(Q, E)] _types: [ElemType; 2],
) {
    let d = comptime!(plan.head_dim);
    let group = comptime!(plan.group);
    let units = comptime!(plan.units as usize);
    let top_k = comptime!(choice.top_k);
    let capacity = capacity as usize;
    let width = width as usize;
    let unit = UNIT_POS as usize;
    let row = CUBE_POS;
    if row >= (batch * kv_heads) as usize {
        terminate!();
    }
    let place = locate(spans, row, batch, kv_heads);
    let (start, end) = (place.start, place.end);
    let valid = end - start;
    let count = min(valid, top_k.runtime());

    let mut top = Shared::<[f32]>::new_slice(group);
    let mut lse = Shared::<[f32]>::new_slice(group);
    let mut kept = Shared::<[u32]>::new_slice(top_k);
    let mut alphas = Shared::<[f32]>::new_slice(group);
    let mut scratch = Shared::<[f32]>::new_slice(comptime!((plan.units / plan.plane) as usize));
    let used = end.div_ceil(tile_len as usize);
    merge_stats(stats, row, tiles as usize, used, &mut top, &mut lse, choice);
    if valid > top_k {
        let mut chosen = false.runtime();
        if comptime!(emitted) {
            chosen = take_emitted(state, above, border, row, end, &mut kept, choice);
        }
        if !chosen {
            select_positions(
                logits, row, capacity, start, end, &top, &lse, &mut kept, choice,
            );
        }
        // Step 5: alpha = the sum of s_hat over i2.
        for h in 0..group {
            let mut sum = 0.0f32;
            let mut i = unit;
            while i < top_k {
                let position = kept[i] as usize;
                let four = logits[(row * group + h) * (capacity / 4) + position / 4];
                let lane = position % 4;
                let mut logit = four.extract(0usize);
                #[unroll]
                for e in 1..4usize {
                    logit = select(lane == e, four.extract(e), logit);
                }
                sum += (logit - lse[h]).exp();
                i += units;
            }
            let sum = cube_sum(
                sum,
                &mut scratch,
                comptime!(plan.units),
                comptime!(plan.plane),
            );
            alphas[h] = clamp(sum, 0.0f32, 1.0f32);
        }
    } else {
        let mut i = unit;
        while i < valid {
            kept[i] = (start + i) as u32;
            i += units;
        }
        let mut h = unit;
        while h < group {
            alphas[h] = 1.0f32;
            h += units;
        }
    }
    sync_cube();
    let mut i = unit;
    while i < width {
        let mut position = (-1i32).runtime();
        if i < count {
            position = kept[i] as i32;
        }
        positions[row * width + i] = position;
        i += units;
    }
    let mut h = unit;
    while h < group {
        alpha[row * group + h] = alphas[h];
        h += units;
    }

    // Step 6: y = softmax(q . K[i2] / sqrt(d)) . V[i2], exact.
    let mut result = Attended::new(plan);
    let mut head = 0usize;
    while head < group {
        if count > 0 {
            attend::<Q, E, N>(
                q,
                keys,
                values,
                place.sequence,
                place.kv_head,
                row * capacity,
                head,
                &kept,
                0usize,
                count,
                &mut result,
                true,
                plan,
            );
        }
        let mut i = unit;
        while i < comptime!(plan.heads * plan.head_dim) {
            let h = i / d;
            let here = head + h;
            if here < group {
                let mut y = 0.0f32;
                if count > 0 {
                    y = result.output[i] / max(result.sum[h], f32::MIN_POSITIVE);
                }
                // Step 7: y = alpha y + (1 - alpha) mean(V).
                if comptime!(mean_value) {
                    let mean = v_sum[row * d + i % d] / max(f32::cast_from(valid as u32), 1.0f32);
                    y = y * alphas[here] + mean * (1.0f32 - alphas[here]);
                }
                out[(row * group + here) * d + i % d] = Q::cast_from(y);
            }
            i += units;
        }
        sync_cube();
        head += comptime!(plan.heads);
    }
}
