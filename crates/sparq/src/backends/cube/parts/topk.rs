//! Top-k of the scores that the units of a cube hold in registers.
//!
//! 1. Each unit splits its scores into parts. A histogram of the maxima of all parts gives a lower
//!    bound on the k-th largest score, which few scores reach.
//! 2. If more scores reach the bound than there is room for, a histogram of these scores finds the
//!    bin of the k-th.
//! 3. The scores in that bin are ranked one by one. If they are many, a radix select narrows the
//!    k-th score down byte by byte.
//!
//! The result is exact for any input, and takes a fixed number of passes.

use cubecl::prelude::*;

use super::histogram::{BINS, Histogram, clear, digit_of, known_bits};
use super::reduce::prefix_sum;
use super::score::{LARGEST_SCORE, no_score, order_key};

/// Bins for a difference of 1 between logits.
const BINS_PER_UNIT: f32 = 32.0;

/// The sizes that a top-k is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TopKBlueprint {
    /// Scores of a unit.
    pub count: usize,
    /// Scores to select: k.
    pub needed: usize,
    /// The most scores that may be selected; at least `needed`.
    pub room: usize,
    /// The number of probabilities that a score sums; 0 if scores are logits.
    pub probabilities: usize,
    /// Units of a cube; a divisor of [`BINS`].
    pub units: u32,
    /// See [`reduce`](super::reduce).
    pub plane: u32,
}

impl TopKBlueprint {
    /// Returns the parts of a unit's scores: a power of two that gives the cube at least 2k parts.
    ///
    /// Returns 0 if parts would have too few scores to be worth a pass. Without spare room the
    /// bound does not end the selection, and only shortens the passes behind it.
    fn parts(&self) -> usize {
        let parts = (2 * self.needed).div_ceil(self.units as usize);
        let parts = parts.next_power_of_two();
        let least = if self.room > self.needed { 4 } else { 16 };
        if least * parts <= self.count {
            parts
        } else {
            0
        }
    }

    /// Words for one bit per score of a unit.
    fn words(&self) -> usize {
        self.count.div_ceil(32)
    }

    /// Returns the scores of a unit whose bits are in word `w`.
    fn of_word(&self, w: usize) -> std::ops::Range<usize> {
        w * 32..(w * 32 + 32).min(self.count)
    }

    /// Bytes of shared memory.
    pub fn shared_bytes(&self) -> usize {
        let units = self.units as usize;
        4 * (BINS + 2 * units + 3)
    }
}

/// The selected scores.
#[derive(CubeType)]
pub(crate) struct Selection {
    /// The number of selected scores that the units before this one hold.
    pub first: u32,
    /// The number of selected scores of the cube.
    pub total: u32,
    /// One bit for each score of this unit.
    marks: Array<u32>,
}

#[cube]
impl Selection {
    /// Returns whether score `i` of this unit is selected.
    pub fn contains(&self, #[comptime] i: usize) -> bool {
        is_marked(&self.marks, i)
    }
}

/// Returns whether bit `i` of `marks` is set.
#[cube]
fn is_marked(marks: &Array<u32>, #[comptime] i: usize) -> bool {
    marks[comptime!(i / 32)] & comptime!(1u32 << (i % 32)) != 0u32
}

/// Allocates the counts of a histogram for [`select_top_k`] and clears them.
///
/// A kernel calls it early, while it waits for memory. The counts are 0 after the next barrier.
#[cube]
pub(crate) fn empty_counts(#[comptime] plan: TopKBlueprint) -> Shared<[Atomic<u32>]> {
    let bins = comptime!(if plan.count > 0 {
        BINS
    } else {
        plan.units as usize
    });
    let counts = Shared::<[Atomic<u32>]>::new_slice(bins);
    clear(&counts, bins, comptime!(plan.units as usize));
    counts
}

