//! Random numbers that are the same on every machine, so that a seed repeats a case.

/// The SplitMix64 generator.
pub(crate) struct Rng(u64);

impl Rng {
    /// Returns the generator of a seed. Consecutive seeds give independent numbers.
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Self(seed ^ 0x5af3_107a_4000_0001);
        rng.next();
        Self(rng.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Returns an integer below `end`, which must be at least 1.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Returns an integer from `first` to `last`, inclusive.
    pub(crate) fn within(&mut self, first: usize, last: usize) -> usize {
        first + self.below(last - first + 1)
    }

    /// Returns an integer from `first` to `last` whose logarithm is uniform.
    pub(crate) fn doubling(&mut self, first: usize, last: usize) -> usize {
        let (low, high) = ((first as f64).ln(), (last as f64 + 1.0).ln());
        let x = (low + (high - low) * f64::from(self.uniform())).exp();
        (x as usize).clamp(first, last)
    }

    /// Returns true with a probability of 1 / `times`.
    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// Returns one of `all`.
    pub(crate) fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// Returns a number from 0 to below 1.
    pub(crate) fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Returns a nearly normal number of mean 0 and deviation 1: a sum of three uniform numbers.
    pub(crate) fn normal(&mut self) -> f32 {
        let x = self.next();
        let parts = [x, x >> 21, x >> 42].map(|part| (part & 0x1f_ffff) as f32);
        (parts[0] + parts[1] + parts[2]) / (1u64 << 20) as f32 - 3.0
    }

    /// Returns 1 or -1.
    pub(crate) fn sign(&mut self) -> f32 {
        if self.once_in(2) { 1.0 } else { -1.0 }
    }
}
