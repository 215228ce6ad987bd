//! Steps 1 to 3: the components of the query, and the approximate logits of a tile of positions.
//!
//! Every cube chooses the components for itself, which is less work than a launch, and then owns a tile of positions of one key/value head: K is read once
//! for all query heads of the group. Beside the logits a cube leaves the maximum and the sum of exponentials of its tile, from which
//! the softmax over all positions follows.

use cubecl::prelude::*;

use super::common::*;
use super::spread::STATE;

/// What a score kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ScorePlan {
    /// g.
    pub group: usize,
    /// d.
    pub head_dim: usize,
    /// r.
    pub rank: usize,
    /// Whether components are ranked by |sum q| and not by the sum of |q|.
    pub abs_sum: bool,
    /// Query heads whose logits are held in registers at a time.
    pub heads: usize,
    /// Bits of a code; 0 for a full copy of K.
    pub bits: usize,
    /// Components whose keys are loaded before the first is used.
    pub unroll: usize,
    /// Whether the rows' selection state is to be cleared for [`histogram_kernel`](super::spread::histogram_kernel).
    pub clear: bool,
    /// Units of a cube.
    pub units: u32,
    /// See [`common`](super::common).
    pub plane: u32,
}

impl ScorePlan {
    /// Positions in an element of the sketch: a key, or a word of codes.
    pub fn per_element(&self) -> usize {
        32usize.checked_div(self.bits).unwrap_or(1)
    }
}

/// Units that share the ranking of a component: a power of two, no more than a plane, and so that all units of a plane have a component or none has.
fn sharing(plan: ScorePlan) -> usize {
    let most = (plan.units as usize / plan.head_dim).min(plan.plane as usize);
    let fits = |&sharing: &usize| {
        sharing <= most
            && (plan.head_dim / 4).is_multiple_of(sharing)
            && (plan.head_dim * sharing).is_multiple_of(plan.plane as usize)
    };
    [4, 2].into_iter().find(fits).unwrap_or(1)
}

/// Steps 1 and 2 for one key/value head: leaves the chosen components in `selected` [r] and their weights q / tau (times the channel's step, for codes)
/// in `weights` [r, g].
#[cube]
#[allow(clippy::too_many_arguments)]
pub(crate) fn choose_components<Q: Float>(
    q: &Tensor<Q>,
    step: &[f32],
    sequence: usize,
    kv_head: usize,
    row: usize,
    selected: &mut Shared<[u32]>,
    weights: &mut Shared<[f32]>,
    #[comptime] plan: ScorePlan,
) {
    let group = comptime!(plan.group);
    let d = comptime!(plan.head_dim);
    let rank = comptime!(plan.rank);
    let units = comptime!(plan.units as usize);
    let plane = comptime!(plan.plane);
    let unit = UNIT_POS as usize;

    let mut query = Shared::<[f32]>::new_slice(comptime!(group * d));
    let mut magnitude = Shared::<[u32]>::new_slice(d);
    let mut fours = Shared::<[Vector<u32, Const<4>>]>::new_slice(comptime!(d / 4));
    let first = sequence * q.stride(0) + kv_head * group * q.stride(1);
    // All loads first: one after the other would wait for memory each time.
    let each = comptime!((group * d).div_ceil(units));
    let mut own = Array::<f32>::new(each);
    #[unroll]
    for x in 0..each {
        let i = min(x * units + unit, comptime!(group * d - 1).runtime());
        own[x] = f32::cast_from(q[first + (i / d) * q.stride(1) + (i % d) * q.stride(3)]);
    }
    #[unroll]
    for x in 0..each {
        let i = x * units + unit;
        if i < group * d {
            query[i] = own[x];
        }
    }
    sync_cube();

    // Bits of numbers that are not negative order like them.
    let mut quarter = unit;
    while quarter < comptime!(d / 4) {
        let mut four = Vector::<u32, Const<4>>::new(0u32);
        #[unroll]
        for e in 0..4usize {
            let mut sum = 0.0f32;
            for h in 0..group {
                let value = query[h * d + quarter * 4 + e];
                sum += if comptime!(plan.abs_sum) {
                    value
                } else {
                    value.abs()
                };
            }
            let bits = u32::reinterpret(sum.abs());
            magnitude[quarter * 4 + e] = bits;
            four.insert(e, bits);
        }
        fours[quarter] = four;
        quarter += units;
    }
    sync_cube();

    // The rank of a component is the number of those before it: of equal ones, those of a lower number. Where units are many, several share a component.
    let sharing = comptime!(sharing(plan));
    let quarters = comptime!(d / 4 / sharing);
    let mut c = unit / sharing;
    while c < d {
        let mine = magnitude[c];
        let from = unit % sharing * quarters;
        let mut before = 0u32;
        #[unroll]
        for x in 0..quarters {
            let four = fours[from + x];
            #[unroll]
            for e in 0..4usize {
                let least = select((from + x) * 4 + e < c, mine, mine + 1u32);
                before += select(four.extract(e) >= least, 1u32, 0u32);
            }
        }
        #[unroll]
        for i in 0..comptime!(sharing.ilog2()) {
            before += plane_shuffle_xor(before, 1u32 << i);
        }
        if before < rank as u32 {
            selected[before as usize] = c as u32;
        }
        c += comptime!(units / sharing);
    }
    sync_cube();

    // One plane for each head.
    let lane = plane_lane(plane) as usize;
    let lanes = plane_dim(plane) as usize;
    let planes = units / lanes;
    let mut h = plane_index(plane) as usize;
    while h < group {
        let mut whole = 0.0f32;
        let mut c = lane;
        while c < d {
            whole += query[h * d + c].abs();
            c += lanes;
        }
        let mut chosen = 0.0f32;
        let mut i = lane;
        while i < rank {
            chosen += query[h * d + selected[i] as usize].abs();
            i += lanes;
        }
        let whole = sum_in_plane(whole, plane);
        let chosen = sum_in_plane(chosen, plane);
        let ratio = select(chosen == 0.0f32, 1.0f32, chosen / whole);
        let tau = (ratio * comptime!(d as f32)).sqrt();
        let mut i = lane;
        while i < rank {
            let component = selected[i] as usize;
            let mut weight = query[h * d + component] / tau;
            if comptime!(plan.bits > 0) {
                weight *= step[row * d + component];
            }
            weights[i * group + h] = weight;
            i += lanes;
        }
        h += planes;
    }
    sync_cube();
}

