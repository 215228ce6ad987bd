//! Steps 4 to 7 by one cube for each key/value head: choice of the positions, exact attention over them, mean value.

use cubecl::prelude::*;

use super::attend::{AttendPlan, Attended, attend};
use super::best::{is_taken, take_best};
use super::common::*;
use super::select::{SelectPlan, merge_stats, select_positions};
use super::spread::take_emitted;
use super::tile::TILE_STATS;

/// What a choice starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// The logits of all positions, from [`score_kernel`](super::score::score_kernel).
    Logits,
    /// What [`emit_kernel`](super::spread::emit_kernel) chose from them; the logits again where it could not.
    Emitted,
    /// The candidates of [`tile_kernel`](super::tile::tile_kernel), `room` for each tile.
    Candidates {
        /// Candidates that a tile has room for.
        room: usize,
        /// Vectors of four scores that a unit holds in registers; 0 where there are too many.
        vectors: usize,
    },
}

/// From what the score kernels left to the output [B, H, d], the kept positions [B, H_kv, `width`] and, where `alpha_known`, alpha [B, H].
///
/// Of candidates, `logits` are their scores and `above` their positions.
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
    #[comptime] alpha_known: bool,
    #[comptime] attends: bool,
    #[comptime] source: Source,
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
    let tiles = tiles as usize;
    let stride = comptime!(match source {
        Source::Candidates { .. } => TILE_STATS,
        _ => 2,
    });
    merge_stats(stats, row, tiles, used, &mut top, &mut lse, stride, choice);
    if valid > top_k {
        match comptime!(source) {
            Source::Candidates { room, vectors } => {
                if comptime!(vectors > 0) {
                    choose_candidates(
                        logits,
                        above,
                        stats,
                        row,
                        tiles,
                        used,
                        end,
                        &top,
                        &lse,
                        &mut kept,
                        &mut alphas,
                        &mut scratch,
                        alpha_known,
                        room,
                        vectors,
                        choice,
                    );
                } else {
                    choose_many_candidates(
                        logits,
                        above,
                        stats,
                        row,
                        tiles,
                        used,
                        end,
                        &top,
                        &lse,
                        &mut kept,
                        &mut alphas,
                        &mut scratch,
                        alpha_known,
                        room,
                        choice,
                    );
                }
            }
            _ => {
                let mut chosen = false.runtime();
                if comptime!(source == Source::Emitted) {
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
                        let logit =
                            number_of(logits, (row * group + h) * capacity + kept[i] as usize);
                        sum += (logit - lse[h]).exp();
                        i += units;
                    }
                    let sum = cube_sum(sum, &mut scratch, plan.units, plan.plane);
                    alphas[h] = clamp(sum, 0.0f32, 1.0f32);
                }
            }
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
    if comptime!(alpha_known) {
        let mut h = unit;
        while h < group {
            alpha[row * group + h] = alphas[h];
            h += units;
        }
    }

    if comptime!(attends) {
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
                        let mean =
                            v_sum[row * d + i % d] / max(f32::cast_from(valid as u32), 1.0f32);
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
}

/// Step 4 from the candidates of all tiles, and step 5 where alpha is asked for: fills `kept` with k positions and `alphas`.
///
/// Every unit loads its share of the candidates at once, since a cube alone on its processor would otherwise wait for memory again and again.
#[cube]
#[allow(clippy::too_many_arguments)]
fn choose_candidates(
    scores: &[Vector<f32, Const<4>>],
    places: &[u32],
    stats: &[f32],
    row: usize,
    tiles: usize,
    used: usize,
    end: usize,
    top: &Shared<[f32]>,
    lse: &Shared<[f32]>,
    kept: &mut Shared<[u32]>,
    alphas: &mut Shared<[f32]>,
    scratch: &mut Shared<[f32]>,
    #[comptime] alpha: bool,
    #[comptime] room: usize,
    #[comptime] vectors: usize,
    #[comptime] choice: SelectPlan,
) {
    let units = comptime!(choice.units as usize);
    let window = comptime!(choice.window);
    let top_k = comptime!(choice.top_k);
    let needed = comptime!((choice.top_k - choice.window) as u32);
    let unit = UNIT_POS as usize;
    let first = row * tiles * room;
    let count = used * room / 4;
    let mut own = Array::<f32>::new(comptime!(4 * vectors));
    #[unroll]
    for v in 0..vectors {
        let mut four = Vector::<f32, Const<4>>::new(f32::NEG_INFINITY);
        let at = v * units + unit;
        if at < count {
            four = scores[first / 4 + at];
        }
        #[unroll]
        for e in 0..4usize {
            own[v * 4 + e] = four.extract(e);
        }
    }
    let mut sum = 0.0f32;
    let mut i = unit;
    while i < window {
        kept[i] = (end - window + i) as u32;
        i += units;
    }
    if comptime!(needed > 0) {
        let (best, taken) = take_best(
            &own,
            top[0],
            needed,
            needed,
            comptime!(4 * vectors),
            choice.units,
            choice.plane,
        );
        let mut slot = window + best.first as usize;
        #[unroll]
        for v in 0..vectors {
            #[unroll]
            for e in 0..4usize {
                let i = comptime!(v * 4 + e);
                if is_taken(&taken, i) {
                    // Its number first: to wait here for its position would be to wait once for each.
                    kept[slot] = ((v * units + unit) * 4 + e) as u32;
                    slot += 1;
                    if comptime!(alpha) {
                        sum += (own[i] - lse[0]).exp();
                    }
                }
            }
        }
        sync_cube();
        let mut i = window + unit;
        while i < top_k {
            kept[i] = places[first + kept[i] as usize];
            i += units;
        }
    }
    if comptime!(alpha) {
        let mass = with_window(sum, stats, row, tiles, used, lse, scratch, choice);
        alphas[0] = clamp(mass, 0.0f32, 1.0f32);
    }
}

/// [`choose_candidates`] for more of them than fit in registers.
#[cube]
#[allow(clippy::too_many_arguments)]
fn choose_many_candidates(
    scores: &[Vector<f32, Const<4>>],
    places: &[u32],
    stats: &[f32],
    row: usize,
    tiles: usize,
    used: usize,
    end: usize,
    top: &Shared<[f32]>,
    lse: &Shared<[f32]>,
    kept: &mut Shared<[u32]>,
    alphas: &mut Shared<[f32]>,
    scratch: &mut Shared<[f32]>,
    #[comptime] alpha: bool,
    #[comptime] room: usize,
    #[comptime] choice: SelectPlan,
) {
    let units = comptime!(choice.units as usize);
    let window = comptime!(choice.window);
    let top_k = comptime!(choice.top_k);
    let unit = UNIT_POS as usize;
    let stored = tiles * room;
    // The candidates are chosen like positions, with the local window behind them.
    select_positions(
        scores,
        row,
        stored,
        0usize,
        used * room + window,
        top,
        lse,
        kept,
        choice,
    );
    sync_cube();
    let mut sum = 0.0f32;
    let mut i = unit;
    while i < top_k {
        if i < window {
            kept[i] = (end - window + i) as u32;
        } else {
            let candidate = row * stored + kept[i] as usize;
            if comptime!(alpha) {
                sum += (number_of(scores, candidate) - lse[0]).exp();
            }
            kept[i] = places[candidate];
        }
        i += units;
    }
    if comptime!(alpha) {
        let mass = with_window(sum, stats, row, tiles, used, lse, scratch, choice);
        alphas[0] = clamp(mass, 0.0f32, 1.0f32);
    }
}

/// The sum over the cube of each unit's `part`, and of what the tiles say that the local window holds.
#[cube]
#[allow(clippy::too_many_arguments)]
fn with_window(
    part: f32,
    stats: &[f32],
    row: usize,
    tiles: usize,
    used: usize,
    lse: &Shared<[f32]>,
    scratch: &mut Shared<[f32]>,
    #[comptime] choice: SelectPlan,
) -> f32 {
    let mut sum = part;
    let mut tile = UNIT_POS as usize;
    while tile < used {
        let at = (row * tiles + tile) * TILE_STATS;
        sum += stats[at + 2] * (stats[at] - lse[0]).exp();
        tile += comptime!(choice.units as usize);
    }
    cube_sum(sum, scratch, choice.units, choice.plane)
}

/// Number `at` of vectors of four.
#[cube]
fn number_of(vectors: &[Vector<f32, Const<4>>], at: usize) -> f32 {
    let four = vectors[at / 4];
    let lane = at % 4;
    let mut number = four.extract(0usize);
    #[unroll]
    for e in 1..4usize {
        number = select(lane == e, four.extract(e), number);
    }
    number
}

/// Step 5 alone: alpha [B, H] of the kept positions [B, H_kv, `width`], from the logits of all heads.
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn alpha_kernel(
    logits: &[Vector<f32, Const<4>>],
    stats: &[f32],
    spans: &[u32],
    positions: &[i32],
    alpha: &mut [f32],
    batch: u32,
    kv_heads: u32,
    capacity: u32,
    tiles: u32,
    tile_len: u32,
    width: u32,
    #[comptime] plan: SelectPlan,
) {
    let group = comptime!(plan.group);
    let units = comptime!(plan.units as usize);
    let row = CUBE_POS;
    if row >= (batch * kv_heads) as usize {
        terminate!();
    }
    let place = locate(spans, row, batch, kv_heads);
    let mut top = Shared::<[f32]>::new_slice(group);
    let mut lse = Shared::<[f32]>::new_slice(group);
    let mut scratch = Shared::<[f32]>::new_slice(comptime!((plan.units / plan.plane) as usize));
    let used = place.end.div_ceil(tile_len as usize);
    merge_stats(
        stats,
        row,
        tiles as usize,
        used,
        &mut top,
        &mut lse,
        2usize,
        plan,
    );
    for h in 0..group {
        let mut sum = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < width as usize {
            let position = positions[row * width as usize + i];
            if position >= 0 {
                let at = (row * group + h) * capacity as usize + position as usize;
                sum += (number_of(logits, at) - lse[h]).exp();
            }
            i += units;
        }
        let sum = cube_sum(sum, &mut scratch, plan.units, plan.plane);
        if UNIT_POS == 0 {
            let all = place.end - place.start <= comptime!(plan.top_k);
            alpha[row * group + h] = select(all, 1.0f32, clamp(sum, 0.0f32, 1.0f32));
        }
    }
}
