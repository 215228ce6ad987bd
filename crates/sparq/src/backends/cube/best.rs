//! The best of the scores that the units of a cube hold in registers.
//!
//! A unit's scores fall into a few parts. As many parts as scores are wanted have a score that is no less than the least of their largest ones: a bound that
//! few scores reach, found from a histogram of the parts' largest. Where more reach it than there is room for, a histogram of those finds the bin of the last one
//! wanted, in which they are ranked, or narrowed down byte by byte where they are many: the choice is exact for any input and ends after a fixed number of
//! passes.

use cubecl::prelude::*;

use super::common::*;

/// Bins of a histogram.
pub(crate) const BINS: usize = 1024;
/// Bins for a difference of 1 between logits.
const BINS_PER_UNIT: f32 = 32.0;

/// What a choice among scores is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BestPlan {
    /// Scores of a unit.
    pub count: usize,
    /// How many are wanted.
    pub needed: usize,
    /// How many may be taken.
    pub room: usize,
    /// Whether scores are sums of so many probabilities, and not logits (0).
    pub probabilities: usize,
    /// Units of a cube; a divisor of [`BINS`].
    pub units: u32,
    /// See [`common`](super::common).
    pub plane: u32,
}

impl BestPlan {
    /// Parts of a unit's scores: a power of two, so many that twice as many are in the cube as scores are wanted. 0 where they would have too few scores to be worth it:
    /// without room to spare their bound does not end the choice, and only makes what follows shorter.
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

    /// Bytes of shared memory.
    pub fn shared_bytes(&self) -> usize {
        let units = self.units as usize;
        4 * (BINS + 2 * units + 3)
    }
}

/// Which scores are taken.
#[derive(CubeType)]
pub(crate) struct Taken {
    /// How many of them the units before this one hold.
    pub first: u32,
    /// How many there are in all.
    pub total: u32,
    /// Bits for this unit's scores.
    marks: Array<u32>,
}

#[cube]
impl Taken {
    /// Whether number `i` of this unit's scores is taken.
    pub fn is_taken(&self, #[comptime] i: usize) -> bool {
        is_marked(&self.marks, i)
    }
}

/// Whether number `i` of a unit's scores has its bit in `marks`.
#[cube]
fn is_marked(marks: &Array<u32>, #[comptime] i: usize) -> bool {
    marks[comptime!(i / 32)] & comptime!(1u32 << (i % 32)) != 0u32
}

/// A histogram for [`take_best`], if there are scores: empty once the units have been in step. To be made while a kernel has nothing else to do.
#[cube]
pub(crate) fn empty_histogram(#[comptime] plan: BestPlan) -> Shared<[Atomic<u32>]> {
    let bins = comptime!(if plan.count > 0 {
        BINS
    } else {
        plan.units as usize
    });
    let histogram = Shared::<[Atomic<u32>]>::new_slice(bins);
    clear(&histogram, bins, comptime!(plan.units as usize));
    histogram
}

