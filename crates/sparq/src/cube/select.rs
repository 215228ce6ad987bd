//! Step 4: the exact choice of the k positions with the largest group score, by one cube for a key/value head.
//!
//! A histogram of the scores finds the bin that holds the k-th; what lies above it is taken, and within it the scores are ranked. Rows in which that bin is
//! crowded (many equal scores, say) are refined bit by bit. Every path is exact and ends after a fixed number of passes.
//!
//! Where rows are long and few, the same is divided among many cubes: [`spread`](super::spread).

use cubecl::prelude::*;

use super::common::*;

/// Bins of a histogram.
pub(crate) const BINS: usize = 2048;

/// What a selection is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SelectPlan {
    /// g.
    pub group: usize,
    /// Whether heads are summed as probabilities and not as logits.
    pub probabilities: bool,
    /// k.
    pub top_k: usize,
    /// l.
    pub window: usize,
    /// Scores in the bin of the k-th that are ranked without another pass.
    pub candidates: usize,
    /// Units of a cube; a divisor of [`BINS`].
    pub units: u32,
    /// See [`common`](super::common).
    pub plane: u32,
}

impl SelectPlan {
    /// Bytes of shared memory of a choice, in one cube or after many.
    pub fn shared_bytes(&self) -> usize {
        let numbers =
            2 * self.group + self.top_k + BINS + self.units as usize + 4 + 4 * self.candidates;
        4 * numbers
    }
}

/// The softmax over all positions from the statistics of the tiles: fills `top` with the largest logit and `lse` with the logarithm of the sum of
/// exponentials of each head. A tile has `stride` numbers for each head, of which the first two are its largest logit and its sum.
#[cube]
pub(crate) fn merge_stats(
    stats: &[f32],
    row: usize,
    tiles: usize,
    used: usize,
    top: &mut Shared<[f32]>,
    lse: &mut Shared<[f32]>,
    #[comptime] stride: usize,
    #[comptime] plan: SelectPlan,
) {
    let group = comptime!(plan.group);
    let plane = comptime!(plan.plane);
    let lane = plane_lane(plane) as usize;
    let lanes = plane_dim(plane) as usize;
    let planes = comptime!(plan.units as usize).runtime() / lanes;
    let mut h = plane_index(plane) as usize;
    while h < group {
        let mut largest = (-LARGEST).runtime();
        let mut tile = lane;
        while tile < used {
            largest = max(largest, stats[((row * tiles + tile) * group + h) * stride]);
            tile += lanes;
        }
        let largest = if comptime!(plane > 1) {
            plane_max(largest)
        } else {
            largest
        };
        let mut sum = 0.0f32;
        let mut tile = lane;
        while tile < used {
            let at = ((row * tiles + tile) * group + h) * stride;
            sum += stats[at + 1] * (stats[at] - largest).exp();
            tile += lanes;
        }
        let sum = sum_in_plane(sum, plane);
        top[h] = largest;
        lse[h] = largest + max(sum, f32::MIN_POSITIVE).ln();
        h += planes;
    }
    sync_cube();
}

/// The group's scores at four consecutive positions.
#[cube]
pub(crate) fn group_scores(
    logits: &[Vector<f32, Const<4>>],
    row: usize,
    capacity: usize,
    four: usize,
    lse: &Shared<[f32]>,
    #[comptime] plan: SelectPlan,
) -> Vector<f32, Const<4>> {
    let group = comptime!(plan.group);
    let mut score = Vector::<f32, Const<4>>::new(0.0f32);
    for h in 0..group {
        let logit = logits[(row * group + h) * (capacity / 4) + four];
        if comptime!(plan.probabilities) {
            score += (logit - Vector::new(lse[h])).exp();
        } else {
            score += logit;
        }
    }
    score
}

/// One position's score out of a vector of them: finite, as all comparisons want it.
#[cube]
pub(crate) fn score_of(
    scores: Vector<f32, Const<4>>,
    #[comptime] e: usize,
    #[comptime] plan: SelectPlan,
) -> f32 {
    let score = scores.extract(e);
    if comptime!(plan.group > 1 && !plan.probabilities) {
        finite(score)
    } else {
        score
    }
}

/// The upper bound of the group's scores.
#[cube]
pub(crate) fn score_bound(top: &Shared<[f32]>, #[comptime] plan: SelectPlan) -> f32 {
    let mut bound = 0.0f32;
    for h in 0..comptime!(plan.group) {
        bound += top[h];
    }
    finite(bound)
}

