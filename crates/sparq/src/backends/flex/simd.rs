//! Vectors of fp32 and the CPU's instructions for them, found at run time. All `unsafe` code of this backend is here.
//!
//! A [`Kernel`] is written once, over a [`Simd`], and [`Level::run`] compiles it into a function for each instruction set. Everything that a
//! kernel calls on its way to the vectors must be `#[inline(always)]`: only then is it compiled with that function's instructions.
//!
//! `Avx2` and `Avx512` are zero-sized proofs: [`Level::detect`] makes them on a CPU that has the instructions, and nothing else does.

use burn::tensor::{bf16, f16};

/// The most lanes that a [`Simd`] has.
pub(super) const MOST_LANES: usize = 16;

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// A computation that is compiled for each instruction set.
pub(super) trait Kernel {
    type Output;
    /// The computation; must be `#[inline(always)]`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// An instruction set that this CPU has.
#[derive(Clone, Copy, Debug)]
pub(super) enum Level {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(x86::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(x86::Avx512),
}

impl Level {
    /// The widest one.
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(simd) = x86::Avx512::detect() {
                return Level::Avx512(simd);
            }
            if let Some(simd) = x86::Avx2::detect() {
                return Level::Avx2(simd);
            }
        }
        Level::Portable(Portable)
    }

    /// All of them.
    #[cfg(test)]
    pub(super) fn all() -> Vec<Self> {
        let mut all = vec![Level::Portable(Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(x86::Avx2::detect().map(Level::Avx2));
            all.extend(x86::Avx512::detect().map(Level::Avx512));
        }
        all
    }

    /// See [`Simd::LANES`].
    pub(super) fn lanes(self) -> usize {
        match self {
            Level::Portable(_) => Portable::LANES,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(_) => x86::Avx2::LANES,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(_) => x86::Avx512::LANES,
        }
    }

    /// Runs the kernel as it was compiled for this instruction set.
    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Level::Portable(simd) => kernel.run(simd),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(simd) => simd.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(simd) => simd.run(kernel),
        }
    }
}

/// Vectors of fp32. Loads and stores take the first lanes of a slice, and panic if it has fewer.
pub(super) trait Simd: Copy + Send + Sync {
    /// A vector.
    type F: Copy;
    /// Its lanes, 8 or 16.
    const LANES: usize;
    /// How many query heads to serve at once: what the registers hold.
    const HEADS: usize;
    /// Where [`exp`](super::softmax::exp) starts to return 0: the largest x for which [`Simd::scale`] by its power of two gives 0.
    const EXP_ZERO: f32;

    fn splat(self, value: f32) -> Self::F;
    fn load(self, from: &[f32]) -> Self::F;
    fn load_f16(self, from: &[f16]) -> Self::F;
    fn load_bf16(self, from: &[bf16]) -> Self::F;
    /// Codes of 8 bits in the order of their positions, from `LANES / 4` words.
    fn bytes(self, words: &[u32]) -> Self::F;
    /// The 4 bits from bit `4 * code` up of each of `LANES` words.
    fn nibbles(self, words: &[u32], code: usize) -> Self::F;
    fn store(self, value: Self::F, to: &mut [f32]);

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// a b + c
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger one; b if either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller one; b if either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest whole number.
    fn round(self, a: Self::F) -> Self::F;
    /// a 2^n for whole n up to 127. Results below the normal numbers may be 0.
    fn scale(self, a: Self::F, n: Self::F) -> Self::F;

    /// The sum of the lanes.
    fn sum(self, a: Self::F) -> f32;
    /// The sum of the lanes of each vector.
    fn sums(self, a: [Self::F; 4]) -> [f32; 4];
    /// The largest lane; NaN lanes may be left out.
    fn largest(self, a: Self::F) -> f32;

    /// Stores keys that order as the values do: see [`order`].
    fn store_order(self, value: Self::F, to: &mut [u32]);
    /// Moves those of the first `LANES` keys that are at least `threshold` to the front of `kept`, with their indices, counted from `first`, and
    /// returns how many. Both outputs have room for `LANES`; what lies behind the kept ones is undefined.
    fn at_least(
        self,
        keys: &[u32],
        threshold: u32,
        first: u32,
        kept: &mut [u32],
        indices: &mut [u32],
    ) -> usize;

