//! Steps 1 to 4 on a tile of positions, where one number ranks a position: with one query head for each key/value head, or with the sum of logits as
//! the group's score, which is one dot product with the sum of the heads' queries.
//!
//! The scores of a tile never leave the cube. What leaves it are its *candidates*: at least the k best of the tile, so that the k best of the sequence are among
//! those of all tiles. K is read once, and what is written is a small part of what is read.

use cubecl::prelude::*;

use super::best::{BINS, is_taken, take_best};
use super::common::*;
use super::score::{ScorePlan, choose_components};

/// What a tile kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TilePlan {
    /// How components are chosen and the sketch is read; `heads` is not used.
    pub score: ScorePlan,
    /// Vectors of positions that a unit owns, each a cube's width of vectors apart.
    pub vectors: usize,
    /// k.
    pub top_k: usize,
    /// l.
    pub window: usize,
    /// Candidates that a tile must name where it has so many: k - l, and at least 1.
    pub needed: usize,
    /// Candidates that a tile has room for.
    pub room: usize,
    /// Whether alpha is asked for, which takes a sum of exponentials.
    pub alpha: bool,
}

impl TilePlan {
    /// Bytes of shared memory.
    pub fn shared_bytes(&self) -> usize {
        let score = &self.score;
        let planes = (score.units / score.plane) as usize;
        let numbers = (score.group + 1) * (score.rank + score.head_dim)
            + score.rank
            + BINS
            + score.units as usize
            + 4 * planes
            + 8;
        4 * numbers
    }
}

/// Numbers that a tile leaves beside its candidates: the largest score, the sum of exponentials relative to it, and the part of that sum that the local
/// window holds.
pub(crate) const TILE_STATS: usize = 3;