/// Writes the logits of `count` positions for `plan.heads` heads from `head` on, and the statistics of the tile.
#[cube]
#[allow(clippy::too_many_arguments)]
fn finish_tile(
    sums: &Array<f32>,
    logits: &mut [Vector<f32, Const<4>>],
    stats: &mut [f32],
    scratch: &mut Shared<[f32]>,
    row: usize,
    tile: usize,
    tiles: usize,
    position: usize,
    start: usize,
    end: usize,
    capacity: usize,
    head: usize,
    #[comptime] count: usize,
    #[comptime] plan: ScorePlan,
) {
    let group = comptime!(plan.group);
    let units = comptime!(plan.units);
    let plane = comptime!(plan.plane);
    #[unroll]
    for h in 0..comptime!(plan.heads) {
        let here = head + h;
        let mut largest = (-LARGEST).runtime();
        let mut values = Array::<f32>::new(count);
        #[unroll]
        for p in 0..count {
            let at = position + p;
            values[p] = finite(sums[h * count + p]);
            let valid = at >= start && at < end;
            largest = select(valid, max(largest, values[p]), largest);
        }
        if here < group && position < end {
            let base = ((row * group + here) * capacity + position) / 4;
            #[unroll]
            for part in 0..comptime!(count / 4) {
                let mut four = Vector::<f32, Const<4>>::new(0.0f32);
                #[unroll]
                for e in 0..4usize {
                    four.insert(e, values[comptime!(part * 4 + e)]);
                }
                logits[base + part] = four;
            }
        }
        let largest = cube_max(largest, scratch, units, plane);
        let mut sum = 0.0f32;
        #[unroll]
        for p in 0..count {
            let at = position + p;
            let valid = at >= start && at < end;
            sum += select(valid, (values[p] - largest).exp(), 0.0f32);
        }
        let sum = cube_sum(sum, scratch, units, plane);
        if UNIT_POS == 0 && here < group {
            let at = ((row * tiles + tile) * group + here) * 2;
            stats[at] = largest;
            stats[at + 1] = sum;
        }
    }
}

