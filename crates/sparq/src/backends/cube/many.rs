//! The best of more candidates than fit in the registers of a cube, for a large k and long sequences.

use cubecl::prelude::*;

use super::best::{BINS, clear, digit_of, find_bin, known_bits, sums_before};
use super::common::*;

/// Writes the numbers of the `needed` best of the `count` scores from `first` on to `kept`, from `at` on; of equal ones any. Negative infinity is no score, and no
/// more may be needed than there are. Ends with the units in step.
///
/// The key of the last one wanted is narrowed down byte by byte; then every unit counts what it takes, and writes it behind what the units before it do.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(crate) fn take_from_memory(
    scores: &[Vector<f32, Const<4>>],
    first: usize,
    count: usize,
    kept: &mut Shared<[u32]>,
    at: usize,
    #[comptime] needed: usize,
    #[comptime] units: u32,
    #[comptime] plane: u32,
) {
    let histogram = Shared::<[Atomic<u32>]>::new_slice(BINS);
    let mut partial = Shared::<[u32]>::new_slice(units as usize);
    let mut found = Shared::<[u32]>::new_slice(2usize);
    let rounds = count.div_ceil(comptime!(units as usize));
    let mut key = 0u32.runtime();
    let mut left = comptime!(needed as u32).runtime();
    for pass in 0..4u32 {
        let shift = 24u32 - 8u32 * pass;
        sync_cube();
        clear(&histogram, BINS, units as usize);
        sync_cube();
        for round in 0..rounds {
            let score = score_at(scores, first, count, round, units);
            let bits = order_key(score);
            if score > no_score() && known_bits(bits, shift) == key {
                histogram[digit_of(bits, shift) as usize].fetch_add(1u32);
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
    let mut above = 0u32;
    let mut equal = 0u32;
    for round in 0..rounds {
        let bits = order_key(score_at(scores, first, count, round, units));
        above += select(bits > key, 1u32, 0u32);
        equal += select(bits == key, 1u32, 0u32);
    }
    let mut slot = at + sums_before(above, &mut partial, units, plane).before as usize;
    sync_cube();
    // Those that equal the last come behind; the first `left` of them are taken.
    let mut tie = sums_before(equal, &mut partial, units, plane).before;
    let ties_at = at + needed - left as usize;
    for round in 0..rounds {
        let bits = order_key(score_at(scores, first, count, round, units));
        let number = (round * comptime!(units as usize) + UNIT_POS as usize) as u32;
        if bits > key {
            kept[slot] = number;
            slot += 1;
        } else if bits == key {
            if tie < left {
                kept[ties_at + tie as usize] = number;
            }
            tie += 1u32;
        }
    }
    sync_cube();
}

/// This unit's score in a round; negative infinity past the last.
#[cube]
fn score_at(
    scores: &[Vector<f32, Const<4>>],
    first: usize,
    count: usize,
    round: usize,
    #[comptime] units: u32,
) -> f32 {
    let i = round * comptime!(units as usize) + UNIT_POS as usize;
    let score = number_of(scores, first + min(i, count - 1));
    select(i < count, score, no_score())
}