/// Scores of a tile and its candidates.
///
/// q [B, H, 1, d]; `sketch` and `step` as for [`score_kernel`](super::score::score_kernel); `scores` and `places` [B, H_kv, tiles, room]: the candidates'
/// scores, filled up with negative infinity, and their positions; `stats` [B, H_kv, tiles, [`TILE_STATS`]]. `one` has the bits of 1.0: see [`code_of`].
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn tile_kernel<Q: Float, K: Numeric, N: Size>(
    q: &Tensor<Q>,
    sketch: &[Vector<K, N>],
    step: &[f32],
    spans: &[u32],
    scores: &mut [f32],
    places: &mut [u32],
    stats: &mut [f32],
    batch: u32,
    kv_heads: u32,
    capacity: u32,
    tiles: u32,
    one: u32,
    #[comptime] plan: TilePlan,
    #[define(Q, K)] _types: [ElemType; 2],
) {
    let n = N::value();
    let each = comptime!(n * plan.score.per_element());
    let vectors = comptime!(plan.vectors);
    let count = comptime!(each * vectors);
    let group = comptime!(plan.score.group);
    let rank = comptime!(plan.score.rank);
    let unroll = comptime!(plan.score.unroll);
    let bits = comptime!(plan.score.bits);
    let units = comptime!(plan.score.units as usize);
    let plane = comptime!(plan.score.plane);
    let planes = comptime!((plan.score.units / plan.score.plane) as usize);
    let unit = UNIT_POS as usize;
    let tiles = tiles as usize;
    let row = CUBE_POS / tiles;
    let tile = CUBE_POS % tiles;
    if row >= (batch * kv_heads) as usize {
        terminate!();
    }
    let place = locate(spans, row, batch, kv_heads);
    let (start, end) = (place.start, place.end);
    let tile_start = tile * comptime!(units * count);
    // A sequence of at most k positions keeps them all.
    if tile_start >= end || end - start <= comptime!(plan.top_k) {
        terminate!();
    }

    let mut selected = Shared::<[u32]>::new_slice(rank);
    let mut weights = Shared::<[f32]>::new_slice(comptime!(rank * group));
    let mut combined = Shared::<[f32]>::new_slice(rank);
    choose_components::<Q>(
        q,
        step,
        place.sequence,
        place.kv_head,
        row,
        &mut selected,
        &mut weights,
        plan.score,
    );
    // Codes are read as 1 + n / 2^b: see `code_of`.
    let scale = comptime!(if bits == 0 {
        1.0
    } else {
        (1u32 << bits) as f32
    });
    let mut i = unit;
    while i < rank {
        let mut weight = 0.0f32;
        #[unroll]
        for h in 0..group {
            weight += weights[i * group + h];
        }
        combined[i] = weight * scale;
        i += units;
    }
    sync_cube();

    // What the ones add up to is the same at every position: the sums start from its negative.
    let mut sums = Array::<f32>::new(count);
    let mut offset = 0.0f32;
    if comptime!(bits > 0) {
        for i in 0..rank {
            offset -= combined[i];
        }
    }
    #[unroll]
    for p in 0..count {
        sums[p] = offset;
    }
    let row_vectors = capacity as usize / each;
    let first = tile_start / each + unit;
    let base = row * comptime!(plan.score.head_dim) * row_vectors;
    // Where a vector would lie behind the end, the last one of the sequence is read once more: its scores are not used.
    let last = (end - 1) / each;
    let mut at = Array::<usize>::new(vectors);
    #[unroll]
    for v in 0..vectors {
        at[v] = base + min(first + v * units, last);
    }
    for block in 0..comptime!(rank / unroll) {
        let mut loaded = Array::<Vector<K, N>>::new(comptime!(unroll * vectors));
        #[unroll]
        for u in 0..unroll {
            let component = selected[block * unroll + u] as usize * row_vectors;
            #[unroll]
            for v in 0..vectors {
                loaded[u * vectors + v] = sketch[at[v] + component];
            }
        }
        #[unroll]
        for u in 0..unroll {
            let weight = combined[block * unroll + u];
            #[unroll]
            for v in 0..vectors {
                add_keys::<K, N>(&mut sums, loaded[u * vectors + v], weight, one, v, bits);
            }
        }
    }
    #[unroll]
    for u in 0..comptime!(rank % unroll) {
        let i = comptime!(rank - rank % unroll) + u;
        let component = selected[i] as usize * row_vectors;
        #[unroll]
        for v in 0..vectors {
            add_keys::<K, N>(
                &mut sums,
                sketch[at[v] + component],
                combined[i],
                one,
                v,
                bits,
            );
        }
    }

    // Positions from here on are relative to the first valid one, modulo 2^32: what is before it lies behind all others.
    let valid = (end - start) as u32;
    let free = valid - comptime!(plan.window as u32);
    let mut relative = Array::<u32>::new(vectors);
    let mut top = f32::NEG_INFINITY.runtime();
    #[unroll]
    for v in 0..vectors {
        relative[v] = ((first + v * units) * each) as u32 - start as u32;
        #[unroll]
        for e in 0..each {
            let i = comptime!(v * each + e);
            let score = finite(sums[i] * comptime!(code_scale(e, bits)));
            let at = relative[v] + comptime!(e as u32);
            sums[i] = select(at < valid, score, f32::NEG_INFINITY);
            top = max(top, sums[i]);
        }
    }
    let mut scratch = Shared::<[f32]>::new_slice(planes);
    // At least one position of the tile is valid, or its candidates are all padding.
    let top = max(
        cube_max(top, &mut scratch, comptime!(plan.score.units), plane),
        -LARGEST,
    );
    let mut all = 0.0f32;
    let mut latest = 0.0f32;
    #[unroll]
    for v in 0..vectors {
        #[unroll]
        for e in 0..each {
            let i = comptime!(v * each + e);
            let in_window = relative[v] + comptime!(e as u32) >= free;
            if comptime!(plan.alpha) {
                let weight = (sums[i] - top).exp();
                all += weight;
                latest += select(in_window, weight, 0.0f32);
            }
            // The local window is taken without a look at its scores.
            sums[i] = select(in_window, f32::NEG_INFINITY, sums[i]);
        }
    }
    let mut parts = Shared::<[f32]>::new_slice(comptime!(2 * planes));
    if comptime!(plan.alpha) {
        let all = sum_in_plane(all, plane);
        let latest = sum_in_plane(latest, plane);
        if plane_lane(plane) == 0 {
            parts[plane_index(plane) as usize] = all;
            parts[planes + plane_index(plane) as usize] = latest;
        }
    }

    let needed = comptime!(plan.needed as u32);
    let room = comptime!(plan.room);
    let (best, taken) = take_best(
        &sums,
        top,
        needed,
        room as u32,
        count,
        plan.score.units,
        plane,
    );
    let out = (row * tiles + tile) * room;
    let mut slot = best.first;
    #[unroll]
    for v in 0..vectors {
        #[unroll]
        for e in 0..each {
            let i = comptime!(v * each + e);
            if is_taken(&taken, i) {
                scores[out + slot as usize] = sums[i];
                places[out + slot as usize] = ((first + v * units) * each + e) as u32;
                slot += 1u32;
            }
        }
    }
    let mut slot = best.total as usize + unit;
    while slot < room {
        scores[out + slot] = f32::NEG_INFINITY;
        slot += units;
    }
    if unit == 0 {
        let at = (row * tiles + tile) * TILE_STATS;
        stats[at] = top;
        if comptime!(plan.alpha) {
            let mut all = 0.0f32;
            let mut latest = 0.0f32;
            for i in 0..comptime!(plan.score.units).runtime() / plane_dim(plane) {
                all += parts[i as usize];
                latest += parts[planes + i as usize];
            }
            stats[at + 1] = all;
            stats[at + 2] = latest;
        }
    }
}

