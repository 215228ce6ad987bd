//! The best of the scores that the units of a cube hold in registers.
//!
//! A histogram relative to the largest score finds the bin of the last one wanted. Where that bin is crowded (many equal scores, say, or scores far
//! apart), its keys are narrowed down byte by byte, so that the choice is exact for any input and ends after a fixed number of passes.

use cubecl::prelude::*;

use super::common::*;
use super::select::{clear, find_bin, sum_before};

/// Bins of the histogram.
pub(crate) const BINS: usize = 1024;
/// Bins for a difference of 1 between scores.
const BINS_PER_UNIT: f32 = 32.0;

/// Which scores are taken.
#[derive(CubeType)]
pub(crate) struct Taken {
    /// How many of them the units before this one hold.
    pub first: u32,
    /// How many there are in all.
    pub total: u32,
}

/// Whether number `i` of this unit's scores is among those that [`take_best`] marked.
#[cube]
pub(crate) fn is_taken(marks: &Array<u32>, #[comptime] i: usize) -> bool {
    marks[comptime!(i / 32)] & comptime!(1u32 << (i % 32)) != 0u32
}

/// Takes the `needed` best of all units' scores, of equal ones any; as many more as share a bin with the last of them, if `room` suffices for those.
///
/// Every unit holds `count` scores, with negative infinity for none; `top` is the largest. Returns how the taken ones are distributed, and marks of this
/// unit's. Begins and ends with the units in step.
#[cube]
pub(crate) fn take_best(
    scores: &Array<f32>,
    top: f32,
    needed: u32,
    room: u32,
    #[comptime] count: usize,
    #[comptime] units: u32,
    #[comptime] plane: u32,
) -> (Taken, Array<u32>) {
    let histogram = Shared::<[Atomic<u32>]>::new_slice(BINS);
    let mut partial = Shared::<[u32]>::new_slice(units as usize);
    // The bin of the last, the count before it, and how many of the ties are taken.
    let mut found = Shared::<[u32]>::new_slice(2usize);
    let tied = Shared::<[Atomic<u32>]>::new_slice(1usize);
    let unit = UNIT_POS as usize;
    clear(&histogram, BINS, units as usize);
    if unit == 0 {
        // Where there are fewer than are needed, all of them are taken.
        found[0] = comptime!(BINS as u32 - 1);
        found[1] = 0u32;
        tied[0].store(0u32);
    }
    sync_cube();
    let mut bins = Array::<u32>::new(count);
    #[unroll]
    for i in 0..count {
        let some = scores[i] > f32::NEG_INFINITY;
        bins[i] = select(some, score_bin(scores[i], top), BINS as u32);
        if some {
            histogram[bins[i] as usize].fetch_add(1u32);
        }
    }
    sync_cube();
    find_bin(
        &histogram,
        &mut partial,
        &mut found,
        needed,
        BINS,
        units,
        plane,
    );
    let bin = found[0];
    let before = found[1];
    let crowd = before + histogram[bin as usize].load();

    let words = comptime!(count.div_ceil(32));
    let mut marks = Array::<u32>::new(words);
    #[unroll]
    for w in 0..words {
        marks[w] = 0u32;
    }
    let mut own = 0u32;
    let mut total = crowd;
    if crowd <= room {
        #[unroll]
        for i in 0..count {
            let mark = select(bins[i] <= bin, 1u32, 0u32);
            marks[comptime!(i / 32)] |= mark << comptime!((i % 32) as u32);
            own += mark;
        }
    } else if crowd - before <= comptime!(units) {
        // Few share the bin: each is compared with the others.
        total = needed;
        #[unroll]
        for i in 0..count {
            if bins[i] == bin {
                let slot = tied[0].fetch_add(1u32);
                partial[slot as usize] = order_key(scores[i]);
                bins[i] = comptime!(BINS as u32 + 1) + slot;
            }
        }
        sync_cube();
        #[unroll]
        for i in 0..count {
            let mut take = bins[i] < bin;
            if bins[i] > BINS as u32 {
                let mine = order_key(scores[i]);
                let slot = bins[i] - comptime!(BINS as u32 + 1);
                let mut better = 0u32;
                for other in 0..crowd - before {
                    let theirs = partial[other as usize];
                    let first = theirs > mine || (theirs == mine && other < slot);
                    better += select(first, 1u32, 0u32);
                }
                take = better < needed - before;
            }
            let mark = select(take, 1u32, 0u32);
            marks[comptime!(i / 32)] |= mark << comptime!((i % 32) as u32);
            own += mark;
        }
    } else {
        total = needed;
        let mut key = 0u32.runtime();
        let mut left = needed - before;
        for pass in 0..4u32 {
            let shift = 24u32 - 8u32 * pass;
            sync_cube();
            clear(&histogram, BINS, units as usize);
            if unit == 0 {
                found[0] = 0u32;
                found[1] = 0u32;
            }
            sync_cube();
            #[unroll]
            for i in 0..count {
                let bits = order_key(scores[i]);
                // In two steps, since the first pass shifts out everything.
                if bins[i] == bin && (bits >> (shift + 7u32)) >> 1u32 == key {
                    // Bin 0 holds the largest.
                    let digit = 255u32 - ((bits >> shift) & 255u32);
                    histogram[digit as usize].fetch_add(1u32);
                }
            }
            sync_cube();
            find_bin(
                &histogram,
                &mut partial,
                &mut found,
                left,
                BINS,
                units,
                plane,
            );
            key = (key << 8u32) | (255u32 - found[0]);
            left -= found[1];
        }
        #[unroll]
        for i in 0..count {
            let bits = order_key(scores[i]);
            let mut take = bins[i] < bin || (bins[i] == bin && bits > key);
            if bins[i] == bin && bits == key {
                take = tied[0].fetch_add(1u32) < left;
            }
            let mark = select(take, 1u32, 0u32);
            marks[comptime!(i / 32)] |= mark << comptime!((i % 32) as u32);
            own += mark;
        }
    }
    // Whoever still reads an earlier sum has to be done.
    sync_cube();
    let first = sum_before(own, &mut partial, units, plane);
    (Taken { first, total }, marks)
}

/// The bin of a score, 0 for the largest; it never falls as the score does.
#[cube]
pub(crate) fn score_bin(score: f32, top: f32) -> u32 {
    u32::cast_from(clamp(
        (top - score) * BINS_PER_UNIT,
        0.0f32,
        comptime!(BINS as f32 - 1.0),
    ))
}