/// The bin of a score, 0 for the largest; it never falls as the score does. `top` bounds the scores.
#[cube]
pub(crate) fn bin_of(score: f32, top: f32, #[comptime] plan: SelectPlan) -> u32 {
    if comptime!(plan.probabilities) {
        // 32 bins for every halving: the upper bits of a positive number are its logarithm, nearly.
        let most = comptime!((plan.group as f32).to_bits());
        let bits = u32::reinterpret(score);
        let distance = select(bits >= most, 0u32, (most - bits) >> 18u32);
        min(distance, comptime!(BINS as u32 - 1).runtime())
    } else {
        let distance = clamp(
            (top - score) * 64.0f32,
            0.0f32,
            comptime!(BINS as f32 - 1.0),
        );
        u32::cast_from(distance)
    }
}

/// Finds the bin in which the count from bin 0 on reaches `needed`: leaves it in `found[0]` and the count before it in `found[1]`.
/// They stay as they were where the count never reaches it. `partial` has room for a number from every unit.
#[cube]
pub(crate) fn find_bin(
    histogram: &Shared<[Atomic<u32>]>,
    partial: &mut Shared<[u32]>,
    found: &mut Shared<[u32]>,
    needed: u32,
    #[comptime] bins: usize,
    #[comptime] units: u32,
    #[comptime] plane: u32,
) {
    let unit = UNIT_POS as usize;
    let each = comptime!(bins / units as usize);
    let mut own = 0u32;
    #[unroll]
    for i in 0..each {
        own += histogram[unit * each + i].load();
    }
    let mut count = sum_before(own, partial, units, plane);
    if count < needed && needed <= count + own {
        for i in 0..each {
            let bin = unit * each + i;
            let here = histogram[bin].load();
            if count < needed && needed <= count + here {
                found[0] = bin as u32;
                found[1] = count;
            }
            count += here;
        }
    }
    sync_cube();
}

/// The sum of the values of the units before this one; `partial` has room for a number from every unit.
#[cube]
pub(crate) fn sum_before(
    own: u32,
    partial: &mut Shared<[u32]>,
    #[comptime] units: u32,
    #[comptime] plane: u32,
) -> u32 {
    if comptime!(plane > 1) {
        let within = plane_inclusive_sum(own);
        if UNIT_POS_PLANE == PLANE_DIM - 1 {
            partial[PLANE_POS as usize] = within;
        }
        sync_cube();
        let mut before = within - own;
        for other in 0..PLANE_POS {
            before += partial[other as usize];
        }
        before
    } else {
        let unit = UNIT_POS as usize;
        partial[unit] = own;
        sync_cube();
        // Inclusive sums over the units, by doubling distances.
        #[unroll]
        for i in 0..comptime!(units.ilog2()) {
            let distance = comptime!(1usize << i);
            let mut sum = partial[unit];
            if unit >= distance {
                sum += partial[unit - distance];
            }
            sync_cube();
            partial[unit] = sum;
            sync_cube();
        }
        partial[unit] - own
    }
}

