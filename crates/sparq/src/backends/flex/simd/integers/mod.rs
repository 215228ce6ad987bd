//! Products of bytes on the instruction sets of the CPU, for weights in blocks.
//!
//! A vector of bytes consists of parts of 32 bytes: two with AVX-512, and one otherwise.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use super::{Level, Simd};

/// A computation on bytes that is compiled for each instruction set.
pub(in super::super) trait IntegerKernel {
    /// Runs the computation. Must be `#[inline(always)]`.
    fn run<S: Integers>(self, simd: S);
}

/// Vectors of `4 * LANES` bytes, and of `LANES` integers of 32 bits.
///
/// Loads panic if the slice is too short.
pub(in super::super) trait Integers: Simd {
    type Bytes: Copy;
    type Sums: Copy;
    /// Four numbers.
    type Four: Copy;
    /// Parts of a vector of bytes, 1 or 2.
    const PARTS: usize = Self::LANES / 8;
    /// Rows of x whose sums of integers and of floats fit in the registers.
    const ROWS: usize;

    /// Loads `4 * LANES` bytes.
    fn load_bytes(self, from: &[u8]) -> Self::Bytes;
    /// Loads parts of 32 bytes, `stride` bytes apart.
    fn load_parts(self, from: &[u8], stride: usize) -> Self::Bytes;
    /// Loads 16 bytes for each part, `stride` bytes apart: the lower halves of the bytes, then the
    /// upper ones.
    fn load_nibbles(self, from: &[u8], stride: usize) -> Self::Bytes;
    /// Loads 16 bytes for each half of a part, `stride` bytes apart.
    fn load_halves(self, from: &[u8], stride: usize) -> Self::Bytes;
    /// Loads the same four bytes into all lanes.
    fn splat_word(self, from: &[u8]) -> Self::Bytes;
    fn store_bytes(self, value: Self::Bytes, to: &mut [u8]);
    /// Returns the lower half of each byte.
    fn low_nibbles(self, value: Self::Bytes) -> Self::Bytes;
    /// Returns the upper half of each byte.
    fn high_nibbles(self, value: Self::Bytes) -> Self::Bytes;
    /// Returns for each byte `(byte >> shift & mask) << 4`, with a shift for each part and a mask
    /// below 16.
    fn upper_bits(self, value: Self::Bytes, shift: [u32; 2], mask: u8) -> Self::Bytes;
    /// Returns 16 for each byte whose bit is set in the word of its part, and 0 for others.
    fn fifth_bits(self, words: [u32; 2]) -> Self::Bytes;
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Inverts the highest bit of each byte: adds 128 to signed bytes.
    fn flip(self, value: Self::Bytes) -> Self::Bytes;

    fn zeros(self) -> Self::Sums;
    /// Adds to each lane the products of four unsigned `codes` with four signed bytes of `x`, which
    /// are not -128. Codes are below 128 unless `WIDE`.
    fn add_products<const WIDE: bool>(
        self,
        sums: Self::Sums,
        codes: Self::Bytes,
        x: Self::Bytes,
    ) -> Self::Sums;
    fn to_floats(self, sums: Self::Sums) -> Self::F;

    /// Widens four f16 from their bits.
    fn four_halves(self, bits: [u16; 4]) -> Self::Four;
    /// Converts four unsigned bytes.
    fn four_unsigned(self, bytes: u32) -> Self::Four;
    /// Converts four signed bytes.
    fn four_signed(self, bytes: u32) -> Self::Four;
    fn four_splat(self, value: f32) -> Self::Four;
    fn four_load(self, from: &[f32]) -> Self::Four;
    /// Loads two numbers, each for two lanes.
    fn four_doubled(self, from: &[f32]) -> Self::Four;
    fn four_store(self, value: Self::Four, to: &mut [f32]);
    fn four_mul(self, a: Self::Four, b: Self::Four) -> Self::Four;
    /// Returns a b + c.
    fn four_mul_add(self, a: Self::Four, b: Self::Four, c: Self::Four) -> Self::Four;
    /// Returns the sum of each four.
    fn four_sums(self, fours: [Self::Four; 4]) -> [f32; 4];
    /// Returns number `first` for the first eight lanes, and `second` for the others.
    fn spread_two(self, values: Self::Four, first: usize, second: usize) -> Self::F;
    /// Returns the numbers from `first` on for four lanes each.
    fn spread_four(self, values: Self::Four, first: usize) -> Self::F;
    /// Stores each lane as a signed byte, rounded to the nearest integer, ties to even.
    ///
    /// Lanes are between -128 and 127; the byte of a NaN is unspecified.
    fn store_rounded(self, value: Self::F, to: &mut [u8]);
}

impl Level {
    /// Runs the kernel compiled for this instruction set, with its products of bytes.
    #[inline]
    pub(in super::super) fn run_integers<K: IntegerKernel>(self, kernel: K) {
        match self {
            Level::Portable(simd) => kernel.run(simd),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(simd) => simd.run_integers(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(simd) => simd.avx2().run_integers(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Vnni(simd) => simd.run_integers(kernel),
        }
    }
}

#[cfg(test)]
mod tests;
