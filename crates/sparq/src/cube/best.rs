//! The best of the scores that the units of a cube hold in registers.
//!
//! A histogram relative to the largest score finds the bin of the last one wanted. Where that bin is crowded (many equal scores, say, or scores far
//! apart), its keys are narrowed down byte by byte, so that the choice is exact for any input and ends after a fixed number of passes.

use cubecl::prelude::*;

use super::common::*;
use super::select::{clear, find_bin};

/// Bins of the histogram.
pub(crate) const BINS: usize = 1024;
/// Bins for a difference of 1 between scores.
const BINS_PER_UNIT: f32 = 32.0;

/// Where the best scores end. Taken are the bins before `bin`, of that bin the keys above `key`, and `ties` of those equal to it.
#[derive(CubeType)]
pub(crate) struct Border {
    /// The last bin from which scores are taken.
    pub bin: u32,
    /// The lowest [`order_key`] that is taken from it.
    pub key: u32,
    /// How many of the scores with that key are taken.
    pub ties: u32,
    /// How many scores lie in the bins before.
    pub before: u32,
    /// How many scores lie in the bin.
    pub crowd: u32,
}

/// The border behind the `needed` best of all units' scores; behind the last of its bin where no more than `room` scores lie before that. Every unit
/// holds `count` of them, with negative infinity for none; `top` is the largest.
#[cube]
pub(crate) fn find_border(
    scores: &Array<f32>,
    top: f32,
    needed: u32,
    room: u32,
    #[comptime] count: usize,
    #[comptime] units: u32,
    #[comptime] plane: u32,
) -> Border {
    let histogram = Shared::<[Atomic<u32>]>::new_slice(BINS);
    let mut partial = Shared::<[u32]>::new_slice(units as usize);
    let mut found = Shared::<[u32]>::new_slice(2usize);
    let unit = UNIT_POS as usize;
    clear(&histogram, BINS, units as usize);
    if unit == 0 {
        // Where there are fewer than are needed, all of them are taken.
        found[0] = comptime!(BINS as u32 - 1);
        found[1] = 0u32;
    }
    sync_cube();
    #[unroll]
    for i in 0..count {
        if scores[i] > f32::NEG_INFINITY {
            histogram[score_bin(scores[i], top) as usize].fetch_add(1u32);
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
    let crowd = histogram[bin as usize].load();
    let mut key = 0u32.runtime();
    let mut ties = comptime!(u32::MAX).runtime();
    if before + crowd > room {
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
                let score = scores[i];
                if score > f32::NEG_INFINITY && score_bin(score, top) == bin {
                    let bits = order_key(score);
                    // In two steps, since the first pass shifts out everything.
                    if (bits >> (shift + 7u32)) >> 1u32 == key {
                        // Bin 0 holds the largest.
                        let digit = 255u32 - ((bits >> shift) & 255u32);
                        histogram[digit as usize].fetch_add(1u32);
                    }
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
        ties = left;
    }
    Border {
        bin,
        key,
        ties,
        before,
        crowd,
    }
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
