//! Exact top-k over sort keys (stage 2).

use super::simd::{Kernel, Level, MAX_LANES, Simd};

/// Fewer keys than this are selected from without a sample.
const SMALL: usize = 2048;

/// The upper bits of a threshold that a sample estimates: sign, exponent and seven more.
const SAMPLE_BITS: u32 = 16;

/// A top-k selection. Holds its memory for the next one.
#[derive(Default)]
pub(super) struct TopK {
    sample: Vec<u32>,
    keys: Vec<u32>,
    indices: Vec<u32>,
}

impl TopK {
    /// Appends the indices of the `count` largest keys to `selected`, ascending. Of equal keys at
    /// the threshold, the first ones are selected.
    ///
    /// Keys of 0 are excluded. `candidates` is the number of the others, at least `count`.
    ///
    /// The selection itself reads every key many times. So a sample first estimates the threshold,
    /// and one pass over all keys drops most of them.
    pub(super) fn select(
        &mut self,
        level: Level,
        keys: &[u32],
        candidates: usize,
        count: usize,
        selected: &mut Vec<u32>,
    ) {
        if count == 0 {
            return;
        }
        let threshold = self.likely_threshold(level, keys, candidates, count);
        let mut kept = self.filter(level, keys, threshold);
        if kept < count {
            kept = self.filter(level, keys, 1);
        }
        let count = count.min(kept);
        if count == 0 {
            return;
        }
        self.keys[kept..kept.next_multiple_of(MAX_LANES)].fill(0);
        let border = level.run(Largest {
            keys: &self.keys[..kept.next_multiple_of(MAX_LANES)],
            count,
            bits: u32::BITS,
        });
        let above = self.keys[..kept].iter().filter(|&&key| key > border);
        let mut equal = count - above.count();

        // Without a branch: every index is written, and `next` advances past the selected ones.
        let first = selected.len();
        selected.resize(first + count + 1, 0);
        let (to, mut next) = (&mut selected[first..], 0);
        for (&key, &index) in self.keys[..kept].iter().zip(&self.indices[..kept]) {
            let tie = (key == border && equal > 0) as usize;
            equal -= tie;
            to[next] = index;
            next += (key > border) as usize | tie;
        }
        selected.truncate(first + count);
    }

    /// Returns a key that probably at least `count` keys reach, and not many more.
    fn likely_threshold(
        &mut self,
        level: Level,
        keys: &[u32],
        candidates: usize,
        count: usize,
    ) -> u32 {
        if keys.len() < SMALL || count == candidates {
            return 1;
        }
        // Odd, so that the sample contains every lane of the vectors.
        let stride = (keys.len() / 1024).clamp(8, 64) | 1;
        self.sample.clear();
        self.sample
            .extend(keys.iter().step_by(stride).filter(|&&key| key > 0));
        let expected = (count * self.sample.len()) as f64 / candidates as f64;
        // The sample holds `expected` of the largest keys, give or take three standard deviations.
        let rank = (expected + 3.0 * expected.sqrt() + 4.0) as usize;
        if rank >= self.sample.len() {
            return 1;
        }
        let len = self.sample.len().next_multiple_of(MAX_LANES);
        self.sample.resize(len, 0);
        let threshold = level.run(Largest {
            keys: &self.sample,
            count: rank + 1,
            bits: SAMPLE_BITS,
        });
        threshold.max(1)
    }

    /// Copies the keys at or above `threshold` with their indices. Returns their number.
    fn filter(&mut self, level: Level, keys: &[u32], threshold: u32) -> usize {
        let room = keys.len() + MAX_LANES;
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

/// Finds the upper `bits` of the `count`-th largest key, one after the other, by counting. There
/// are that many keys above 0, in whole vectors.
///
/// Without a branch that depends on a key, which a CPU would predict wrongly half of the time.
struct Largest<'a> {
    keys: &'a [u32],
    count: usize,
    bits: u32,
}

impl Kernel for Largest<'_> {
    type Output = u32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> u32 {
        let mut found = 0;
        for bit in (u32::BITS - self.bits..u32::BITS).rev() {
            let threshold = found | 1 << bit;
            let mut count = 0;
            for keys in self.keys.chunks_exact(S::LANES) {
                count += simd.count_at_least(keys, threshold);
            }
            if count >= self.count {
                found = threshold;
            }
        }
        found
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
            count += simd.compress_at_least(
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

    /// Returns the selected keys, after checking that their indices are distinct and ascending.
    fn selected_keys(level: Level, keys: &[u32], count: usize) -> Vec<u32> {
        let candidates = keys.iter().filter(|&&key| key > 0).count();
        let mut indices = vec![77];
        TopK::default().select(level, keys, candidates, count, &mut indices);
        assert_eq!(indices[0], 77, "earlier entries are kept");
        assert!(indices[1..].windows(2).all(|pair| pair[0] < pair[1]));
        let mut keys: Vec<u32> = indices[1..].iter().map(|&i| keys[i as usize]).collect();
        keys.sort_unstable_by(|a, b| b.cmp(a));
        keys
    }

    fn pseudo_random(count: usize, seed: u32) -> Vec<u32> {
        let mut state = seed | 1;
        let next = |_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state
        };
        (0..count).map(next).collect()
    }

    #[test]
    fn selection_is_exact_for_any_distribution() {
        for level in Level::all() {
            for len in [1, 5, 100, 2047, 2048, 5000, 40_003] {
                let random = pseudo_random(len, 9);
                let few_values = random.iter().map(|key| key % 3).collect();
                let equal = vec![5; len];
                let kept = |&key: &u32| if key % 16 == 0 { key } else { 0 };
                let mostly_excluded = random.iter().map(kept).collect();
                let ascending = (1..=len as u32).collect();
                // Large keys that a sample with stride 8 would miss.
                let large = |i: u32| if i % 8 == 3 { i + 9 } else { 1 };
                let hidden = (0..len as u32).map(large).collect();
                let spread = [random, few_values, mostly_excluded];
                for keys in spread.into_iter().chain([equal, ascending, hidden]) {
                    let eligible = keys.iter().copied().filter(|&key| key > 0);
                    let mut expected: Vec<u32> = eligible.collect();
                    expected.sort_unstable_by(|a, b| b.cmp(a));
                    for count in [0, 1, 2, len / 100, len / 8, len / 2, len] {
                        let count = count.min(expected.len());
                        let found = selected_keys(level, &keys, count);
                        assert_eq!(found, expected[..count], "{level:?} {len} {count}");
                    }
                }
            }
        }
    }
}