/// Adds one component of the keys in vector `v` of a unit to their sums.
#[cube]
fn add_keys<K: Numeric, N: Size>(
    sums: &mut Array<f32>,
    keys: Vector<K, N>,
    weight: f32,
    one: u32,
    #[comptime] v: usize,
    #[comptime] bits: usize,
) {
    let n = N::value();
    let per_element = comptime!(32usize.checked_div(bits).unwrap_or(1));
    #[unroll]
    for x in 0..n {
        let element = keys.extract(x);
        #[unroll]
        for p in 0..per_element {
            let at = comptime!((v * n + x) * per_element + p);
            if comptime!(bits == 0) {
                sums[at] += weight * f32::cast_from(element);
            } else {
                sums[at] += weight * code_of(u32::cast_from(element), one, p, bits);
            }
        }
    }
}

/// The code n at place `p` of a word, as 1 + n / 2^b: its bits become the upper ones of the mantissa of 1.0.
///
/// A conversion from integers runs at a fraction of the rate. Of two neighbours in a word the lower is left where the shift for the upper puts it, b bits further
/// down, which gives 1 + n / 2^2b and saves a shift: see [`code_scale`]. `one` comes from outside as an operand, since with two constants a compiler makes two
/// instructions of mask and union.
#[cube]
fn code_of(word: u32, one: u32, #[comptime] p: usize, #[comptime] bits: usize) -> f32 {
    // The place of the upper one of two neighbours, from its lowest bit.
    let from = comptime!(((p | 1) * bits) as u32);
    let to = comptime!(23 - bits as u32);
    let mut moved = word;
    if comptime!(from > to) {
        moved = word >> comptime!(from.saturating_sub(to));
    } else if comptime!(from < to) {
        moved = word << comptime!(to.saturating_sub(from));
    }
    let down = comptime!(if p % 2 == 0 { bits } else { 0 });
    let mask = comptime!(((1u32 << bits) - 1) << (23 - bits - down));
    f32::reinterpret((moved & mask) | one)
}

/// What the sum of position `e` of a vector is to be multiplied by; see [`code_of`].
fn code_scale(e: usize, bits: usize) -> f32 {
    match bits > 0 && e.is_multiple_of(2) {
        true => (1u32 << bits) as f32,
        false => 1.0,
    }
}