    /// Asks for the cache line of `slice[index]`, which may lie outside, to be brought into the second cache level: rows that lie a power of two apart
    /// share a few places of the first level, and would push each other out before their use.
    fn prefetch<T>(self, slice: &[T], index: usize);
}

/// A key that orders as the value does: larger for larger values, and above 0 for all but NaN.
#[inline(always)]
pub(super) fn order(value: f32) -> u32 {
    let bits = value.to_bits();
    bits ^ (((bits as i32 >> 31) as u32) | 0x8000_0000)
}

/// What any CPU can do; the compiler finds the vectors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Portable;

type Lanes = [f32; 8];

/// A vector from its lanes. A plain loop: a closure would not reliably be inlined.
macro_rules! lanes {
    ($i:ident => $value:expr) => {{
        let mut lanes = [0.0; 8];
        let mut $i = 0;
        while $i < 8 {
            lanes[$i] = $value;
            $i += 1;
        }
        lanes
    }};
}

impl Simd for Portable {
    type F = Lanes;
    const LANES: usize = 8;
    const HEADS: usize = 2;
    // The exponent's field is 0 at n = -127.
    const EXP_ZERO: f32 = -88.03;

    #[inline(always)]
    fn splat(self, value: f32) -> Lanes {
        [value; 8]
    }
    #[inline(always)]
    fn load(self, from: &[f32]) -> Lanes {
        let from = &from[..8];
        lanes!(i => from[i])
    }
    #[inline(always)]
    fn load_f16(self, from: &[f16]) -> Lanes {
        let from = &from[..8];
        lanes!(i => from[i].to_f32())
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16]) -> Lanes {
        let from = &from[..8];
        lanes!(i => f32::from_bits((from[i].to_bits() as u32) << 16))
    }
    #[inline(always)]
    fn bytes(self, words: &[u32]) -> Lanes {
        let words = &words[..2];
        lanes!(i => ((words[i / 4] >> (8 * (i % 4))) & 255) as f32)
    }
    #[inline(always)]
    fn nibbles(self, words: &[u32], code: usize) -> Lanes {
        let words = &words[..8];
        lanes!(i => ((words[i] >> (4 * code)) & 15) as f32)
    }
    #[inline(always)]
    fn store(self, value: Lanes, to: &mut [f32]) {
        to[..8].copy_from_slice(&value);
    }

    #[inline(always)]
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        lanes!(i => a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Lanes, b: Lanes) -> Lanes {
        lanes!(i => a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        lanes!(i => a[i] * b[i])
    }
    #[inline(always)]
    fn mul_add(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        // Without the instruction, f32::mul_add is a call into the C library for every lane.
        if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
            lanes!(i => a[i].mul_add(b[i], c[i]))
        } else {
            lanes!(i => a[i] * b[i] + c[i])
        }
    }
    #[inline(always)]
    fn max(self, a: Lanes, b: Lanes) -> Lanes {
        lanes!(i => if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: Lanes, b: Lanes) -> Lanes {
        lanes!(i => if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn round(self, a: Lanes) -> Lanes {
        // Adding and taking away 1.5 * 2^23 rounds what is below 2^22 in size, without the library call of f32::round_ties_even.
        const SHIFT: f32 = 12_582_912.0;
        lanes!(i => (a[i] + SHIFT) - SHIFT)
    }
    #[inline(always)]
    fn scale(self, a: Lanes, n: Lanes) -> Lanes {
        lanes!(i => a[i] * f32::from_bits(((n[i] as i32).wrapping_add(127) << 23) as u32))
    }

    #[inline(always)]
    fn sum(self, a: Lanes) -> f32 {
        ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
    }
    #[inline(always)]
    fn sums(self, a: [Lanes; 4]) -> [f32; 4] {
        [
            self.sum(a[0]),
            self.sum(a[1]),
            self.sum(a[2]),
            self.sum(a[3]),
        ]
    }
    #[inline(always)]
    fn largest(self, a: Lanes) -> f32 {
        let mut largest = a[0];
        for lane in a {
            largest = largest.max(lane);
        }
        largest
    }

    #[inline(always)]
    fn store_order(self, value: Lanes, to: &mut [u32]) {
        let to = &mut to[..8];
        let mut i = 0;
        while i < 8 {
            to[i] = order(value[i]);
            i += 1;
        }
    }
    #[inline(always)]
    fn at_least(
        self,
        keys: &[u32],
        threshold: u32,
        first: u32,
        kept: &mut [u32],
        indices: &mut [u32],
    ) -> usize {
        let (keys, kept, indices) = (&keys[..8], &mut kept[..8], &mut indices[..8]);
        let mut count = 0;
        for (index, &key) in keys.iter().enumerate() {
            kept[count] = key;
            indices[count] = first + index as u32;
            count += (key >= threshold) as usize;
        }
        count
    }

    #[inline(always)]
    fn prefetch<T>(self, _slice: &[T], _index: usize) {}
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::arch::x86_64::*;

    use super::{Kernel, Simd};
    use burn::tensor::{bf16, f16};

    /// Proof that the CPU has AVX2, FMA and F16C.
    #[derive(Clone, Copy, Debug)]
    pub(in super::super) struct Avx2(());

    /// Proof that the CPU has AVX-512 F, BW, DQ and VL.
    #[derive(Clone, Copy, Debug)]
    pub(in super::super) struct Avx512(());

    impl Avx2 {
        pub(super) fn detect() -> Option<Self> {
            let found = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            found.then_some(Self(()))
        }

        #[inline]
        pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
            #[target_feature(enable = "avx2,fma,f16c")]
            fn compiled<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
                kernel.run(simd)
            }
            // SAFETY: an `Avx2` exists only on a CPU with these instructions.
            unsafe { compiled(self, kernel) }
        }
    }

    impl Avx512 {
        pub(super) fn detect() -> Option<Self> {
            let found = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && Avx2::detect().is_some();
            found.then_some(Self(()))
        }

        #[inline]
        pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            fn compiled<K: Kernel>(simd: Avx512, kernel: K) -> K::Output {
                kernel.run(simd)
            }
            // SAFETY: an `Avx512` exists only on a CPU with these instructions.
            unsafe { compiled(self, kernel) }
        }
    }

    /// The prefetch of both. The address is not read, so it may lie anywhere.
    #[inline(always)]
    fn prefetch<T>(slice: &[T], index: usize) {
        let address = slice.as_ptr().wrapping_add(index);
        // SAFETY: SSE is part of x86-64, and a prefetch of any address has no effect but on speed.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }

    /// A method whose body uses intrinsics.
    ///
    /// SAFETY of every `unsafe` block that this makes: `self` proves that the CPU has the instructions; each pointer comes from a slice that was cut
    /// to the length of the access right before, and the accesses need no alignment.
    macro_rules! intrinsics {
        ($(fn $name:ident(self $(, $arg:ident: $kind:ty)*) $(-> $out:ty)? $body:block)*) => {
            $(#[inline(always)]
            fn $name(self $(, $arg: $kind)*) $(-> $out)? {
                unsafe { $body }
            })*
        };
    }

    /// For each mask of 8 lanes, the lanes that are set and then zeros.
    static COMPRESS: [[u32; 8]; 256] = {
        let mut table = [[0; 8]; 256];
        let mut mask = 0;
        while mask < 256 {
            let (mut lane, mut count) = (0, 0);
            while lane < 8 {
                if mask >> lane & 1 == 1 {
                    table[mask][count] = lane;
                    count += 1;
                }
                lane += 1;
            }
            mask += 1;
        }
        table
    };

    impl Simd for Avx2 {
        type F = __m256;
        const LANES: usize = 8;
        const HEADS: usize = 2;
        const EXP_ZERO: f32 = super::Portable::EXP_ZERO;

        intrinsics! {
            fn splat(self, value: f32) -> __m256 {
                _mm256_set1_ps(value)
            }
            fn load(self, from: &[f32]) -> __m256 {
                _mm256_loadu_ps(from[..8].as_ptr())
            }
            fn load_f16(self, from: &[f16]) -> __m256 {
                _mm256_cvtph_ps(_mm_loadu_si128(from[..8].as_ptr().cast()))
            }
            fn load_bf16(self, from: &[bf16]) -> __m256 {
                let halves = _mm_loadu_si128(from[..8].as_ptr().cast());
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
            }
            fn bytes(self, words: &[u32]) -> __m256 {
                let bytes = _mm_loadl_epi64(words[..2].as_ptr().cast());
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes))
            }
            fn nibbles(self, words: &[u32], code: usize) -> __m256 {
                let words = _mm256_loadu_si256(words[..8].as_ptr().cast());
                let shifted = _mm256_srlv_epi32(words, _mm256_set1_epi32(4 * code as i32));
                _mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32(15)))
            }
            fn store(self, value: __m256, to: &mut [f32]) {
                _mm256_storeu_ps(to[..8].as_mut_ptr(), value)
            }
            fn add(self, a: __m256, b: __m256) -> __m256 {
                _mm256_add_ps(a, b)
            }
            fn sub(self, a: __m256, b: __m256) -> __m256 {
                _mm256_sub_ps(a, b)
            }
            fn mul(self, a: __m256, b: __m256) -> __m256 {
                _mm256_mul_ps(a, b)
            }
            fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
                _mm256_fmadd_ps(a, b, c)
            }
            fn max(self, a: __m256, b: __m256) -> __m256 {
                _mm256_max_ps(a, b)
            }
            fn min(self, a: __m256, b: __m256) -> __m256 {
                _mm256_min_ps(a, b)
            }
            fn round(self, a: __m256) -> __m256 {
                _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
            }
            fn scale(self, a: __m256, n: __m256) -> __m256 {
                let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
            }
            fn sum(self, a: __m256) -> f32 {
                let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
            }
            fn sums(self, a: [__m256; 4]) -> [f32; 4] {
                let low = _mm256_hadd_ps(a[0], a[1]);
                let high = _mm256_hadd_ps(a[2], a[3]);
                let both = _mm256_hadd_ps(low, high);
                let sums = _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps::<1>(both));
                let mut out = [0.0; 4];
                _mm_storeu_ps(out.as_mut_ptr(), sums);
                out
            }
            fn largest(self, a: __m256) -> f32 {
                let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
                let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
            }
            fn store_order(self, value: __m256, to: &mut [u32]) {
                let bits = _mm256_castps_si256(value);
                let flip = _mm256_or_si256(_mm256_srai_epi32::<31>(bits), _mm256_set1_epi32(i32::MIN));
                _mm256_storeu_si256(to[..8].as_mut_ptr().cast(), _mm256_xor_si256(bits, flip))
            }
            fn at_least(self, keys: &[u32], threshold: u32, first: u32, kept: &mut [u32], indices: &mut [u32]) -> usize {
                let (keys, kept, indices) = (&keys[..8], &mut kept[..8], &mut indices[..8]);
                let vector = _mm256_loadu_si256(keys.as_ptr().cast());
                let larger = _mm256_max_epu32(vector, _mm256_set1_epi32(threshold as i32));
                let mask = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(vector, larger))) as usize;
                // What is kept goes to the front without a branch on how many there are.
                let lanes = _mm256_loadu_si256(COMPRESS[mask].as_ptr().cast());
                let from = _mm256_add_epi32(lanes, _mm256_set1_epi32(first as i32));
                _mm256_storeu_si256(kept.as_mut_ptr().cast(), _mm256_permutevar8x32_epi32(vector, lanes));
                _mm256_storeu_si256(indices.as_mut_ptr().cast(), from);
                mask.count_ones() as usize
            }
        }

        #[inline(always)]
        fn prefetch<T>(self, slice: &[T], index: usize) {
            prefetch(slice, index)
        }
    }

    impl Simd for Avx512 {
        type F = __m512;
        const LANES: usize = 16;
        const HEADS: usize = 4;
        // Half of the smallest subnormal number rounds to 0.
        const EXP_ZERO: f32 = -104.0;

        intrinsics! {
            fn splat(self, value: f32) -> __m512 {
                _mm512_set1_ps(value)
            }
            fn load(self, from: &[f32]) -> __m512 {
                _mm512_loadu_ps(from[..16].as_ptr())
            }
            fn load_f16(self, from: &[f16]) -> __m512 {
                _mm512_cvtph_ps(_mm256_loadu_si256(from[..16].as_ptr().cast()))
            }
            fn load_bf16(self, from: &[bf16]) -> __m512 {
                let halves = _mm256_loadu_si256(from[..16].as_ptr().cast());
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
            }
            fn bytes(self, words: &[u32]) -> __m512 {
                let bytes = _mm_loadu_si128(words[..4].as_ptr().cast());
                _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))
            }
            fn nibbles(self, words: &[u32], code: usize) -> __m512 {
                // A permutation looks at the lowest four bits of its index alone: the table of the sixteen values saves the mask and the conversion.
                let values = _mm512_setr_ps(0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.);
                let words = _mm512_loadu_si512(words[..16].as_ptr().cast());
                let shifted = _mm512_srlv_epi32(words, _mm512_set1_epi32(4 * code as i32));
                _mm512_permutexvar_ps(shifted, values)
            }
            fn store(self, value: __m512, to: &mut [f32]) {
                _mm512_storeu_ps(to[..16].as_mut_ptr(), value)
            }
            fn add(self, a: __m512, b: __m512) -> __m512 {
                _mm512_add_ps(a, b)
            }
            fn sub(self, a: __m512, b: __m512) -> __m512 {
                _mm512_sub_ps(a, b)
            }
            fn mul(self, a: __m512, b: __m512) -> __m512 {
                _mm512_mul_ps(a, b)
            }
            fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
                _mm512_fmadd_ps(a, b, c)
            }
            fn max(self, a: __m512, b: __m512) -> __m512 {
                _mm512_max_ps(a, b)
            }
            fn min(self, a: __m512, b: __m512) -> __m512 {
                _mm512_min_ps(a, b)
            }
            fn round(self, a: __m512) -> __m512 {
                _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
            }
            fn scale(self, a: __m512, n: __m512) -> __m512 {
                _mm512_scalef_ps(a, n)
            }
            fn sum(self, a: __m512) -> f32 {
                _mm512_reduce_add_ps(a)
            }
            fn sums(self, a: [__m512; 4]) -> [f32; 4] {
                let ab = _mm512_add_ps(_mm512_unpacklo_ps(a[0], a[1]), _mm512_unpackhi_ps(a[0], a[1]));
                let cd = _mm512_add_ps(_mm512_unpacklo_ps(a[2], a[3]), _mm512_unpackhi_ps(a[2], a[3]));
                let all = _mm512_add_ps(_mm512_shuffle_ps::<0x44>(ab, cd), _mm512_shuffle_ps::<0xee>(ab, cd));
                let half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps::<1>(all));
                let sums = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
                let mut out = [0.0; 4];
                _mm_storeu_ps(out.as_mut_ptr(), sums);
                out
            }
            fn largest(self, a: __m512) -> f32 {
                _mm512_reduce_max_ps(a)
            }
            fn store_order(self, value: __m512, to: &mut [u32]) {
                let bits = _mm512_castps_si512(value);
                let flip = _mm512_or_si512(_mm512_srai_epi32::<31>(bits), _mm512_set1_epi32(i32::MIN));
                _mm512_storeu_si512(to[..16].as_mut_ptr().cast(), _mm512_xor_si512(bits, flip))
            }
            fn at_least(self, keys: &[u32], threshold: u32, first: u32, kept: &mut [u32], indices: &mut [u32]) -> usize {
                let (keys, kept, indices) = (&keys[..16], &mut kept[..16], &mut indices[..16]);
                let vector = _mm512_loadu_si512(keys.as_ptr().cast());
                let mask = _mm512_cmpge_epu32_mask(vector, _mm512_set1_epi32(threshold as i32));
                let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
                let from = _mm512_add_epi32(lanes, _mm512_set1_epi32(first as i32));
                // Compressed in registers and stored whole: a compressing store is slow on some CPUs.
                _mm512_storeu_si512(kept.as_mut_ptr().cast(), _mm512_maskz_compress_epi32(mask, vector));
                _mm512_storeu_si512(indices.as_mut_ptr().cast(), _mm512_maskz_compress_epi32(mask, from));
                mask.count_ones() as usize
            }
        }

        #[inline(always)]
        fn prefetch<T>(self, slice: &[T], index: usize) {
            prefetch(slice, index)
        }
    }
}
