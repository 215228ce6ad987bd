//! AVX2, and AVX-512 with VNNI.

use std::arch::x86_64::*;

use super::{IntegerKernel, Integers};
use crate::backends::flex::simd::x86::{Avx2, Avx512};

/// Defines methods whose bodies use intrinsics.
///
/// SAFETY of every `unsafe` block here: `self` proves that the CPU has the instructions. Each
/// pointer comes from a slice or an array of at least the length of the access, and no access needs
/// alignment.
macro_rules! intrinsics {
    ($(fn $name:ident(self $(, $arg:ident: $kind:ty)*) $(-> $out:ty)? $body:block)*) => {
        $(#[inline(always)]
        fn $name(self $(, $arg: $kind)*) $(-> $out)? {
            unsafe { $body }
        })*
    };
}

impl Avx2 {
    #[inline]
    pub(super) fn run_integers<K: IntegerKernel>(self, kernel: K) {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn compiled<K: IntegerKernel>(simd: Avx2, kernel: K) {
            kernel.run(simd);
        }
        // SAFETY: an `Avx2` exists only on a CPU with these instructions.
        unsafe { compiled(self, kernel) }
    }
}

impl Avx512<true> {
    #[inline]
    pub(super) fn run_integers<K: IntegerKernel>(self, kernel: K) {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
        fn compiled<K: IntegerKernel>(simd: Avx512<true>, kernel: K) {
            kernel.run(simd);
        }
        // SAFETY: an `Avx512<true>` exists only on a CPU with these instructions.
        unsafe { compiled(self, kernel) }
    }
}

/// Joins four numbers, with shifts: the units for vectors have other work.
#[inline(always)]
fn joined(bits: [u16; 4]) -> u64 {
    let [a, b, c, d] = bits.map(u64::from);
    a | b << 16 | (c | d << 16) << 32
}

impl Integers for Avx2 {
    type Bytes = __m256i;
    type Sums = __m256i;
    type Four = __m128;
    const ROWS: usize = 4;

