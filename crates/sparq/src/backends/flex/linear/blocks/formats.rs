//! The codes, d and e of each format; a weight is d code + e.

use super::RUN;
use crate::backends::flex::simd::integers::Integers;

/// The most runs of a group, by four.
pub(super) const MAX_FOURS: usize = 4;

/// d and e of each run of a group; those past its runs are unspecified.
pub(super) struct Affine<S: Integers> {
    pub(super) d: [S::Four; MAX_FOURS],
    pub(super) e: [S::Four; MAX_FOURS],
}

impl<S: Integers> Affine<S> {
    #[inline(always)]
    fn zero(simd: S) -> Self {
        let zero = [simd.four_splat(0.0); MAX_FOURS];
        Self { d: zero, e: zero }
    }
}

/// A format, read in groups of blocks.
pub(super) trait Format {
    /// Weights of a group, 128 or 256.
    const WEIGHTS: usize;
    /// Bytes of a group.
    const BYTES: usize;
    /// Weights that share d and e, 32 or 16.
    const RUN: usize = RUN;
    /// Whether codes have 8 bits.
    const WIDE: bool = false;

    /// Returns d and e of each run of a group.
    fn affine<S: Integers>(simd: S, group: &[u8]) -> Affine<S>;

    /// Returns the codes of a vector of a group. Its parts are those of [`place`](Self::place).
    fn codes<S: Integers>(simd: S, group: &[u8], vector: usize) -> S::Bytes;

    /// Adds the products of four codes with four bytes of x to each lane.
    #[inline(always)]
    fn products<S: Integers>(simd: S, sums: S::Sums, codes: S::Bytes, x: S::Bytes) -> S::Sums {
        match Self::WIDE {
            true => simd.add_products::<true>(sums, codes, x),
            false => simd.add_products::<false>(sums, codes, x),
        }
    }

    /// Returns the codes of the first halves of the four blocks of a group, and of the second ones,
    /// for vectors of two parts. `None` for other vectors, and for formats without such halves.
    ///
    /// A lane of both has weights of the same block.
    #[inline(always)]
    fn halves<S: Integers>(_simd: S, _group: &[u8]) -> Option<[S::Bytes; 2]> {
        None
    }

    /// Returns the 32 weights in the first part of a vector, counted in such parts, and the
    /// distance to those of its second part.
    #[inline(always)]
    fn place<S: Integers>(vector: usize) -> (usize, usize) {
        (vector * S::PARTS, 1)
    }
}

/// The second number of a block of 32 weights.
enum Second {
    /// None: a weight is d (code - offset).
    Offset(f32),
    /// e as f16 behind d.
    Minimum,
}

/// Blocks of 32 weights in a group.
const FOUR: usize = 4;

/// Returns the bytes of a block from a place on, and of those behind it.
#[inline(always)]
fn block(group: &[u8], size: usize, block: usize, at: usize) -> &[u8] {
    &group[block * size + at..]
}

/// Returns the f16 at `at` of four blocks.
#[inline(always)]
fn four_halves<S: Integers>(simd: S, group: &[u8], size: usize, at: usize) -> S::Four {
    let mut bits = [0; FOUR];
    for block in 0..FOUR {
        let at = block * size + at;
        bits[block] = half_at(group, at);
    }
    simd.four_halves(bits)
}

#[inline(always)]
fn affine_of_four<S: Integers>(simd: S, group: &[u8], size: usize, second: Second) -> Affine<S> {
    let group = &group[..FOUR * size];
    let mut affine = Affine::zero(simd);
    affine.d[0] = four_halves(simd, group, size, 0);
    affine.e[0] = match second {
        Second::Offset(offset) => simd.four_mul(affine.d[0], simd.four_splat(-offset)),
        Second::Minimum => four_halves(simd, group, size, 2),
    };
    affine
}

/// Returns the fifth bits of the codes of a vector, from the word at `at` of each block.
#[inline(always)]
fn fifth_bits<S: Integers>(
    simd: S,
    group: &[u8],
    size: usize,
    first: usize,
    at: usize,
) -> S::Bytes {
    let first_word = word(group, first * size + at);
    let last = word(group, (first + S::PARTS - 1) * size + at);
    simd.fifth_bits([first_word, last])
}

#[inline(always)]
fn half_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