/// Takes the `needed` best of all units' scores, of equal ones any, and a few more if there is room for those.
///
/// Every unit holds `count` scores, with negative infinity for none; no logit is larger than `top`. Ends with the units in step.
#[cube]
pub(crate) fn take_best(
    scores: &Array<f32>,
    top: f32,
    histogram: Shared<[Atomic<u32>]>,
    #[comptime] plan: BestPlan,
) -> Taken {
    let count = comptime!(plan.count);
    let units = comptime!(plan.units);
    let plane = comptime!(plan.plane);
    let words = comptime!(count.div_ceil(32));
    let needed = comptime!(plan.needed as u32);
    let mut partial = Shared::<[u32]>::new_slice(units as usize);
    let mut found = Shared::<[u32]>::new_slice(2usize);

    let mut marks = Array::<u32>::new(words);
    let mut first = 0u32.runtime();
    let mut total = comptime!(plan.room as u32 + 1).runtime();
    if comptime!(plan.parts() > 0) {
        let least = least_of_parts(scores, top, &histogram, &mut partial, &mut found, plan);
        let mut own = 0u32;
        #[unroll]
        for w in 0..words {
            let mut word = 0u32;
            #[unroll]
            for i in comptime!(w * 32)..comptime!((w * 32 + 32).min(count)) {
                word |= select(scores[i] >= least, comptime!(1u32 << (i % 32)), 0u32);
            }
            marks[w] = word;
            own += word.count_ones();
        }
        let sums = sums_before(own, &mut partial, units, plane);
        first = sums.before;
        total = sums.total;
    } else {
        // Too few for that: all of them go on.
        #[unroll]
        for w in 0..words {
            let mut word = 0u32;
            #[unroll]
            for i in comptime!(w * 32)..comptime!((w * 32 + 32).min(count)) {
                let some = scores[i] > no_score();
                word |= select(some, comptime!(1u32 << (i % 32)), 0u32);
            }
            marks[w] = word;
        }
    }

    if total > comptime!(plan.room as u32) {
        let bins = bins_of(
            scores,
            &marks,
            top,
            &histogram,
            &mut partial,
            &mut found,
            plan,
        );
        let bin = found[0];
        let before = found[1];
        let crowd = histogram[bin as usize].load();
        let mut own = 0u32;
        if before + crowd <= comptime!(plan.room as u32) {
            #[unroll]
            for w in 0..words {
                let mut word = 0u32;
                #[unroll]
                for i in comptime!(w * 32)..comptime!((w * 32 + 32).min(count)) {
                    word |= select(bins[i] <= bin, comptime!(1u32 << (i % 32)), 0u32);
                }
                marks[w] = word;
                own += word.count_ones();
            }
        } else if crowd <= units {
            // Few share the bin of the last one wanted: each unit ranks one of them.
            let mut ranks = Shared::<[u32]>::new_slice(units as usize);
            let slots = rank_few(scores, &bins, bin, crowd, &mut partial, &mut ranks, plan);
            #[unroll]
            for w in 0..words {
                let mut word = 0u32;
                #[unroll]
                for i in comptime!(w * 32)..comptime!((w * 32 + 32).min(count)) {
                    let mut kept = bins[i] < bin;
                    if bins[i] == bin {
                        kept = ranks[slots[i] as usize] < needed - before;
                    }
                    word |= select(kept, comptime!(1u32 << (i % 32)), 0u32);
                }
                marks[w] = word;
                own += word.count_ones();
            }
        } else {
            let (key, left) =
                narrow_down(scores, &marks, &histogram, &mut partial, &mut found, plan);
            // Of those that equal the last one wanted, the first `left` are taken.
            let mut equal = 0u32;
            #[unroll]
            for i in 0..count {
                let here = is_marked(&marks, i);
                equal += select(here && order_key(scores[i]) == key, 1u32, 0u32);
            }
            let mut before = sums_before(equal, &mut partial, units, plane).before;
            #[unroll]
            for w in 0..words {
                let mut word = 0u32;
                #[unroll]
                for i in comptime!(w * 32)..comptime!((w * 32 + 32).min(count)) {
                    let here = is_marked(&marks, i);
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
        }
        // Whoever still reads an earlier sum has to be done.
        sync_cube();
        let sums = sums_before(own, &mut partial, units, plane);
        first = sums.before;
        total = sums.total;
    }
    Taken {
        first,
        total,
        marks,
    }
}

/// A score that no more than a few miss which are among the `needed` best: as many parts as are wanted have one that is no less. The lowest number where there are
/// fewer parts with a score.
#[cube]
fn least_of_parts(
    scores: &Array<f32>,
    top: f32,
    histogram: &Shared<[Atomic<u32>]>,
    partial: &mut Shared<[u32]>,
    found: &mut Shared<[u32]>,
    #[comptime] plan: BestPlan,
) -> f32 {
    let parts = comptime!(plan.parts());
    let units = comptime!(plan.units);
    let each = comptime!(plan.count.div_ceil(parts));
    if UNIT_POS == 0 {
        found[0] = comptime!(BINS as u32);
    }
    sync_cube();
    #[unroll]
    for part in 0..parts {
        let mut best = no_score();
        #[unroll]
        for i in comptime!((part * each).min(plan.count))
            ..comptime!((part * each + each).min(plan.count))
        {
            best = max(best, scores[i]);
        }
        if best > no_score() {
            histogram[score_bin(best, top, plan) as usize].fetch_add(1u32);
        }
    }
    sync_cube();
    find_bin(
        histogram,
        partial,
        found,
        comptime!(plan.needed as u32),
        BINS,
        units,
        plan.plane,
    );
    end_of_bin(found[0], top, plan)
}

/// The bins of the marked scores, and [`BINS`] for the others; leaves the bin of the last one wanted in `found[0]` and the count before it in `found[1]`.
#[cube]
fn bins_of(
    scores: &Array<f32>,
    marks: &Array<u32>,
    top: f32,
    histogram: &Shared<[Atomic<u32>]>,
    partial: &mut Shared<[u32]>,
    found: &mut Shared<[u32]>,
    #[comptime] plan: BestPlan,
) -> Array<u32> {
    let mut bins = Array::<u32>::new(comptime!(plan.count));
    if comptime!(plan.parts() > 0) {
        sync_cube();
        clear(histogram, BINS, plan.units as usize);
    }
    if UNIT_POS == 0 {
        // Where there are fewer than are wanted, all of them are taken.
        found[0] = comptime!(BINS as u32 - 1);
        found[1] = 0u32;
    }
    sync_cube();
    #[unroll]
    for i in 0..comptime!(plan.count) {
        bins[i] = comptime!(BINS as u32).runtime();
        if is_marked(marks, i) {
            bins[i] = score_bin(scores[i], top, plan);
            histogram[bins[i] as usize].fetch_add(1u32);
        }
    }
    sync_cube();
    find_bin(
        histogram,
        partial,
        found,
        comptime!(plan.needed as u32),
        BINS,
        plan.units,
        plan.plane,
    );
    bins
}

/// Ranks the scores of all units in `bin`, `total` of them and no more than there are units. Returns their slots in `ranks`, where it leaves how many of them
/// come before each.
#[cube]
#[allow(clippy::too_many_arguments)]
fn rank_few(
    scores: &Array<f32>,
    bins: &Array<u32>,
    bin: u32,
    total: u32,
    own: &mut Shared<[u32]>,
    ranks: &mut Shared<[u32]>,
    #[comptime] plan: BestPlan,
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
            own[slots[i] as usize] = order_key(scores[i]);
        }
    }
    sync_cube();
    if unit < total {
        let mine = own[unit as usize];
        let mut before = 0u32;
        for other in 0..total {
            let theirs = own[other as usize];
            // Of equal ones, those of a lower number come first.
            let first = theirs > mine || (theirs == mine && other < unit);
            before += select(first, 1u32, 0u32);
        }
        ranks[unit as usize] = before;
    }
    sync_cube();
    slots
}

