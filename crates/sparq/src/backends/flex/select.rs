//! Step 4: the positions with the largest keys, exactly.

use super::simd::{Kernel, Level, MOST_LANES, Simd};

/// Fewer keys than this are all looked at by the selection.
const SMALL: usize = 2048;

/// Memory that a selection works in, kept from one to the next.
#[derive(Default)]
pub(super) struct Selection {
    sample: Vec<u32>,
    keys: Vec<u32>,
    indices: Vec<u32>,
    order: Vec<u32>,
}

impl Selection {
    /// Appends to `chosen` the indices of the `count` largest keys, ascending. Keys of 0 are no candidates; there must be `candidates` others, at
    /// least `count`. Among equal keys at the border the first ones are taken.
    ///
    /// A selection reads every key several times and branches on it. So a sample of the keys says first where the border is likely to be, and one
    /// pass over all keys drops most of them.
    pub(super) fn choose(
        &mut self,
        level: Level,
        keys: &[u32],
        candidates: usize,
        count: usize,
        chosen: &mut Vec<u32>,
    ) {
        if count == 0 {
            return;
        }
        let threshold = self.likely_threshold(keys, candidates, count);
        let mut kept = self.filter(level, keys, threshold);
        if kept < count {
            kept = self.filter(level, keys, 1);
        }
        let count = count.min(kept);
        if count == 0 {
            return;
        }
        self.order.clear();
        self.order.extend_from_slice(&self.keys[..kept]);
        let (above, &mut border, _) = self
            .order
            .select_nth_unstable_by(count - 1, |a, b| b.cmp(a));
        let mut equal = count - above.iter().filter(|&&key| key > border).count();

        // Every index is written and kept or not, which takes no branch.
        let first = chosen.len();
        chosen.resize(first + count + 1, 0);
        let (to, mut next) = (&mut chosen[first..], 0);
        for (&key, &index) in self.keys[..kept].iter().zip(&self.indices[..kept]) {
            let tie = (key == border && equal > 0) as usize;
            equal -= tie;
            to[next] = index;
            next += (key > border) as usize | tie;
        }
        chosen.truncate(first + count);
    }

    /// A key that is probably exceeded by `count` keys and not by many more.
    fn likely_threshold(&mut self, keys: &[u32], candidates: usize, count: usize) -> u32 {
        if keys.len() < SMALL || count == candidates {
            return 1;
        }
        // Odd, so that the lanes of a vector all have their turn.
        let stride = (keys.len() / 1024).clamp(8, 64) | 1;
        self.sample.clear();
        self.sample
            .extend(keys.iter().step_by(stride).filter(|&&key| key > 0));
        let expected = (count * self.sample.len()) as f64 / candidates as f64;
        // Three standard deviations of how many of the largest keys a sample holds.
        let rank = (expected + 3.0 * expected.sqrt() + 4.0) as usize;
        if rank >= self.sample.len() {
            return 1;
        }
        *self.sample.select_nth_unstable_by(rank, |a, b| b.cmp(a)).1
    }

    /// Copies the keys from `threshold` up and their indices, and returns how many.
    fn filter(&mut self, level: Level, keys: &[u32], threshold: u32) -> usize {
        let room = keys.len() + MOST_LANES;
        if self.keys.len() < room {
            self.keys.resize(room, 0);
            self.indices.resize(room, 0);
        }
        level.run(Filter {
            keys,
            threshold,
            kept: &mut self.keys,
            indices: &mut self.indices,
        })
    }
}

struct Filter<'a> {
    keys: &'a [u32],
    threshold: u32,
    kept: &'a mut [u32],
    indices: &'a mut [u32],
}

impl Kernel for Filter<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> usize {
        let (mut count, mut first) = (0, 0);
        while first + S::LANES <= self.keys.len() {
            count += simd.at_least(
                &self.keys[first..],
                self.threshold,
                first as u32,
                &mut self.kept[count..],
                &mut self.indices[count..],
            );
            first += S::LANES;
        }
        for (index, &key) in self.keys.iter().enumerate().skip(first) {
            if key >= self.threshold {
                self.kept[count] = key;
                self.indices[count] = index as u32;
                count += 1;
            }
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys that the selection chose, checked to be distinct and ascending by index.
    fn chosen(level: Level, keys: &[u32], count: usize) -> Vec<u32> {
        let candidates = keys.iter().filter(|&&key| key > 0).count();
        let mut indices = vec![77];
        Selection::default().choose(level, keys, candidates, count, &mut indices);
        assert_eq!(indices[0], 77, "what was there stays");
        assert!(indices[1..].windows(2).all(|pair| pair[0] < pair[1]));
        let mut keys: Vec<u32> = indices[1..].iter().map(|&i| keys[i as usize]).collect();
        keys.sort_unstable_by(|a, b| b.cmp(a));
        keys
    }

    fn pseudo_random(count: usize, seed: u32) -> Vec<u32> {
        let mut state = seed | 1;
        (0..count)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                state
            })
            .collect()
    }

    #[test]
    fn the_largest_keys_are_chosen_whatever_their_distribution() {
        for level in Level::all() {
            for len in [1, 5, 100, 2047, 2048, 5000, 40_003] {
                let random = pseudo_random(len, 9);
                let few_values = random.iter().map(|key| key % 3).collect();
                let equal = vec![5; len];
                let mostly_excluded = random
                    .iter()
                    .map(|&key| if key % 16 == 0 { key } else { 0 })
                    .collect();
                let ascending = (1..=len as u32).collect();
                // What a sample with a fixed stride never meets.
                let hidden = (0..len as u32)
                    .map(|i| if i % 8 == 3 { i + 9 } else { 1 })
                    .collect();
                for keys in [
                    random,
                    few_values,
                    equal,
                    mostly_excluded,
                    ascending,
                    hidden,
                ] {
                    let mut expected: Vec<u32> =
                        keys.iter().copied().filter(|&key| key > 0).collect();
                    expected.sort_unstable_by(|a, b| b.cmp(a));
                    for count in [0, 1, 2, len / 100, len / 8, len / 2, len] {
                        let count = count.min(expected.len());
                        assert_eq!(
                            chosen(level, &keys, count),
                            expected[..count],
                            "{level:?} {len} {count}"
                        );
                    }
                }
            }
        }
    }
}
