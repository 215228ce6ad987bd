//! AVX2 and AVX-512.

use std::arch::x86_64::*;

use super::{Kernel, Portable, Simd};
use burn::tensor::{bf16, f16};

/// Proof that the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Avx2(());

/// Proof that the CPU has AVX-512 F, BW, DQ and VL, and VNNI if `VNNI`.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Avx512<const VNNI: bool>(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("popcnt");
        found.then_some(Self(()))
    }

    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c,popcnt")]
        fn compiled<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: an `Avx2` exists only on a CPU with these instructions.
        unsafe { compiled(self, kernel) }
    }
}

impl Avx512<false> {
    pub(super) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && Avx2::detect().is_some();
        found.then_some(Self(()))
    }

    /// Returns the smaller instruction set, which every such CPU has.
    pub(super) fn avx2(self) -> Avx2 {
        Avx2(())
    }

    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")]
        fn compiled<K: Kernel>(simd: Avx512<false>, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: an `Avx512` exists only on a CPU with these instructions.
        unsafe { compiled(self, kernel) }
    }
}

impl Avx512<true> {
    pub(super) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512vnni");
        Avx512::<false>::detect()
            .filter(|_| found)
            .map(|_| Self(()))
    }

    /// Returns the instruction set without VNNI.
    pub(super) fn without_vnni(self) -> Avx512<false> {
        Avx512(())
    }
}

/// Prefetches for both instruction sets. The address is never read, so it may be out of bounds.
#[inline(always)]
pub(super) fn prefetch<T>(address: *const T) {
    // SAFETY: SSE is part of x86-64, and prefetching any address only affects speed.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
}

/// Defines methods whose bodies use intrinsics.
///
/// SAFETY of every `unsafe` block here: `self` proves that the CPU has the instructions. Each
/// pointer comes from a slice that was just cut to the length of the access, and no access needs
/// alignment.
macro_rules! intrinsics {
    ($(fn $name:ident(self $(, $arg:ident: $kind:ty)*) $(-> $out:ty)? $body:block)*) => {
        $(#[inline(always)]
        fn $name(self $(, $arg: $kind)*) $(-> $out)? {
            unsafe { $body }
        })*
    };
}

/// For each mask of 8 lanes, the indices of the lanes that are set, then zeros.
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
    const TILE: usize = 3;
    const VECTORS: usize = 2;
    const SUM_ORDER: &'static [usize] = &[0, 4, 2, 6, 1, 5, 3, 7];
    const SUMS_ORDER: &'static [usize] = &[0, 1, 2, 3, 4, 5, 6, 7];
    const EXP_UNDERFLOW: f32 = Portable::EXP_UNDERFLOW;

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
        fn load_u8(self, words: &[u32]) -> __m256 {
            let bytes = _mm_loadl_epi64(words[..2].as_ptr().cast());
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes))
        }
        fn load_u4(self, words: &[u32], code: usize) -> __m256 {
            let words = _mm256_loadu_si256(words[..8].as_ptr().cast());
            let shifted = _mm256_srlv_epi32(words, _mm256_set1_epi32(4 * code as i32));
            _mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32(15)))
        }
        fn store(self, value: __m256, to: &mut [f32]) {
            _mm256_storeu_ps(to[..8].as_mut_ptr(), value)
        }
        fn store_f16(self, value: __m256, to: &mut [f16]) {
            let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value);
            _mm_storeu_si128(to[..8].as_mut_ptr().cast(), halves)
        }
        fn store_bf16(self, value: __m256, to: &mut [bf16]) {
            let bits = _mm256_castps_si256(value);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            // Rounding could turn a NaN into infinity.
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(value, value));
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
            let rounded = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
            let packed = _mm256_packus_epi32(rounded, rounded);
            let halves = _mm256_castsi256_si128(_mm256_permute4x64_epi64::<0b1000>(packed));
            _mm_storeu_si128(to[..8].as_mut_ptr().cast(), halves)
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
        fn div(self, a: __m256, b: __m256) -> __m256 {
            _mm256_div_ps(a, b)
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
        fn store_sort_keys(self, value: __m256, to: &mut [u32]) {
            let bits = _mm256_castps_si256(value);
            let flip = _mm256_or_si256(_mm256_srai_epi32::<31>(bits), _mm256_set1_epi32(i32::MIN));
            _mm256_storeu_si256(to[..8].as_mut_ptr().cast(), _mm256_xor_si256(bits, flip))
        }
        fn compress_at_least(
            self,
            keys: &[u32],
            threshold: u32,
            first: u32,
            kept: &mut [u32],
            indices: &mut [u32]
        ) -> usize {
            let (keys, kept, indices) = (&keys[..8], &mut kept[..8], &mut indices[..8]);
            let vector = _mm256_loadu_si256(keys.as_ptr().cast());
            let larger = _mm256_max_epu32(vector, _mm256_set1_epi32(threshold as i32));
            let equal = _mm256_castsi256_ps(_mm256_cmpeq_epi32(vector, larger));
            let mask = _mm256_movemask_ps(equal) as usize;
            // A table lookup moves the kept lanes to the front without a branch.
            let lanes = _mm256_loadu_si256(COMPRESS[mask].as_ptr().cast());
            let from = _mm256_add_epi32(lanes, _mm256_set1_epi32(first as i32));
            let vector = _mm256_permutevar8x32_epi32(vector, lanes);
            _mm256_storeu_si256(kept.as_mut_ptr().cast(), vector);
            _mm256_storeu_si256(indices.as_mut_ptr().cast(), from);
            mask.count_ones() as usize
        }
        fn count_at_least(self, keys: &[u32], threshold: u32) -> usize {
            let vector = _mm256_loadu_si256(keys[..8].as_ptr().cast());
            let larger = _mm256_max_epu32(vector, _mm256_set1_epi32(threshold as i32));
            let equal = _mm256_castsi256_ps(_mm256_cmpeq_epi32(vector, larger));
            _mm256_movemask_ps(equal).count_ones() as usize
        }
    }

    #[inline(always)]
    fn prefetch<T>(self, slice: &[T], index: usize) {
        prefetch(slice.as_ptr().wrapping_add(index))
    }
}