/// Selects the `needed` largest scores of all units, and up to `room` if more are at hand. Ties are
/// broken arbitrarily.
///
/// Each unit holds `count` scores; negative infinity marks an empty place. No logit is larger than
/// `top`. `counts` comes from [`empty_counts`]. Ends with a barrier.
#[cube]
pub(crate) fn select_top_k(
    scores: &Array<f32>,
    top: f32,
    counts: Shared<[Atomic<u32>]>,
    #[comptime] plan: TopKBlueprint,
) -> Selection {
    let units = comptime!(plan.units);
    let plane = comptime!(plan.plane);
    let mut histogram = Histogram::new(counts, units);

    let mut marks = Array::<u32>::new(comptime!(plan.words()));
    let mut first = 0u32.runtime();
    let mut total = comptime!(plan.room as u32 + 1).runtime();
    if comptime!(plan.parts() > 0) {
        let bound = bound_of_parts(scores, top, &mut histogram, plan);
        let own = mark_from(scores, bound, &mut marks, plan);
        let sums = prefix_sum(own, &mut histogram.partial, units, plane);
        first = sums.before;
        total = sums.total;
    } else {
        mark_all(scores, &mut marks, plan);
    }

    if total > comptime!(plan.room as u32) {
        let bins = bin_marked(scores, &marks, top, &mut histogram, plan);
        let bin = histogram.found[0];
        let before = histogram.found[1];
        let in_bin = histogram.counts[bin as usize].load();
        let mut own = 0u32;
        if before + in_bin <= comptime!(plan.room as u32) {
            own += mark_bins(&bins, bin, &mut marks, plan);
        } else if in_bin <= units {
            let mut ranks = Shared::<[u32]>::new_slice(units as usize);
            let slots = rank_in_bin(
                scores,
                &bins,
                bin,
                in_bin,
                &mut histogram.partial,
                &mut ranks,
                plan,
            );
            own += mark_ranked(&bins, bin, before, &slots, &ranks, &mut marks, plan);
        } else {
            own += mark_by_radix(scores, &mut histogram, &mut marks, plan);
        }
        // Another unit may still read an earlier sum.
        sync_cube();
        let sums = prefix_sum(own, &mut histogram.partial, units, plane);
        first = sums.before;
        total = sums.total;
    }
    Selection {
        first,
        total,
        marks,
    }
}

/// Returns a lower bound on the k-th largest score: at least k parts contain a score at or above
/// it. Returns the lowest number if fewer than k parts contain a score.
#[cube]
fn bound_of_parts(
    scores: &Array<f32>,
    top: f32,
    histogram: &mut Histogram,
    #[comptime] plan: TopKBlueprint,
) -> f32 {
    let parts = comptime!(plan.parts());
    let each = comptime!(plan.count.div_ceil(parts));
    if UNIT_POS == 0 {
        histogram.found[0] = comptime!(BINS as u32);
    }
    sync_cube();
    #[unroll]
    for part in 0..parts {
        let mut largest = no_score();
        #[unroll]
        for i in comptime!((part * each).min(plan.count))
            ..comptime!((part * each + each).min(plan.count))
        {
            largest = max(largest, scores[i]);
        }
        if largest > no_score() {
            histogram.add(score_bin(largest, top, plan));
        }
    }
    sync_cube();
    histogram.find(comptime!(plan.needed as u32), plan.units, plan.plane);
    end_of_bin(histogram.found[0], top, plan)
}

/// Marks the scores that are at least `bound`, and returns their number.
#[cube]
fn mark_from(
    scores: &Array<f32>,
    bound: f32,
    marks: &mut Array<u32>,
    #[comptime] plan: TopKBlueprint,
) -> u32 {
    let mut own = 0u32;
    #[unroll]
    for w in 0..comptime!(plan.words()) {
        let mut word = 0u32;
        #[unroll]
        for i in comptime!(plan.of_word(w).start)..comptime!(plan.of_word(w).end) {
            word |= select(scores[i] >= bound, comptime!(1u32 << (i % 32)), 0u32);
        }
        marks[w] = word;
        own += word.count_ones();
    }
    own
}

/// Marks every place that holds a score.
#[cube]
fn mark_all(scores: &Array<f32>, marks: &mut Array<u32>, #[comptime] plan: TopKBlueprint) {
    #[unroll]
    for w in 0..comptime!(plan.words()) {
        let mut word = 0u32;
        #[unroll]
        for i in comptime!(plan.of_word(w).start)..comptime!(plan.of_word(w).end) {
            let some = scores[i] > no_score();
            word |= select(some, comptime!(1u32 << (i % 32)), 0u32);
        }
        marks[w] = word;
    }
}