#[inline(always)]
fn word(bytes: &[u8], at: usize) -> u32 {
    let bytes = &bytes[at..at + 4];
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Returns the codes of halves from the nibbles at `at` of each block.
#[inline(always)]
fn nibble_halves<S: Integers>(simd: S, group: &[u8], size: usize, at: usize) -> [S::Bytes; 2] {
    let bytes = simd.load_halves(&group[at..], size);
    [simd.low_nibbles(bytes), simd.high_nibbles(bytes)]
}

/// As [`nibble_halves`], with the fifth bits from the word at `bits` of each block.
#[inline(always)]
fn five_bit_halves<S: Integers>(
    simd: S,
    group: &[u8],
    size: usize,
    [bits, at]: [usize; 2],
) -> [S::Bytes; 2] {
    let mut codes = nibble_halves(simd, group, size, at);
    for half in 0..2 {
        let bits = |block: usize| u32::from(half_at(group, block * size + bits + 2 * half));
        let words = [bits(0) | bits(1) << 16, bits(2) | bits(3) << 16];
        codes[half] = simd.or(codes[half], simd.fifth_bits(words));
    }
    codes
}

/// Defines a format of blocks of 32 weights: its bytes, e, the codes of a vector, and perhaps those
/// of halves.
macro_rules! blocks_of_32 {
    ($name:ident, $bytes:literal, $second:expr, wide: $wide:literal,
     |$simd:ident, $group:ident, $first:ident| $codes:expr
     $(, |$simd_of_halves:ident, $halved:ident| $halves:expr)?) => {
        pub(super) struct $name;

        impl Format for $name {
            const WEIGHTS: usize = FOUR * RUN;
            const BYTES: usize = FOUR * $bytes;
            const WIDE: bool = $wide;

            #[inline(always)]
            fn affine<S: Integers>(simd: S, group: &[u8]) -> Affine<S> {
                affine_of_four(simd, group, $bytes, $second)
            }

            #[inline(always)]
            fn codes<S: Integers>($simd: S, $group: &[u8], vector: usize) -> S::Bytes {
                let $first = vector * S::PARTS;
                $codes
            }

            #[inline(always)]
            fn halves<S: Integers>(simd: S, group: &[u8]) -> Option<[S::Bytes; 2]> {
                $(if S::PARTS == 2 {
                    let ($simd_of_halves, $halved) = (simd, group);
                    return Some($halves);
                })?
                let _ = (simd, group);
                None
            }
        }
    };
}

blocks_of_32!(Q8_0, 34, Second::Offset(128.0), wide: true, |simd, group, first| {
    simd.flip(simd.load_parts(block(group, 34, first, 2), 34))
});
blocks_of_32!(Q4_0, 18, Second::Offset(8.0), wide: false, |simd, group, first| {
    simd.load_nibbles(block(group, 18, first, 2), 18)
}, |simd, group| nibble_halves(simd, group, 18, 2));
blocks_of_32!(Q4_1, 20, Second::Minimum, wide: false, |simd, group, first| {
    simd.load_nibbles(block(group, 20, first, 4), 20)
}, |simd, group| nibble_halves(simd, group, 20, 4));
blocks_of_32!(Q5_0, 22, Second::Offset(16.0), wide: false, |simd, group, first| {
    let low = simd.load_nibbles(block(group, 22, first, 6), 22);
    simd.or(low, fifth_bits(simd, group, 22, first, 2))
}, |simd, group| five_bit_halves(simd, group, 22, [2, 6]));
blocks_of_32!(Q5_1, 24, Second::Minimum, wide: false, |simd, group, first| {
    let low = simd.load_nibbles(block(group, 24, first, 8), 24);
    simd.or(low, fifth_bits(simd, group, 24, first, 4))
}, |simd, group| five_bit_halves(simd, group, 24, [4, 8]));

/// d and e of a block of Q4_K or Q5_K.
#[inline(always)]
fn affine_of_k<S: Integers>(simd: S, block: &[u8]) -> Affine<S> {
    let d = simd.four_halves([half_at(block, 0); 4]);
    let m = simd.four_halves([half_at(block, 2); 4]);
    let m = simd.four_mul(m, simd.four_splat(-1.0));
    let (low, middle, high) = (word(block, 4), word(block, 8), word(block, 12));
    // Six bits in each byte of a word.
    let scales = [
        low & 0x3f3f_3f3f,
        high & 0x0f0f_0f0f | (low >> 2) & 0x3030_3030,
    ];
    let minima = [
        middle & 0x3f3f_3f3f,
        (high >> 4) & 0x0f0f_0f0f | (middle >> 2) & 0x3030_3030,
    ];
    let mut affine = Affine::zero(simd);
    for four in 0..2 {
        affine.d[four] = simd.four_mul(d, simd.four_unsigned(scales[four]));
        affine.e[four] = simd.four_mul(m, simd.four_unsigned(minima[four]));
    }
    affine
}

/// Returns the place of a vector of Q4_K or Q5_K: the lower or the upper halves of 32 bytes each.
#[inline(always)]
fn place_of_k<S: Integers>(vector: usize) -> (usize, usize) {
    (vector / 2 * 2 * S::PARTS + vector % 2, 2)
}

#[inline(always)]
fn nibbles_of_k<S: Integers>(simd: S, codes: &[u8], vector: usize) -> S::Bytes {
    let bytes = simd.load_bytes(&codes[vector / 2 * RUN * S::PARTS..]);
    match vector % 2 {
        0 => simd.low_nibbles(bytes),
        _ => simd.high_nibbles(bytes),
    }
}

pub(super) struct Q4K;

impl Format for Q4K {
    const WEIGHTS: usize = 256;
    const BYTES: usize = 144;

    #[inline(always)]
    fn affine<S: Integers>(simd: S, group: &[u8]) -> Affine<S> {
        affine_of_k(simd, &group[..16])
    }

    #[inline(always)]
    fn codes<S: Integers>(simd: S, group: &[u8], vector: usize) -> S::Bytes {
        nibbles_of_k(simd, &group[16..144], vector)
    }

    #[inline(always)]
    fn place<S: Integers>(vector: usize) -> (usize, usize) {
        place_of_k::<S>(vector)
    }
}

pub(super) struct Q5K;

impl Format for Q5K {
    const WEIGHTS: usize = 256;
    const BYTES: usize = 176;

    #[inline(always)]
    fn affine<S: Integers>(simd: S, group: &[u8]) -> Affine<S> {
        affine_of_k(simd, &group[..16])
    }

    #[inline(always)]
    fn codes<S: Integers>(simd: S, group: &[u8], vector: usize) -> S::Bytes {
        let low = nibbles_of_k(simd, &group[48..176], vector);
        let (first, step) = place_of_k::<S>(vector);
        let shift = [first as u32, (first + step * (S::PARTS - 1)) as u32];
        let high = simd.upper_bits(simd.load_parts(&group[16..48], 0), shift, 1);
        simd.or(low, high)
    }

    #[inline(always)]
    fn place<S: Integers>(vector: usize) -> (usize, usize) {
        place_of_k::<S>(vector)
    }
}

pub(super) struct Q6K;

impl Format for Q6K {
    const WEIGHTS: usize = 256;
    const BYTES: usize = 210;
    const RUN: usize = 16;

    #[inline(always)]
    fn affine<S: Integers>(simd: S, group: &[u8]) -> Affine<S> {
        let group = &group[..Self::BYTES];
        let d = simd.four_halves([half_at(group, 208); 4]);
        let mut affine = Affine::zero(simd);
        for four in 0..4 {
            let scales = simd.four_signed(word(group, 192 + 4 * four));
            affine.d[four] = simd.four_mul(d, scales);
            affine.e[four] = simd.four_mul(affine.d[four], simd.four_splat(-32.0));
        }
        affine
    }

    #[inline(always)]
    fn codes<S: Integers>(simd: S, group: &[u8], vector: usize) -> S::Bytes {
        // Each half of a block has four parts of 32 weights: the lower halves of 64 bytes, then the
        // upper ones.
        let first = vector * S::PARTS;
        let (half, part) = (first / 4, first % 4);
        let bytes = simd.load_bytes(&group[64 * half + part % 2 * RUN..]);
        let low = match part / 2 {
            0 => simd.low_nibbles(bytes),
            _ => simd.high_nibbles(bytes),
        };
        let shift = [2 * part as u32, 2 * (part + S::PARTS - 1) as u32];
        let high = simd.load_parts(&group[128 + 32 * half..], 0);
        simd.or(low, simd.upper_bits(high, shift, 3))
    }
}