/// Chooses min(k, S) of the positions `start .. end`, S of them, into `kept`; S must be more than k.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(crate) fn select_positions(
    logits: &[Vector<f32, Const<4>>],
    row: usize,
    capacity: usize,
    start: usize,
    end: usize,
    top: &Shared<[f32]>,
    lse: &Shared<[f32]>,
    kept: &mut Shared<[u32]>,
    #[comptime] plan: SelectPlan,
) {
    let units = comptime!(plan.units as usize);
    let room = comptime!(plan.candidates);
    let window = comptime!(plan.window);
    let needed = comptime!((plan.top_k - plan.window) as u32);
    let unit = UNIT_POS as usize;
    // The local window is taken without a look at its scores.
    let free = end - window;
    let mut i = unit;
    while i < window {
        kept[i] = (free + i) as u32;
        i += units;
    }

    let histogram = Shared::<[Atomic<u32>]>::new_slice(BINS);
    let mut partial = Shared::<[u32]>::new_slice(units);
    let mut found = Shared::<[u32]>::new_slice(2usize);
    let counters = Shared::<[Atomic<u32>]>::new_slice(2usize);
    let mut keys = Shared::<[u32]>::new_slice(room);
    let mut places = Shared::<[u32]>::new_slice(room);

    let bound = score_bound(top, plan);
    clear(&histogram, BINS, units);
    if unit == 0 {
        found[0] = 0u32;
        found[1] = 0u32;
        counters[0].store(window as u32);
        counters[1].store(0u32);
    }
    sync_cube();

    let first = start / 4;
    let fours = free.div_ceil(4);
    let mut four = first + unit;
    while four < fours {
        let scores = group_scores(logits, row, capacity, four, lse, plan);
        #[unroll]
        for e in 0..4usize {
            let position = four * 4 + e;
            if position >= start && position < free {
                let bin = bin_of(score_of(scores, e, plan), bound, plan);
                histogram[bin as usize].fetch_add(1u32);
            }
        }
        four += units;
    }
    sync_cube();
    find_bin(
        &histogram,
        &mut partial,
        &mut found,
        needed,
        BINS,
        plan.units,
        plan.plane,
    );
    let border = found[0];
    let above = found[1];
    let wanted = needed - above;

    let mut four = first + unit;
    while four < fours {
        let scores = group_scores(logits, row, capacity, four, lse, plan);
        #[unroll]
        for e in 0..4usize {
            let position = four * 4 + e;
            if position >= start && position < free {
                let score = score_of(scores, e, plan);
                let bin = bin_of(score, bound, plan);
                if bin < border {
                    kept[counters[0].fetch_add(1u32) as usize] = position as u32;
                } else if bin == border {
                    let slot = counters[1].fetch_add(1u32) as usize;
                    if slot < room {
                        keys[slot] = order_key(score);
                        places[slot] = position as u32;
                    }
                }
            }
        }
        four += units;
    }
    sync_cube();
    let crowd = counters[1].load() as usize;
    if crowd <= room {
        let mut i = unit;
        while i < crowd {
            let mine = keys[i];
            let place = places[i];
            let mut before = 0u32;
            for other in 0..crowd {
                let theirs = keys[other];
                let first = theirs > mine || (theirs == mine && places[other] < place);
                before += select(first, 1u32, 0u32);
            }
            if before < wanted {
                kept[(needed - wanted + window as u32 + before) as usize] = place;
            }
            i += units;
        }
        sync_cube();
    } else {
        // Narrow the keys of the bin down by 11, 11 and 10 bits: then the last one wanted is known to the bit.
        let mut prefix = 0u32;
        let mut left = wanted;
        for pass in 0..3u32 {
            let shift = select(pass == 0, 21u32, select(pass == 1, 10u32, 0u32));
            let width = select(pass == 2, 10u32, 11u32);
            let digits = (1u32 << width) - 1;
            sync_cube();
            clear(&histogram, BINS, units);
            if unit == 0 {
                found[0] = 0u32;
                found[1] = 0u32;
            }
            sync_cube();
            let mut four = first + unit;
            while four < fours {
                let scores = group_scores(logits, row, capacity, four, lse, plan);
                #[unroll]
                for e in 0..4usize {
                    let position = four * 4 + e;
                    if position >= start && position < free {
                        let score = score_of(scores, e, plan);
                        let key = order_key(score);
                        // In two steps, since the first pass shifts out everything.
                        let known = (key >> (shift + width - 1)) >> 1u32;
                        if bin_of(score, bound, plan) == border && known == prefix {
                            // Bin 0 holds the largest.
                            let digit = digits - ((key >> shift) & digits);
                            histogram[digit as usize].fetch_add(1u32);
                        }
                    }
                }
                four += units;
            }
            sync_cube();
            find_bin(
                &histogram,
                &mut partial,
                &mut found,
                left,
                BINS,
                plan.units,
                plan.plane,
            );
            prefix = (prefix << width) | (digits - found[0]);
            left -= found[1];
        }
        sync_cube();
        if unit == 0 {
            counters[1].store(0u32);
        }
        sync_cube();
        let mut four = first + unit;
        while four < fours {
            let scores = group_scores(logits, row, capacity, four, lse, plan);
            #[unroll]
            for e in 0..4usize {
                let position = four * 4 + e;
                if position >= start && position < free {
                    let score = score_of(scores, e, plan);
                    let key = order_key(score);
                    if bin_of(score, bound, plan) == border && key >= prefix {
                        if key > prefix {
                            kept[counters[0].fetch_add(1u32) as usize] = position as u32;
                        } else {
                            // Of equal scores any may be taken.
                            let slot = counters[1].fetch_add(1u32);
                            if slot < left {
                                kept[(needed + window as u32 - left + slot) as usize] =
                                    position as u32;
                            }
                        }
                    }
                }
            }
            four += units;
        }
        sync_cube();
    }
}

/// Sets the `bins` bins of a histogram to 0.
#[cube]
pub(crate) fn clear(
    histogram: &Shared<[Atomic<u32>]>,
    #[comptime] bins: usize,
    #[comptime] units: usize,
) {
    #[unroll]
    for i in 0..comptime!(bins / units) {
        histogram[i * units + UNIT_POS as usize].store(0u32);
    }
}