/// Counts the marked scores in the histogram and finds the bin of the k-th.
///
/// Returns the bin of each marked score, and [`BINS`] for the others.
#[cube]
fn bin_marked(
    scores: &Array<f32>,
    marks: &Array<u32>,
    top: f32,
    histogram: &mut Histogram,
    #[comptime] plan: TopKBlueprint,
) -> Array<u32> {
    let mut bins = Array::<u32>::new(comptime!(plan.count));
    if comptime!(plan.parts() > 0) {
        sync_cube();
        clear(&histogram.counts, BINS, plan.units as usize);
    }
    if UNIT_POS == 0 {
        // With fewer than k scores, all of them are selected.
        histogram.found[0] = comptime!(BINS as u32 - 1);
        histogram.found[1] = 0u32;
    }
    sync_cube();
    #[unroll]
    for i in 0..comptime!(plan.count) {
        bins[i] = comptime!(BINS as u32).runtime();
        if is_marked(marks, i) {
            bins[i] = score_bin(scores[i], top, plan);
            histogram.add(bins[i]);
        }
    }
    sync_cube();
    histogram.find(comptime!(plan.needed as u32), plan.units, plan.plane);
    bins
}

/// Marks the scores in `bin` and in the bins before it, and returns their number.
#[cube]
fn mark_bins(
    bins: &Array<u32>,
    bin: u32,
    marks: &mut Array<u32>,
    #[comptime] plan: TopKBlueprint,
) -> u32 {
    let mut own = 0u32;
    #[unroll]
    for w in 0..comptime!(plan.words()) {
        let mut word = 0u32;
        #[unroll]
        for i in comptime!(plan.of_word(w).start)..comptime!(plan.of_word(w).end) {
            word |= select(bins[i] <= bin, comptime!(1u32 << (i % 32)), 0u32);
        }
        marks[w] = word;
        own += word.count_ones();
    }
    own
}

/// Ranks the `total` scores in `bin`, one for each unit; `total` is at most the number of units.
///
/// Returns the slot of each score of this unit. `ranks` holds, for each slot, the number of scores
/// in the bin before it.
#[cube]
fn rank_in_bin(
    scores: &Array<f32>,
    bins: &Array<u32>,
    bin: u32,
    total: u32,
    keys: &mut Shared<[u32]>,
    ranks: &mut Shared<[u32]>,
    #[comptime] plan: TopKBlueprint,
) -> Array<u32> {
    let unit = UNIT_POS;
    let next = Shared::<[Atomic<u32>]>::new_slice(1usize);
    if unit == 0 {
        next[0].store(0u32);
    }
    sync_cube();
    let mut slots = Array::<u32>::new(comptime!(plan.count));
    #[unroll]
    for i in 0..comptime!(plan.count) {
        slots[i] = 0u32;
        if bins[i] == bin {
            slots[i] = next[0].fetch_add(1u32);
            keys[slots[i] as usize] = order_key(scores[i]);
        }
    }
    sync_cube();
    if unit < total {
        let mine = keys[unit as usize];
        let mut before = 0u32;
        for other in 0..total {
            let theirs = keys[other as usize];
            // Of equal scores, the one in the lower slot comes first.
            let first = theirs > mine || (theirs == mine && other < unit);
            before += select(first, 1u32, 0u32);
        }
        ranks[unit as usize] = before;
    }
    sync_cube();
    slots
}

/// Marks the scores in the bins before `bin`, and those in `bin` that [`rank_in_bin`] ranks among
/// the k largest. Returns their number.
#[cube]
fn mark_ranked(
    bins: &Array<u32>,
    bin: u32,
    before: u32,
    slots: &Array<u32>,
    ranks: &Shared<[u32]>,
    marks: &mut Array<u32>,
    #[comptime] plan: TopKBlueprint,
) -> u32 {
    let mut own = 0u32;
    #[unroll]
    for w in 0..comptime!(plan.words()) {
        let mut word = 0u32;
        #[unroll]
        for i in comptime!(plan.of_word(w).start)..comptime!(plan.of_word(w).end) {
            let mut kept = bins[i] < bin;
            if bins[i] == bin {
                kept = ranks[slots[i] as usize] < comptime!(plan.needed as u32) - before;
            }
            word |= select(kept, comptime!(1u32 << (i % 32)), 0u32);
        }
        marks[w] = word;
        own += word.count_ones();
    }
    own
}

