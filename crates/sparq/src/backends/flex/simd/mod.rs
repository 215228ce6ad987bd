//! Vectors of fp32 on the instruction sets of the CPU, detected at run time.
//!
//! A [`Kernel`] is written once, generic over [`Simd`]. [`Level::run`] compiles it into one
//! function per instruction set. Every function that a kernel calls down to the vector operations
//! must be `#[inline(always)]`: only then is it compiled with the instructions of that function.
//!
//! `Avx2` and `Avx512` are zero-sized proofs that the CPU has the instructions. Only
//! [`Level::detect`] creates them. [`integers`] has the products of bytes.

pub(super) mod integers;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use burn::tensor::{bf16, f16};

use self::portable::Portable;

/// The largest number of lanes of any [`Simd`].
pub(super) const MAX_LANES: usize = 16;

/// Bytes of a cache line.
pub(super) const CACHE_LINE: usize = 64;

/// A computation that is compiled for each instruction set.
pub(super) trait Kernel {
    type Output;
    /// Runs the computation. Must be `#[inline(always)]`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// An instruction set of this CPU.
#[derive(Clone, Copy, Debug)]
pub(super) enum Level {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(x86::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(x86::Avx512<false>),
    /// AVX-512 with products of bytes.
    #[cfg(target_arch = "x86_64")]
    Vnni(x86::Avx512<true>),
}

impl Level {
    /// Returns the widest instruction set of this CPU.
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(simd) = x86::Avx512::<true>::detect() {
                return Level::Vnni(simd);
            }
            if let Some(simd) = x86::Avx512::<false>::detect() {
                return Level::Avx512(simd);
            }
            if let Some(simd) = x86::Avx2::detect() {
                return Level::Avx2(simd);
            }
        }
        Level::Portable(Portable)
    }

    /// Returns every instruction set of this CPU.
    #[cfg(test)]
    pub(super) fn all() -> Vec<Self> {
        let mut all = vec![Level::Portable(Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(x86::Avx2::detect().map(Level::Avx2));
            all.extend(x86::Avx512::<false>::detect().map(Level::Avx512));
            all.extend(x86::Avx512::<true>::detect().map(Level::Vnni));
        }
        all
    }

    /// Returns [`Simd::LANES`] of this instruction set.
    pub(super) fn lanes(self) -> usize {
        match self {
            Level::Portable(_) => Portable::LANES,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(_) => x86::Avx2::LANES,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(_) | Level::Vnni(_) => x86::Avx512::<false>::LANES,
        }
    }

    /// Returns [`Simd::VECTORS`] of this instruction set.
    pub(super) fn vectors(self) -> usize {
        match self {
            Level::Portable(_) => Portable::VECTORS,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(_) => x86::Avx2::VECTORS,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(_) | Level::Vnni(_) => x86::Avx512::<false>::VECTORS,
        }
    }

    /// Runs the kernel compiled for this instruction set.
    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Level::Portable(simd) => kernel.run(simd),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(simd) => simd.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(simd) => simd.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Vnni(simd) => simd.without_vnni().run(kernel),
        }
    }
}

/// Vectors of fp32. Loads and stores access the first lanes of a slice and panic if it is shorter.
pub(super) trait Simd: Copy + Send + Sync {
    type F: Copy;
    /// Lanes of a vector, 8 or 16.
    const LANES: usize;
    /// The number of query heads whose sums fit in the registers.
    const HEADS: usize;
    /// Weight rows of a tile of a product, whose sums for four rows of x fit in the registers.
    const TILE: usize;
    /// The number of vectors, up to 4, that fit in the registers beside the sums of their products
    /// with four factors.
    const VECTORS: usize;
    /// The lanes in the order in which [`Simd::sum`] adds them, as leaves of a balanced tree.
    const SUM_ORDER: &'static [usize];
    /// The lanes in the order in which [`Simd::sums`] adds them, as leaves of a balanced tree.
    const SUMS_ORDER: &'static [usize];
    /// The largest x for which [`exp`](super::online_softmax::exp) returns 0, because
    /// [`Simd::scale`] by its power of two does.
    const EXP_UNDERFLOW: f32;

    fn splat(self, value: f32) -> Self::F;
    fn load(self, from: &[f32]) -> Self::F;
    fn load_f16(self, from: &[f16]) -> Self::F;
    fn load_bf16(self, from: &[bf16]) -> Self::F;
    /// Loads 8-bit codes in the order of their positions from `LANES / 4` words.
    fn load_u8(self, words: &[u32]) -> Self::F;
    /// Loads the 4-bit code number `code` of each of `LANES` words.
    fn load_u4(self, words: &[u32], code: usize) -> Self::F;
    fn store(self, value: Self::F, to: &mut [f32]);
    /// Rounds to the nearest f16, ties to even.
    fn store_f16(self, value: Self::F, to: &mut [f16]);
    /// Rounds to the nearest bf16, ties to even.
    fn store_bf16(self, value: Self::F, to: &mut [bf16]);

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// Returns a b + c.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Returns the larger one, or b if either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// Returns the smaller one, or b if either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// Rounds to the nearest integer, ties to even.
    fn round(self, a: Self::F) -> Self::F;
    /// Returns a 2^n for an integer n up to 127. Subnormal results may be 0.
    fn scale(self, a: Self::F, n: Self::F) -> Self::F;

    fn sum(self, a: Self::F) -> f32;
    /// Returns the sum of the lanes of each vector.
    fn sums(self, a: [Self::F; 4]) -> [f32; 4];
    /// Returns the largest lane. May ignore lanes that are NaN.
    fn largest(self, a: Self::F) -> f32;

    /// Stores the [`sort_key`] of each lane.
    fn store_sort_keys(self, value: Self::F, to: &mut [u32]);
    /// Writes those of the first `LANES` keys that are at least `threshold` to the front of `kept`,
    /// and their indices, counted from `first`, to `indices`. Returns their number.
    ///
    /// Both outputs have room for `LANES` entries. The entries after those kept are unspecified.
    fn compress_at_least(
        self,
        keys: &[u32],
        threshold: u32,
        first: u32,
        kept: &mut [u32],
        indices: &mut [u32],
    ) -> usize;

    /// Returns the number of the first `LANES` keys that are at least `threshold`.
    fn count_at_least(self, keys: &[u32], threshold: u32) -> usize;

    /// Prefetches the cache line of `slice[index]` into L2. `index` may be out of bounds.
    ///
    /// Not into L1: rows whose distance is a power of two share a few sets there, and would evict
    /// each other before their use.
    fn prefetch<T>(self, slice: &[T], index: usize);
}

/// Prefetches the cache line at an address into L2. No memory needs to be there.
#[inline(always)]
pub(super) fn prefetch_address(address: usize) {
    #[cfg(target_arch = "x86_64")]
    x86::prefetch(std::ptr::without_provenance::<u8>(address));
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Returns an integer that orders like the value: larger for larger values, and above 0 for all
/// but NaN.
#[inline(always)]
pub(super) fn sort_key(value: f32) -> u32 {
    let bits = value.to_bits();
    bits ^ (((bits as i32 >> 31) as u32) | 0x8000_0000)
}