    intrinsics! {
        fn load_bytes(self, from: &[u8]) -> __m256i {
            _mm256_loadu_si256(from[..32].as_ptr().cast())
        }
        fn load_parts(self, from: &[u8], _stride: usize) -> __m256i {
            _mm256_loadu_si256(from[..32].as_ptr().cast())
        }
        fn load_nibbles(self, from: &[u8], _stride: usize) -> __m256i {
            let bytes = _mm_loadu_si128(from[..16].as_ptr().cast());
            let both = _mm256_set_m128i(_mm_srli_epi16::<4>(bytes), bytes);
            _mm256_and_si256(both, _mm256_set1_epi8(15))
        }
        fn load_halves(self, from: &[u8], stride: usize) -> __m256i {
            let first = _mm_loadu_si128(from[..16].as_ptr().cast());
            _mm256_set_m128i(_mm_loadu_si128(from[stride..][..16].as_ptr().cast()), first)
        }
        fn splat_word(self, from: &[u8]) -> __m256i {
            _mm256_set1_epi32(from[..4].as_ptr().cast::<i32>().read_unaligned())
        }
        fn store_bytes(self, value: __m256i, to: &mut [u8]) {
            _mm256_storeu_si256(to[..32].as_mut_ptr().cast(), value)
        }
        fn low_nibbles(self, value: __m256i) -> __m256i {
            _mm256_and_si256(value, _mm256_set1_epi8(15))
        }
        fn high_nibbles(self, value: __m256i) -> __m256i {
            _mm256_and_si256(_mm256_srli_epi16::<4>(value), _mm256_set1_epi8(15))
        }
        fn upper_bits(self, value: __m256i, shift: [u32; 2], mask: u8) -> __m256i {
            let shifted = _mm256_srl_epi16(value, _mm_cvtsi32_si128(shift[0] as i32));
            let bits = _mm256_and_si256(shifted, _mm256_set1_epi8(mask as i8));
            _mm256_slli_epi16::<4>(bits)
        }
        fn fifth_bits(self, words: [u32; 2]) -> __m256i {
            // Byte i of the result takes byte i / 8 of the word, and from it bit i % 8.
            let source = _mm256_set_epi64x(
                0x0303_0303_0303_0303,
                0x0202_0202_0202_0202,
                0x0101_0101_0101_0101,
                0,
            );
            let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(words[0] as i32), source);
            let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            let set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
            _mm256_and_si256(set, _mm256_set1_epi8(16))
        }
        fn or(self, a: __m256i, b: __m256i) -> __m256i {
            _mm256_or_si256(a, b)
        }
        fn flip(self, value: __m256i) -> __m256i {
            _mm256_xor_si256(value, _mm256_set1_epi8(-128))
        }
        fn zeros(self) -> __m256i {
            _mm256_setzero_si256()
        }
        fn to_floats(self, sums: __m256i) -> __m256 {
            _mm256_cvtepi32_ps(sums)
        }
        fn four_halves(self, bits: [u16; 4]) -> __m128 {
            _mm_cvtph_ps(_mm_cvtsi64_si128(joined(bits) as i64))
        }
        fn four_unsigned(self, bytes: u32) -> __m128 {
            _mm_cvtepi32_ps(_mm_cvtepu8_epi32(_mm_cvtsi32_si128(bytes as i32)))
        }
        fn four_signed(self, bytes: u32) -> __m128 {
            _mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(bytes as i32)))
        }
        fn four_splat(self, value: f32) -> __m128 {
            _mm_set1_ps(value)
        }
        fn four_load(self, from: &[f32]) -> __m128 {
            _mm_loadu_ps(from[..4].as_ptr())
        }
        fn four_doubled(self, from: &[f32]) -> __m128 {
            let two = _mm_castsi128_ps(_mm_loadl_epi64(from[..2].as_ptr().cast()));
            _mm_unpacklo_ps(two, two)
        }
        fn four_store(self, value: __m128, to: &mut [f32]) {
            _mm_storeu_ps(to[..4].as_mut_ptr(), value)
        }
        fn four_mul(self, a: __m128, b: __m128) -> __m128 {
            _mm_mul_ps(a, b)
        }
        fn four_mul_add(self, a: __m128, b: __m128, c: __m128) -> __m128 {
            _mm_fmadd_ps(a, b, c)
        }
        fn four_sums(self, fours: [__m128; 4]) -> [f32; 4] {
            let (low, high) = (_mm_hadd_ps(fours[0], fours[1]), _mm_hadd_ps(fours[2], fours[3]));
            let mut sums = [0.0; 4];
            _mm_storeu_ps(sums.as_mut_ptr(), _mm_hadd_ps(low, high));
            sums
        }
        fn spread_two(self, values: __m128, first: usize, _second: usize) -> __m256 {
            let all = _mm256_castps128_ps256(values);
            _mm256_permutevar8x32_ps(all, _mm256_set1_epi32(first as i32))
        }
        fn spread_four(self, values: __m128, first: usize) -> __m256 {
            let [low, high] = [first as i32, first as i32 + 1];
            let lanes = _mm256_set_epi32(high, high, high, high, low, low, low, low);
            _mm256_permutevar8x32_ps(_mm256_castps128_ps256(values), lanes)
        }
        fn store_rounded(self, value: __m256, to: &mut [u8]) {
            let integers = _mm256_cvtps_epi32(value);
            let (low, high) = (
                _mm256_castsi256_si128(integers),
                _mm256_extracti128_si256::<1>(integers),
            );
            let halves = _mm_packs_epi32(low, high);
            let bytes = _mm_packs_epi16(halves, halves);
            _mm_storel_epi64(to[..8].as_mut_ptr().cast(), bytes)
        }
    }

    #[inline(always)]
    fn add_products<const WIDE: bool>(self, sums: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        // SAFETY: as in `intrinsics!`.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            if !WIDE {
                let pairs = _mm256_maddubs_epi16(codes, x);
                return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, ones));
            }
            // Pairs of whole bytes would exceed 16 bits: the highest bits apart.
            let low = _mm256_and_si256(codes, _mm256_set1_epi8(127));
            let high = _mm256_and_si256(_mm256_srli_epi16::<7>(codes), _mm256_set1_epi8(1));
            let low = _mm256_madd_epi16(_mm256_maddubs_epi16(low, x), ones);
            let high = _mm256_madd_epi16(_mm256_maddubs_epi16(high, x), _mm256_set1_epi16(128));
            _mm256_add_epi32(sums, _mm256_add_epi32(low, high))
        }
    }
}

impl Integers for Avx512<true> {
    type Bytes = __m512i;
    type Sums = __m512i;
    type Four = __m128;
    const ROWS: usize = 8;

