//! Steps 1 to 4 on a tile of positions, where one number ranks a position: with one query head for each key/value head, or with the sum of logits as
//! the group's score, which is one dot product with the sum of the heads' queries.
//!
//! The scores of a tile never leave the cube. What leaves it are its *candidates*: at least the k best of the tile, so that the k best of the sequence are among
//! those of all tiles. K is read once, and what is written is a small part of what is read.

use cubecl::prelude::*;

use super::best::{BINS, find_border, score_bin};
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
            + 2 * planes
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
/// scores, filled up with negative infinity, and their positions; `stats` [B, H_kv, tiles, [`TILE_STATS`]].
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
    let mut scratch = Shared::<[f32]>::new_slice(planes);
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
    // Codes are read as 1 + n / 2^b, which takes no conversion: see `key_of`.
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
                add_keys::<K, N>(&mut sums, loaded[u * vectors + v], weight, v, bits);
            }
        }
    }
    #[unroll]
    for u in 0..comptime!(rank % unroll) {
        let i = comptime!(rank - rank % unroll) + u;
        let component = selected[i] as usize * row_vectors;
        #[unroll]
        for v in 0..vectors {
            add_keys::<K, N>(&mut sums, sketch[at[v] + component], combined[i], v, bits);
        }
    }

    // Position of number 0 of each of this unit's vectors.
    let mut top = (-LARGEST).runtime();
    #[unroll]
    for v in 0..vectors {
        #[unroll]
        for e in 0..each {
            let position = (first + v * units) * each + e;
            let score = finite(sums[v * each + e]);
            sums[v * each + e] = score;
            let valid = position >= start && position < end;
            top = select(valid, max(top, score), top);
        }
    }
    let top = cube_max(top, &mut scratch, comptime!(plan.score.units), plane);
    let free = end - comptime!(plan.window);
    if comptime!(plan.alpha) {
        let mut all = 0.0f32;
        let mut latest = 0.0f32;
        #[unroll]
        for v in 0..vectors {
            #[unroll]
            for e in 0..each {
                let position = (first + v * units) * each + e;
                let valid = position >= start && position < end;
                let weight = select(valid, (sums[v * each + e] - top).exp(), 0.0f32);
                all += weight;
                latest += select(position >= free, weight, 0.0f32);
            }
        }
        let all = cube_sum(all, &mut scratch, comptime!(plan.score.units), plane);
        let latest = cube_sum(latest, &mut scratch, comptime!(plan.score.units), plane);
        if unit == 0 {
            let at = (row * tiles + tile) * TILE_STATS;
            stats[at + 1] = all;
            stats[at + 2] = latest;
        }
    }
    if unit == 0 {
        stats[(row * tiles + tile) * TILE_STATS] = top;
    }

    // What may be a candidate: neither padding nor in the local window, which is taken without a look at its scores.
    #[unroll]
    for v in 0..vectors {
        #[unroll]
        for e in 0..each {
            let position = (first + v * units) * each + e;
            let free = position >= start && position < free;
            sums[v * each + e] = select(free, sums[v * each + e], f32::NEG_INFINITY);
        }
    }
    let needed = comptime!(plan.needed as u32);
    let room = comptime!(plan.room);
    let border = find_border(
        &sums,
        top,
        needed,
        room as u32,
        count,
        plan.score.units,
        plane,
    );
    let slots = Shared::<[Atomic<u32>]>::new_slice(2usize);
    if unit == 0 {
        slots[0].store(0u32);
        slots[1].store(0u32);
    }
    sync_cube();
    let out = (row * tiles + tile) * room;
    #[unroll]
    for v in 0..vectors {
        #[unroll]
        for e in 0..each {
            let score = sums[v * each + e];
            if score > f32::NEG_INFINITY {
                let bin = score_bin(score, top);
                let mut take = bin < border.bin;
                if bin == border.bin {
                    let key = order_key(score);
                    take = key > border.key;
                    if key == border.key {
                        take = slots[1].fetch_add(1u32) < border.ties;
                    }
                }
                if take {
                    let slot = slots[0].fetch_add(1u32) as usize;
                    scores[out + slot] = score;
                    places[out + slot] = ((first + v * units) * each + e) as u32;
                }
            }
        }
    }
    sync_cube();
    let mut slot = slots[0].load() as usize + unit;
    while slot < room {
        scores[out + slot] = f32::NEG_INFINITY;
        slot += units;
    }
}

/// Adds one component of the keys in vector `v` of a unit to their sums.
#[cube]
fn add_keys<K: Numeric, N: Size>(
    sums: &mut Array<f32>,
    keys: Vector<K, N>,
    weight: f32,
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
            sums[at] += weight * key_of::<K>(element, p, bits);
        }
    }
}

/// The key of position `p` in an element of the sketch; for a code n of b bits, 1 + n / 2^b: the code's bits as the upper ones of a mantissa.
///
/// A conversion from integers runs at a quarter of the rate of what this takes. The weight is multiplied by 2^b for it, and what the ones add up to,
/// the same at every position, is where the sums start from.
#[cube]
fn key_of<K: Numeric>(element: K, #[comptime] p: usize, #[comptime] bits: usize) -> f32 {
    if comptime!(bits == 0) {
        f32::cast_from(element)
    } else {
        let word = u32::cast_from(element);
        let from = comptime!((p * bits) as u32);
        let to = comptime!(23 - bits as u32);
        let mut moved = word;
        if comptime!(from > to) {
            moved = word >> comptime!(from.saturating_sub(to));
        } else if comptime!(from < to) {
            moved = word << comptime!(to.saturating_sub(from));
        }
        let mask = comptime!(((1u32 << bits) - 1) << (23 - bits));
        f32::reinterpret((moved & mask) | 0x3F80_0000u32)
    }
}