impl<const VNNI: bool> Simd for Avx512<VNNI> {
    type F = __m512;
    const LANES: usize = 16;
    const HEADS: usize = 4;
    const TILE: usize = 6;
    const VECTORS: usize = 4;
    const SUM_ORDER: &'static [usize] = &[0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15];
    const SUMS_ORDER: &'static [usize] = &[0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15];
    // Half of the smallest subnormal number rounds to 0.
    const EXP_UNDERFLOW: f32 = -104.0;

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
        fn load_u8(self, words: &[u32]) -> __m512 {
            let bytes = _mm_loadu_si128(words[..4].as_ptr().cast());
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))
        }
        fn load_u4(self, words: &[u32], code: usize) -> __m512 {
            // A permutation uses only the lowest four bits of each index, so a table of the sixteen
            // values replaces mask and conversion.
            let values = _mm512_setr_ps(
                0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.,
            );
            let words = _mm512_loadu_si512(words[..16].as_ptr().cast());
            let shifted = _mm512_srlv_epi32(words, _mm512_set1_epi32(4 * code as i32));
            _mm512_permutexvar_ps(shifted, values)
        }
        fn store(self, value: __m512, to: &mut [f32]) {
            _mm512_storeu_ps(to[..16].as_mut_ptr(), value)
        }
        fn store_f16(self, value: __m512, to: &mut [f16]) {
            let halves =
                _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(value);
            _mm256_storeu_si256(to[..16].as_mut_ptr().cast(), halves)
        }
        fn store_bf16(self, value: __m512, to: &mut [bf16]) {
            let bits = _mm512_castps_si512(value);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            // Rounding could turn a NaN into infinity.
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(value, value);
            let quiet = _mm512_set1_epi32(0x0040_0000);
            let rounded = _mm512_mask_or_epi32(rounded, nan, bits, quiet);
            let halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded));
            _mm256_storeu_si256(to[..16].as_mut_ptr().cast(), halves)
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
        fn div(self, a: __m512, b: __m512) -> __m512 {
            _mm512_div_ps(a, b)
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
            let (low, high) = (_mm512_shuffle_ps::<0x44>(ab, cd), _mm512_shuffle_ps::<0xee>(ab, cd));
            let all = _mm512_add_ps(low, high);
            let half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps::<1>(all));
            let sums = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            let mut out = [0.0; 4];
            _mm_storeu_ps(out.as_mut_ptr(), sums);
            out
        }
        fn largest(self, a: __m512) -> f32 {
            _mm512_reduce_max_ps(a)
        }
        fn store_sort_keys(self, value: __m512, to: &mut [u32]) {
            let bits = _mm512_castps_si512(value);
            let flip = _mm512_or_si512(_mm512_srai_epi32::<31>(bits), _mm512_set1_epi32(i32::MIN));
            _mm512_storeu_si512(to[..16].as_mut_ptr().cast(), _mm512_xor_si512(bits, flip))
        }
        fn compress_at_least(
            self,
            keys: &[u32],
            threshold: u32,
            first: u32,
            kept: &mut [u32],
            indices: &mut [u32]
        ) -> usize {
            let (keys, kept, indices) = (&keys[..16], &mut kept[..16], &mut indices[..16]);
            let vector = _mm512_loadu_si512(keys.as_ptr().cast());
            let mask = _mm512_cmpge_epu32_mask(vector, _mm512_set1_epi32(threshold as i32));
            let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            let from = _mm512_add_epi32(lanes, _mm512_set1_epi32(first as i32));
            // Compressed in registers and stored in full: a compressing store is slow on some CPUs.
            let vector = _mm512_maskz_compress_epi32(mask, vector);
            let from = _mm512_maskz_compress_epi32(mask, from);
            _mm512_storeu_si512(kept.as_mut_ptr().cast(), vector);
            _mm512_storeu_si512(indices.as_mut_ptr().cast(), from);
            mask.count_ones() as usize
        }
        fn count_at_least(self, keys: &[u32], threshold: u32) -> usize {
            let vector = _mm512_loadu_si512(keys[..16].as_ptr().cast());
            let mask = _mm512_cmpge_epu32_mask(vector, _mm512_set1_epi32(threshold as i32));
            mask.count_ones() as usize
        }
    }

    #[inline(always)]
    fn prefetch<T>(self, slice: &[T], index: usize) {
        prefetch(slice.as_ptr().wrapping_add(index))
    }
}
