//! Deterministic random numbers: the same on every machine, so that a seed repeats a case.

/// A generator (SplitMix64): small, and good enough to place numbers.
pub(super) struct Draws(u64);

impl Draws {
    /// The generator of a seed; neighbouring seeds have nothing in common.
    pub(super) fn new(seed: u64) -> Self {
        let mut draws = Self(seed ^ 0x5af3_107a_4000_0001);
        draws.next();
        Self(draws.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// 0 to below `end`, which is at least 1.
    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// `first` to `last`, both included.
    pub(super) fn within(&mut self, first: usize, last: usize) -> usize {
        first + self.below(last - first + 1)
    }

    /// `first` to `last`, each doubling as likely as another.
    pub(super) fn doubling(&mut self, first: usize, last: usize) -> usize {
        let (low, high) = ((first as f64).ln(), (last as f64 + 1.0).ln());
        let x = (low + (high - low) * f64::from(self.uniform())).exp();
        (x as usize).clamp(first, last)
    }

    /// True once in `times`.
    pub(super) fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of `all`.
    pub(super) fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// 0 to below 1.
    pub(super) fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Mean 0 and deviation 1, nearly normal: the sum of three uniform numbers.
    pub(super) fn normal(&mut self) -> f32 {
        let x = self.next();
        let parts = [x, x >> 21, x >> 42].map(|part| (part & 0x1f_ffff) as f32);
        (parts[0] + parts[1] + parts[2]) / (1u64 << 20) as f32 - 3.0
    }

    /// 1 or -1.
    pub(super) fn sign(&mut self) -> f32 {
        if self.once_in(2) { 1.0 } else { -1.0 }
    }
}
