//! Top-k of scores in global memory, for more candidates than the registers of a cube can hold.

use cubecl::prelude::*;

use super::histogram::{BINS, Histogram, clear, digit_of, known_bits};
use super::reduce::prefix_sum;
use super::score::{element_of, no_score, order_key};

/// The number of scores to select, and the shape of the cube.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MemoryTopKBlueprint {
    /// Scores to select.
    pub needed: usize,
    /// Units of a cube; a divisor of [`BINS`].
    pub units: u32,
    /// See [`reduce`](super::reduce).
    pub plane: u32,
}

/// Writes the numbers of the `needed` largest of `count` scores from `first` on to `selected`, from
/// `slot` on. Ties are broken arbitrarily.
///
/// Negative infinity marks an empty place. `needed` must not exceed the number of scores. Ends with
/// a barrier.
///
/// A radix select narrows the key of the last score down byte by byte. Each unit then counts the
/// scores it keeps, and writes them behind those of the units before it.
#[cube]
pub(crate) fn select_top_k_in_memory(
    scores: &[Vector<f32, Const<4>>],
    first: usize,
    count: usize,
    selected: &mut Shared<[u32]>,
    slot: usize,
    #[comptime] plan: MemoryTopKBlueprint,
) {
    let units = comptime!(plan.units);
    let counts = Shared::<[Atomic<u32>]>::new_slice(BINS);
    let mut histogram = Histogram::new(counts, units);
    let rounds = count.div_ceil(comptime!(units as usize));
    let mut key = 0u32.runtime();
    let mut left = comptime!(plan.needed as u32).runtime();
    for pass in 0..4u32 {
        let shift = 24u32 - 8u32 * pass;
        sync_cube();
        clear(&histogram.counts, BINS, units as usize);
        sync_cube();
        for round in 0..rounds {
            let score = score_in_round(scores, first, count, round, units);
            let bits = order_key(score);
            if score > no_score() && known_bits(bits, shift) == key {
                histogram.add(digit_of(bits, shift));
            }
        }
        sync_cube();
        histogram.find(left, units, plan.plane);
        key = (key << 8u32) | (255u32 - histogram.found[0]);
        left -= histogram.found[1];
    }
    let mut above = 0u32;
    let mut equal = 0u32;
    for round in 0..rounds {
        let bits = order_key(score_in_round(scores, first, count, round, units));
        above += select(bits > key, 1u32, 0u32);
        equal += select(bits == key, 1u32, 0u32);
    }
    let mut above_at =
        slot + prefix_sum(above, &mut histogram.partial, units, plan.plane).before as usize;
    sync_cube();
    // Scores equal to the last one come behind the others; the first `left` of them are kept.
    let mut tie = prefix_sum(equal, &mut histogram.partial, units, plan.plane).before;
    let ties_at = slot + plan.needed - left as usize;
    for round in 0..rounds {
        let bits = order_key(score_in_round(scores, first, count, round, units));
        let number = (round * comptime!(units as usize) + UNIT_POS as usize) as u32;
        if bits > key {
            selected[above_at] = number;
            above_at += 1;
        } else if bits == key {
            if tie < left {
                selected[ties_at + tie as usize] = number;
            }
            tie += 1u32;
        }
    }
    sync_cube();
}

/// Returns this unit's score in a round; negative infinity past the last score.
#[cube]
fn score_in_round(
    scores: &[Vector<f32, Const<4>>],
    first: usize,
    count: usize,
    round: usize,
    #[comptime] units: u32,
) -> f32 {
    let i = round * comptime!(units as usize) + UNIT_POS as usize;
    let score = element_of(scores, first + min(i, count - 1));
    select(i < count, score, no_score())
}
