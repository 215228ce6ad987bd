//! Plain Rust, and NEON for products.

use burn::tensor::f16;

use super::Integers;
use crate::backends::flex::simd::Portable;

/// Builds an array from its elements, in a plain loop: a closure would not reliably be inlined.
macro_rules! each {
    ($len:literal, $i:ident => $value:expr) => {{
        let mut array = [Default::default(); $len];
        let mut $i = 0;
        while $i < $len {
            array[$i] = $value;
            $i += 1;
        }
        array
    }};
}

impl Integers for Portable {
    type Bytes = [u8; 32];
    type Sums = [i32; 8];
    type Four = [f32; 4];
    const ROWS: usize = if cfg!(target_arch = "aarch64") { 4 } else { 2 };

    #[inline(always)]
    fn load_bytes(self, from: &[u8]) -> [u8; 32] {
        self.load_parts(from, 0)
    }
    #[inline(always)]
    fn load_parts(self, from: &[u8], _stride: usize) -> [u8; 32] {
        let from = &from[..32];
        each!(32, i => from[i])
    }
    #[inline(always)]
    fn load_nibbles(self, from: &[u8], _stride: usize) -> [u8; 32] {
        let from = &from[..16];
        each!(32, i => if i < 16 { from[i] & 15 } else { from[i - 16] >> 4 })
    }
    #[inline(always)]
    fn load_halves(self, from: &[u8], stride: usize) -> [u8; 32] {
        let (first, second) = (&from[..16], &from[stride..][..16]);
        each!(32, i => if i < 16 { first[i] } else { second[i - 16] })
    }
    #[inline(always)]
    fn splat_word(self, from: &[u8]) -> [u8; 32] {
        let from = &from[..4];
        each!(32, i => from[i % 4])
    }
    #[inline(always)]
    fn store_bytes(self, value: [u8; 32], to: &mut [u8]) {
        to[..32].copy_from_slice(&value);
    }
    #[inline(always)]
    fn low_nibbles(self, value: [u8; 32]) -> [u8; 32] {
        each!(32, i => value[i] & 15)
    }
    #[inline(always)]
    fn high_nibbles(self, value: [u8; 32]) -> [u8; 32] {
        each!(32, i => value[i] >> 4)
    }
    #[inline(always)]
    fn upper_bits(self, value: [u8; 32], shift: [u32; 2], mask: u8) -> [u8; 32] {
        each!(32, i => (value[i] >> shift[0] & mask) << 4)
    }
    #[inline(always)]
    fn fifth_bits(self, words: [u32; 2]) -> [u8; 32] {
        each!(32, i => ((words[0] >> i & 1) << 4) as u8)
    }
    #[inline(always)]
    fn or(self, a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
        each!(32, i => a[i] | b[i])
    }
    #[inline(always)]
    fn flip(self, value: [u8; 32]) -> [u8; 32] {
        each!(32, i => value[i] ^ 128)
    }

    #[inline(always)]
    fn zeros(self) -> [i32; 8] {
        [0; 8]
    }
    #[inline(always)]
    fn add_products<const WIDE: bool>(
        self,
        sums: [i32; 8],
        codes: [u8; 32],
        x: [u8; 32],
    ) -> [i32; 8] {
        #[cfg(target_arch = "aarch64")]
        if !WIDE {
            return neon::add_products(sums, codes, x);
        }
        let product = |i: usize| i32::from(codes[i]) * i32::from(x[i] as i8);
        each!(8, lane => {
            let first = 4 * lane;
            sums[lane] + product(first) + product(first + 1) + product(first + 2) + product(first + 3)
        })
    }
    #[inline(always)]
    fn to_floats(self, sums: [i32; 8]) -> [f32; 8] {
        each!(8, i => sums[i] as f32)
    }

    #[inline(always)]
    fn four_halves(self, bits: [u16; 4]) -> [f32; 4] {
        each!(4, i => f16::from_bits(bits[i]).to_f32())
    }
    #[inline(always)]
    fn four_unsigned(self, bytes: u32) -> [f32; 4] {
        each!(4, i => (bytes >> (8 * i)) as u8 as f32)
    }
    #[inline(always)]
    fn four_signed(self, bytes: u32) -> [f32; 4] {
        each!(4, i => (bytes >> (8 * i)) as i8 as f32)
    }
    #[inline(always)]
    fn four_splat(self, value: f32) -> [f32; 4] {
        [value; 4]
    }
    #[inline(always)]
    fn four_load(self, from: &[f32]) -> [f32; 4] {
        let from = &from[..4];
        each!(4, i => from[i])
    }
    #[inline(always)]
    fn four_doubled(self, from: &[f32]) -> [f32; 4] {
        [from[0], from[0], from[1], from[1]]
    }
    #[inline(always)]
    fn four_store(self, value: [f32; 4], to: &mut [f32]) {
        to[..4].copy_from_slice(&value);
    }
    #[inline(always)]
    fn four_mul(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        each!(4, i => a[i] * b[i])
    }
    #[inline(always)]
    fn four_mul_add(self, a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        each!(4, i => a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn four_sums(self, fours: [[f32; 4]; 4]) -> [f32; 4] {
        each!(4, i => (fours[i][0] + fours[i][1]) + (fours[i][2] + fours[i][3]))
    }
    #[inline(always)]
    fn spread_two(self, values: [f32; 4], first: usize, _second: usize) -> [f32; 8] {
        [values[first]; 8]
    }
    #[inline(always)]
    fn spread_four(self, values: [f32; 4], first: usize) -> [f32; 8] {
        each!(8, i => values[first + i / 4])
    }
    #[inline(always)]
    fn store_rounded(self, value: [f32; 8], to: &mut [u8]) {
        let bytes: [u8; 8] = each!(8, i => value[i].round_ties_even() as i8 as u8);
        to[..8].copy_from_slice(&bytes);
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::*;

    /// Adds the products of four neighbours to each lane. Codes are below 128.
    #[inline(always)]
    pub(super) fn add_products(sums: [i32; 8], codes: [u8; 32], x: [u8; 32]) -> [i32; 8] {
        // SAFETY: NEON is part of AArch64, and every load and store is within its array.
        unsafe {
            let mut added = [0; 8];
            for half in 0..2 {
                let codes = vld1q_s8(codes[16 * half..][..16].as_ptr().cast());
                let x = vld1q_s8(x[16 * half..][..16].as_ptr().cast());
                let low = vmull_s8(vget_low_s8(codes), vget_low_s8(x));
                let high = vmull_high_s8(codes, x);
                // Pairs of products fit in 16 bits: 2 * 127 * 127 is below 2^15.
                let pairs = vpaddq_s16(low, high);
                let sums = vld1q_s32(sums[4 * half..][..4].as_ptr());
                let to = added[4 * half..][..4].as_mut_ptr();
                vst1q_s32(to, vpadalq_s16(sums, pairs));
            }
            added
        }
    }
}