/// Keeps the k largest of the marked scores, and returns their number.
#[cube]
fn mark_by_radix(
    scores: &Array<f32>,
    histogram: &mut Histogram,
    marks: &mut Array<u32>,
    #[comptime] plan: TopKBlueprint,
) -> u32 {
    let mut own = 0u32;
    let (key, left) = radix_select(scores, &*marks, histogram, plan);
    // Of the scores equal to the k-th, the first `left` are selected.
    let mut equal = 0u32;
    #[unroll]
    for i in 0..comptime!(plan.count) {
        let here = is_marked(&*marks, i);
        equal += select(here && order_key(scores[i]) == key, 1u32, 0u32);
    }
    let mut before = prefix_sum(equal, &mut histogram.partial, plan.units, plan.plane).before;
    #[unroll]
    for w in 0..comptime!(plan.words()) {
        let mut word = 0u32;
        #[unroll]
        for i in comptime!(plan.of_word(w).start)..comptime!(plan.of_word(w).end) {
            let here = is_marked(&*marks, i);
            let bits = order_key(scores[i]);
            let mut kept = here && bits > key;
            if here && bits == key {
                kept = before < left;
                before += 1u32;
            }
            word |= select(kept, comptime!(1u32 << (i % 32)), 0u32);
        }
        marks[w] = word;
        own += word.count_ones();
    }
    own
}

/// Returns the key of the k-th largest marked score, and how many scores equal to it are needed.
#[cube]
fn radix_select(
    scores: &Array<f32>,
    marks: &Array<u32>,
    histogram: &mut Histogram,
    #[comptime] plan: TopKBlueprint,
) -> (u32, u32) {
    let mut key = 0u32.runtime();
    let mut left = comptime!(plan.needed as u32).runtime();
    for pass in 0..4u32 {
        let shift = 24u32 - 8u32 * pass;
        sync_cube();
        clear(&histogram.counts, BINS, plan.units as usize);
        sync_cube();
        #[unroll]
        for i in 0..comptime!(plan.count) {
            let here = is_marked(marks, i);
            let bits = order_key(scores[i]);
            if here && known_bits(bits, shift) == key {
                histogram.add(digit_of(bits, shift));
            }
        }
        sync_cube();
        histogram.find(left, plan.units, plan.plane);
        key = (key << 8u32) | (255u32 - histogram.found[0]);
        left -= histogram.found[1];
    }
    (key, left)
}

/// Returns the bin of a score. Bin 0 holds the largest, and the bin never falls as the score does.
#[cube]
fn score_bin(score: f32, top: f32, #[comptime] plan: TopKBlueprint) -> u32 {
    let last = comptime!(BINS as u32 - 1);
    if comptime!(plan.probabilities > 0) {
        // 16 bins for each halving: the upper bits of a positive number approximate its logarithm.
        let most = comptime!((plan.probabilities as f32).to_bits());
        let bits = u32::reinterpret(score);
        let distance = select(bits >= most, 0u32, (most - bits) >> 19u32);
        min(distance, last.runtime())
    } else {
        u32::cast_from(clamp(
            (top - score) * BINS_PER_UNIT,
            0.0f32,
            comptime!(last as f32),
        ))
    }
}

/// Returns a lower bound on the scores in `bin` and in the bins before it.
#[cube]
fn end_of_bin(bin: u32, top: f32, #[comptime] plan: TopKBlueprint) -> f32 {
    let open = bin >= comptime!(BINS as u32 - 1);
    if comptime!(plan.probabilities > 0) {
        let most = comptime!((plan.probabilities as f32).to_bits());
        let below = (bin + 1u32) << 19u32;
        let some = !open && below < most;
        f32::reinterpret(select(some, most - min(below, most.runtime()), 0u32))
    } else {
        // The bound is lowered by more than the rounding error of these operations.
        let width = f32::cast_from(bin + 1u32) * comptime!(1.00001 / BINS_PER_UNIT);
        let end = max(top - width - top.abs() * 1e-6f32, -LARGEST_SCORE);
        select(open, -LARGEST_SCORE, end)
    }
}