    intrinsics! {
        fn load_bytes(self, from: &[u8]) -> __m512i {
            _mm512_loadu_si512(from[..64].as_ptr().cast())
        }
        fn load_parts(self, from: &[u8], stride: usize) -> __m512i {
            let first = _mm256_loadu_si256(from[..32].as_ptr().cast());
            let second = _mm256_loadu_si256(from[stride..][..32].as_ptr().cast());
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second)
        }
        fn load_nibbles(self, from: &[u8], stride: usize) -> __m512i {
            let first = _mm_loadu_si128(from[..16].as_ptr().cast());
            let second = _mm_loadu_si128(from[stride..][..16].as_ptr().cast());
            let both = _mm512_mask_broadcast_i32x4(_mm512_broadcast_i32x4(first), 0xff00, second);
            let shift = _mm512_set_epi64(
                0x0004_0004_0004_0004,
                0x0004_0004_0004_0004,
                0,
                0,
                0x0004_0004_0004_0004,
                0x0004_0004_0004_0004,
                0,
                0,
            );
            _mm512_and_si512(_mm512_srlv_epi16(both, shift), _mm512_set1_epi8(15))
        }
        fn load_halves(self, from: &[u8], stride: usize) -> __m512i {
            let from = &from[..3 * stride + 16];
            let load = |part: usize| _mm_loadu_si128(from[part * stride..][..16].as_ptr().cast());
            let halves = _mm512_castsi128_si512(load(0));
            let halves = _mm512_inserti32x4::<1>(halves, load(1));
            let halves = _mm512_inserti32x4::<2>(halves, load(2));
            _mm512_inserti32x4::<3>(halves, load(3))
        }
        fn splat_word(self, from: &[u8]) -> __m512i {
            _mm512_set1_epi32(from[..4].as_ptr().cast::<i32>().read_unaligned())
        }
        fn store_bytes(self, value: __m512i, to: &mut [u8]) {
            _mm512_storeu_si512(to[..64].as_mut_ptr().cast(), value)
        }
        fn low_nibbles(self, value: __m512i) -> __m512i {
            _mm512_and_si512(value, _mm512_set1_epi8(15))
        }
        fn high_nibbles(self, value: __m512i) -> __m512i {
            _mm512_and_si512(_mm512_srli_epi16::<4>(value), _mm512_set1_epi8(15))
        }
        fn upper_bits(self, value: __m512i, shift: [u32; 2], mask: u8) -> __m512i {
            let first = _mm512_castsi256_si512(_mm256_set1_epi16(shift[0] as i16));
            let counts = _mm512_inserti64x4::<1>(first, _mm256_set1_epi16(shift[1] as i16));
            let shifted = _mm512_srlv_epi16(value, counts);
            let bits = _mm512_and_si512(shifted, _mm512_set1_epi8(mask as i8));
            _mm512_slli_epi16::<4>(bits)
        }
        fn fifth_bits(self, words: [u32; 2]) -> __m512i {
            let mask = u64::from(words[0]) | u64::from(words[1]) << 32;
            _mm512_maskz_set1_epi8(mask, 16)
        }
        fn or(self, a: __m512i, b: __m512i) -> __m512i {
            _mm512_or_si512(a, b)
        }
        fn flip(self, value: __m512i) -> __m512i {
            _mm512_xor_si512(value, _mm512_set1_epi8(-128))
        }
        fn zeros(self) -> __m512i {
            _mm512_setzero_si512()
        }
        fn to_floats(self, sums: __m512i) -> __m512 {
            _mm512_cvtepi32_ps(sums)
        }
        fn four_halves(self, bits: [u16; 4]) -> __m128 {
            _mm_cvtph_ps(_mm_cvtsi64_si128(joined(bits) as i64))
        }
        fn four_unsigned(self, bytes: u32) -> __m128 {
            _mm_cvtepi32_ps(_mm_cvtepu8_epi32(_mm_cvtsi32_si128(bytes as i32)))
        }
        fn four_signed(self, bytes: u32) -> __m128 {
            _mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(bytes as i32)))
        }
        fn four_splat(self, value: f32) -> __m128 {
            _mm_set1_ps(value)
        }
        fn four_load(self, from: &[f32]) -> __m128 {
            _mm_loadu_ps(from[..4].as_ptr())
        }
        fn four_doubled(self, from: &[f32]) -> __m128 {
            let two = _mm_castsi128_ps(_mm_loadl_epi64(from[..2].as_ptr().cast()));
            _mm_unpacklo_ps(two, two)
        }
        fn four_store(self, value: __m128, to: &mut [f32]) {
            _mm_storeu_ps(to[..4].as_mut_ptr(), value)
        }
        fn four_mul(self, a: __m128, b: __m128) -> __m128 {
            _mm_mul_ps(a, b)
        }
        fn four_mul_add(self, a: __m128, b: __m128, c: __m128) -> __m128 {
            _mm_fmadd_ps(a, b, c)
        }
        fn four_sums(self, fours: [__m128; 4]) -> [f32; 4] {
            let (low, high) = (_mm_hadd_ps(fours[0], fours[1]), _mm_hadd_ps(fours[2], fours[3]));
            let mut sums = [0.0; 4];
            _mm_storeu_ps(sums.as_mut_ptr(), _mm_hadd_ps(low, high));
            sums
        }
        fn spread_two(self, values: __m128, first: usize, second: usize) -> __m512 {
            let low = _mm512_castsi256_si512(_mm256_set1_epi32(first as i32));
            let lanes = _mm512_inserti64x4::<1>(low, _mm256_set1_epi32(second as i32));
            _mm512_permutexvar_ps(lanes, _mm512_castps128_ps512(values))
        }
        fn spread_four(self, values: __m128, _first: usize) -> __m512 {
            let lanes = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
            _mm512_permutexvar_ps(lanes, _mm512_castps128_ps512(values))
        }
        fn store_rounded(self, value: __m512, to: &mut [u8]) {
            let bytes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(value));
            _mm_storeu_si128(to[..16].as_mut_ptr().cast(), bytes)
        }
    }

    #[inline(always)]
    fn add_products<const WIDE: bool>(self, sums: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        // SAFETY: as in `intrinsics!`.
        unsafe { _mm512_dpbusd_epi32(sums, codes, x) }
    }
}