/// Approximate logits of a tile of positions.
///
/// q [B, H, 1, d]; `sketch` in vectors of N elements: a full copy of K, [B, H_kv, d, S_max], or its codes in words, [B, H_kv, d, S_max / (32/b)], with
/// their `step` [B, H_kv, d]; `logits` [B, H_kv, g, S_max]; `stats` [B, H_kv, tiles, g, 2]; `state` [B, H_kv, [`STATE`]].
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn score_kernel<Q: Float, K: Numeric, N: Size>(
    q: &Tensor<Q>,
    sketch: &[Vector<K, N>],
    step: &[f32],
    spans: &[u32],
    logits: &mut [Vector<f32, Const<4>>],
    stats: &mut [f32],
    state: &mut [u32],
    batch: u32,
    kv_heads: u32,
    capacity: u32,
    tiles: u32,
    #[comptime] plan: ScorePlan,
    #[define(Q, K)] _types: [ElemType; 2],
) {
    let n = N::value();
    let count = comptime!(n * plan.per_element());
    let group = comptime!(plan.group);
    let rank = comptime!(plan.rank);
    let heads = comptime!(plan.heads);
    let unroll = comptime!(plan.unroll);
    let capacity = capacity as usize;
    let tiles = tiles as usize;
    let row = CUBE_POS / tiles;
    let tile = CUBE_POS % tiles;
    if row >= (batch * kv_heads) as usize {
        terminate!();
    }
    let place = locate(spans, row, batch, kv_heads);
    let tile_start = tile * comptime!(plan.units as usize * count);
    if tile_start >= place.end {
        terminate!();
    }

    if comptime!(plan.clear) {
        if tile == 0 {
            let mut i = UNIT_POS as usize;
            while i < STATE {
                state[row * STATE + i] = 0u32;
                i += comptime!(plan.units as usize);
            }
        }
    }
    let mut selected = Shared::<[u32]>::new_slice(rank);
    let mut weights = Shared::<[f32]>::new_slice(comptime!(rank * group));
    let mut scratch = Shared::<[f32]>::new_slice(comptime!((plan.units / plan.plane) as usize));
    choose_components::<Q>(
        q,
        step,
        place.sequence,
        place.kv_head,
        row,
        &mut selected,
        &mut weights,
        plan,
    );

    let position = tile_start + UNIT_POS as usize * count;
    let vectors = capacity / count;
    let base = row * comptime!(plan.head_dim) * vectors + position / count;
    let mut head = 0usize;
    while head < group {
        let mut sums = Array::<f32>::new(comptime!(heads * count));
        #[unroll]
        for i in 0..comptime!(heads * count) {
            sums[i] = 0.0f32;
        }
        if position < place.end {
            for block in 0..comptime!(rank / unroll) {
                let mut loaded = Array::<Vector<K, N>>::new(unroll);
                #[unroll]
                for u in 0..unroll {
                    let component = selected[block * unroll + u] as usize;
                    loaded[u] = sketch[base + component * vectors];
                }
                #[unroll]
                for u in 0..unroll {
                    add_keys::<K, N>(
                        &mut sums,
                        loaded[u],
                        &weights,
                        block * unroll + u,
                        head,
                        plan,
                    );
                }
            }
            #[unroll]
            for u in 0..comptime!(rank % unroll) {
                let i = comptime!(rank - rank % unroll) + u;
                let component = selected[i] as usize;
                let loaded = sketch[base + component * vectors];
                add_keys::<K, N>(&mut sums, loaded, &weights, i, head, plan);
            }
        }
        finish_tile(
            &sums,
            logits,
            stats,
            &mut scratch,
            row,
            tile,
            tiles,
            position,
            place.start,
            place.end,
            capacity,
            head,
            count,
            plan,
        );
        head += heads;
    }
}

/// Adds one component of the keys in a vector to the sums of the heads from `head` on.
#[cube]
fn add_keys<K: Numeric, N: Size>(
    sums: &mut Array<f32>,
    keys: Vector<K, N>,
    weights: &Shared<[f32]>,
    i: usize,
    head: usize,
    #[comptime] plan: ScorePlan,
) {
    let n = N::value();
    let each = comptime!(plan.per_element());
    #[unroll]
    for x in 0..n {
        let element = keys.extract(x);
        #[unroll]
        for p in 0..each {
            let key = key_of::<K>(element, p, plan);
            #[unroll]
            for h in 0..comptime!(plan.heads) {
                let weight = weights[i * comptime!(plan.group) + last_head(head, h, plan)];
                sums[h * comptime!(n * each) + comptime!(x * each + p)] += weight * key;
            }
        }
    }
}

/// The key, or the code, of position `p` in an element of the sketch.
#[cube]
fn key_of<K: Numeric>(element: K, #[comptime] p: usize, #[comptime] plan: ScorePlan) -> f32 {
    if comptime!(plan.bits == 0) {
        f32::cast_from(element)
    } else {
        // A small whole number in the lowest bits of 2^23's mantissa is that number added to 2^23: cheaper than a conversion.
        let shifted = u32::cast_from(element) >> comptime!((p * plan.bits) as u32);
        let code = shifted & comptime!((1u32 << plan.bits) - 1);
        f32::reinterpret(code | 0x4B00_0000u32) - 8388608.0f32
    }
}

/// Head `head` + `h`, or the group's last: heads past the group repeat it and are not written.
#[cube]
fn last_head(head: usize, #[comptime] h: usize, #[comptime] plan: ScorePlan) -> usize {
    if comptime!(plan.group % plan.heads == 0) {
        head + h
    } else {
        min(head + h, comptime!(plan.group - 1).runtime())
    }
}
