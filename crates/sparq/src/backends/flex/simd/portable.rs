//! Plain Rust for any CPU, vectorised by the compiler.

use burn::tensor::{bf16, f16};

use super::{Simd, sort_key};

/// The instruction set that the binary is compiled for.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Portable;

type Lanes = [f32; 8];

/// Builds a vector from its lanes, in a plain loop: a closure would not reliably be inlined.
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
    // AArch64 has twice the vector registers of x86-64 without AVX-512.
    const TILE: usize = if cfg!(target_arch = "aarch64") { 3 } else { 1 };
    const VECTORS: usize = 2;
    const SUM_ORDER: &'static [usize] = &[0, 4, 2, 6, 1, 5, 3, 7];
    const SUMS_ORDER: &'static [usize] = Self::SUM_ORDER;
    // At n = -127 the exponent field is 0.
    const EXP_UNDERFLOW: f32 = -88.03;

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
    fn load_u8(self, words: &[u32]) -> Lanes {
        let words = &words[..2];
        lanes!(i => ((words[i / 4] >> (8 * (i % 4))) & 255) as f32)
    }
    #[inline(always)]
    fn load_u4(self, words: &[u32], code: usize) -> Lanes {
        let words = &words[..8];
        lanes!(i => ((words[i] >> (4 * code)) & 15) as f32)
    }
    #[inline(always)]
    fn store(self, value: Lanes, to: &mut [f32]) {
        to[..8].copy_from_slice(&value);
    }
    #[inline(always)]
    fn store_f16(self, value: Lanes, to: &mut [f16]) {
        let to = &mut to[..8];
        let mut i = 0;
        while i < 8 {
            to[i] = f16::from_f32(value[i]);
            i += 1;
        }
    }
    #[inline(always)]
    fn store_bf16(self, value: Lanes, to: &mut [bf16]) {
        let to = &mut to[..8];
        let mut i = 0;
        while i < 8 {
            to[i] = bf16::from_f32(value[i]);
            i += 1;
        }
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
    fn div(self, a: Lanes, b: Lanes) -> Lanes {
        lanes!(i => a[i] / b[i])
    }
    #[inline(always)]
    fn mul_add(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        // Without the instruction, f32::mul_add calls the C library for every lane.
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
        // Adding and subtracting 1.5 * 2^23 rounds magnitudes below 2^22, without the library call
        // of f32::round_ties_even.
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
    fn store_sort_keys(self, value: Lanes, to: &mut [u32]) {
        let to = &mut to[..8];
        let mut i = 0;
        while i < 8 {
            to[i] = sort_key(value[i]);
            i += 1;
        }
    }
    #[inline(always)]
    fn compress_at_least(
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
    fn count_at_least(self, keys: &[u32], threshold: u32) -> usize {
        let keys = &keys[..8];
        let mut count = 0;
        let mut i = 0;
        while i < 8 {
            count += u32::from(keys[i] >= threshold);
            i += 1;
        }
        count as usize
    }

    #[inline(always)]
    fn prefetch<T>(self, _slice: &[T], _index: usize) {}
}