/// The key of the last of the marked scores that is wanted, and how many of those that equal it are.
#[cube]
fn narrow_down(
    scores: &Array<f32>,
    marks: &Array<u32>,
    histogram: &Shared<[Atomic<u32>]>,
    partial: &mut Shared<[u32]>,
    found: &mut Shared<[u32]>,
    #[comptime] plan: BestPlan,
) -> (u32, u32) {
    let mut key = 0u32.runtime();
    let mut left = comptime!(plan.needed as u32).runtime();
    for pass in 0..4u32 {
        let shift = 24u32 - 8u32 * pass;
        sync_cube();
        clear(histogram, BINS, plan.units as usize);
        sync_cube();
        #[unroll]
        for i in 0..comptime!(plan.count) {
            let here = is_marked(marks, i);
            let bits = order_key(scores[i]);
            if here && known_bits(bits, shift) == key {
                histogram[digit_of(bits, shift) as usize].fetch_add(1u32);
            }
        }
        sync_cube();
        find_bin(
            histogram, partial, found, left, BINS, plan.units, plan.plane,
        );
        key = (key << 8u32) | (255u32 - found[0]);
        left -= found[1];
    }
    (key, left)
}

/// The bits of a key above the byte at `shift`.
#[cube]
pub(crate) fn known_bits(key: u32, shift: u32) -> u32 {
    // In two steps, since the first pass shifts out everything.
    (key >> (shift + 7u32)) >> 1u32
}

/// The bin of the byte at `shift` of a key, 0 for the largest.
#[cube]
pub(crate) fn digit_of(key: u32, shift: u32) -> u32 {
    255u32 - ((key >> shift) & 255u32)
}

/// The bin of a score, 0 for the largest; it never falls as the score does.
#[cube]
fn score_bin(score: f32, top: f32, #[comptime] plan: BestPlan) -> u32 {
    let last = comptime!(BINS as u32 - 1);
    if comptime!(plan.probabilities > 0) {
        // 16 bins for every halving: the upper bits of a positive number are its logarithm, nearly.
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

/// A number that no score in `bin` or a bin before it is less than.
#[cube]
fn end_of_bin(bin: u32, top: f32, #[comptime] plan: BestPlan) -> f32 {
    let open = bin >= comptime!(BINS as u32 - 1);
    if comptime!(plan.probabilities > 0) {
        let most = comptime!((plan.probabilities as f32).to_bits());
        let below = (bin + 1u32) << 19u32;
        let some = !open && below < most;
        f32::reinterpret(select(some, most - min(below, most.runtime()), 0u32))
    } else {
        // A little further, by more than these operations round.
        let width = f32::cast_from(bin + 1u32) * comptime!(1.00001 / BINS_PER_UNIT);
        let end = max(top - width - top.abs() * 1e-6f32, -LARGEST);
        select(open, -LARGEST, end)
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
    let mut count = sums_before(own, partial, units, plane).before;
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

/// Sums of the units' values.
#[derive(CubeType)]
pub(crate) struct Sums {
    /// Over the units before this one.
    pub before: u32,
    /// Over all.
    pub total: u32,
}

/// The sums of the values of the units before this one, and of all; `partial` has room for a number from every unit.
#[cube]
pub(crate) fn sums_before(
    own: u32,
    partial: &mut Shared<[u32]>,
    #[comptime] units: u32,
    #[comptime] plane: u32,
) -> Sums {
    if comptime!(plane > 1) {
        let within = sum_up_to_here(own, plane);
        let lanes = plane_dim(plane);
        if UNIT_POS_PLANE == lanes - 1 {
            partial[PLANE_POS as usize] = within;
        }
        sync_cube();
        let mut before = within - own;
        let mut total = 0u32;
        for other in 0..comptime!(units).runtime() / lanes {
            let sum = partial[other as usize];
            before += select(other < PLANE_POS, sum, 0u32);
            total += sum;
        }
        Sums { before, total }
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
        Sums {
            before: partial[unit] - own,
            total: partial[comptime!(units as usize - 1)],
        }
    }
}
