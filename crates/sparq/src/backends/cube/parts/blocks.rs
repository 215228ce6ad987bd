//! The layout of [packed weights](crate::ops::blocks) on a device, and the floats in it.
//!
//! A tile is 16 rows of weights by 256 features. The tiles of the same rows follow each other; the
//! rows and the features past the last are zeros. A tile has as many bytes as its blocks in a file.
//!
//! Lane l of 32 holds rows l / 4 and l / 4 + 8 of a tile, as in `mma.m16n8k16`; l % 4 is its
//! member number. Of each 32 features it holds two runs of four: from 4 member on, and from
//! 16 + 4 member on. A pair is two neighbours of a run. In the order of 16-byte vectors, a tile is:
//!
//! - codes of 4 bits: [4 x 32 features, 2 halves of the rows, lanes], a word for each 32 features.
//!   Bits 4 p .. 4 p + 4 are the first code of pair p of four, and the same bits 16 further on the
//!   second;
//! - codes of 8 bits instead: [2 x 32 features, 2 halves, lanes], a word for each run. Bytes 0 and
//!   2 are its first pair, 1 and 3 its second. Bit 7 is flipped: the codes are 0 to 255;
//! - fifth bits: [lanes], two words for each half of the rows. Bit i of a word is that of the first
//!   code of its pair i of 16, and bit 16 + i of the second;
//! - or upper bits of Q6_K: [2 halves, lanes]. Bits 2 i and 2 i + 1 of a word are those of the
//!   first code of its pair i of 8, and the same bits 16 further on of the second;
//! - scales: [16 rows], see [`Scales`].
//!
//! Codes are masked to the lower bits of halves: such a half is the code by 2^-24. Codes at bits 4
//! to 7 of a half are 16 times as large, which their x makes up for.

use burn::tensor::f16;
use cubecl::prelude::*;

use super::warpgroup::lane;
use crate::ops::BlockFormat;

/// Rows of a tile.
pub(crate) const ROWS: usize = 16;
/// Features of a tile.
pub(crate) const FEATURES: usize = 256;
/// Features of a group, of which a lane holds two runs.
pub(crate) const GROUP: usize = 32;
/// Groups of a tile.
pub(crate) const GROUPS: usize = FEATURES / GROUP;
/// Features of a run.
pub(crate) const RUN: usize = 4;
/// Lanes that hold a row.
pub(crate) const MEMBERS: usize = 4;
/// Lanes that hold a tile.
pub(crate) const LANES: usize = 32;
/// Words of a vector.
const VECTOR: usize = 4;

/// A vector of 16 bytes.
pub(crate) type Words = Vector<u32, Const<4>>;

/// The scales of a row of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scales {
    /// A vector: the scale of each group in f16.
    Halves,
    /// Another 16 vectors: the minimum of each group in f16.
    HalvesAndMinima,
    /// A vector. Word 0: the scale and the minimum of the row in f16. Words 1 to 3: those of the
    /// groups in 6 bits, as four pairs (bits i of both halves of a word). Word 1 has pairs 0 and 1
    /// of the scales, and from bit 12 on the lower four bits of pair 2. Word 2 has pairs 0 and 1 of
    /// the minima, the upper two bits of pair 2 of the scales, and those of pair 3. Word 3 has
    /// pairs 2 and 3 of the minima and the lower four bits of pair 3 of the scales.
    SixBits,
    /// A vector: the scale of each 16 features in i8 with bit 7 flipped. Bytes 0 and 2 of a word
    /// are the first pair of scales, 1 and 3 the second. Another two vectors: the scales of rows i
    /// and i + 8 in f16, a word for each i.
    Bytes,
}

/// The layout of the tiles of a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BlockLayout {
    pub format: BlockFormat,
    /// Bits of a code in the vectors of codes.
    pub code_bits: usize,
    /// Upper bits of a code that lie apart.
    pub upper_bits: usize,
    pub scales: Scales,
    /// Subtracted from a code.
    pub zero_point: u32,
}

impl BlockLayout {
    pub fn new(format: BlockFormat) -> Self {
        let (code_bits, upper_bits, scales, zero_point) = match format {
            BlockFormat::Q8_0 => (8, 0, Scales::Halves, 128),
            BlockFormat::Q4_0 => (4, 0, Scales::Halves, 8),
            BlockFormat::Q4_1 => (4, 0, Scales::HalvesAndMinima, 0),
            BlockFormat::Q5_0 => (4, 1, Scales::Halves, 16),
            BlockFormat::Q5_1 => (4, 1, Scales::HalvesAndMinima, 0),
            BlockFormat::Q4_K => (4, 0, Scales::SixBits, 0),
            BlockFormat::Q5_K => (4, 1, Scales::SixBits, 0),
            BlockFormat::Q6_K => (4, 2, Scales::Bytes, 32),
        };
        Self {
            format,
            code_bits,
            upper_bits,
            scales,
            zero_point,
        }
    }

    /// Vectors of codes of a tile.
    pub fn codes(&self) -> usize {
        LANES * self.code_bits
    }

    /// Vectors of codes and upper bits.
    pub fn before_scales(&self) -> usize {
        self.codes() + LANES * self.upper_bits
    }

    /// Vectors of a tile.
    pub fn vectors(&self) -> usize {
        let scales = match self.scales {
            Scales::Halves | Scales::SixBits => ROWS,
            Scales::HalvesAndMinima => 2 * ROWS,
            Scales::Bytes => ROWS + 2,
        };
        self.before_scales() + scales
    }

    /// Words of a tile.
    pub fn words(&self) -> usize {
        VECTOR * self.vectors()
    }

    /// The codes of odd pairs are 16 times as large as those of even ones.
    pub fn odd_pairs_are_larger(&self) -> bool {
        self.code_bits == 4
    }

    /// Vectors of a lane.
    pub fn of_lane(&self) -> usize {
        self.first_scales() + self.vectors_of_scales()
    }

    /// The lane's first vector of scales: the number of those before.
    pub fn first_scales(&self) -> usize {
        self.code_bits + self.upper_bits
    }

    fn vectors_of_scales(&self) -> usize {
        match self.scales {
            Scales::Halves | Scales::SixBits => 2,
            Scales::Bytes => 3,
            Scales::HalvesAndMinima => 4,
        }
    }
}

/// Tiles of a row of `features`.
pub(crate) fn tiles_of_row(features: usize) -> usize {
    features.div_ceil(FEATURES)
}

/// Returns the first feature of run `run` of two of a group for member `member`.
#[cube]
pub(crate) fn first_of_run(run: usize, member: usize) -> usize {
    16 * run + RUN * member
}

/// Loads a lane's vectors `from..end` of codes and upper bits of the tile that begins at vector
/// `tile`. `at` is the lane's first vector in `loaded`.
#[cube]
pub(crate) fn load_codes(
    loaded: &mut Array<Words>,
    weight: &[Words],
    tile: usize,
    #[comptime] at: usize,
    #[comptime] codes: (usize, usize),
) {
    let lane = lane() as usize;
    #[unroll]
    for i in comptime!(codes.0)..comptime!(codes.1) {
        loaded[comptime!(at + i)] = weight[tile + comptime!(LANES * i) + lane];
    }
}

/// Loads a lane's vectors of scales of the same tile.
#[cube]
pub(crate) fn load_scales(
    loaded: &mut Array<Words>,
    weight: &[Words],
    tile: usize,
    #[comptime] at: usize,
    #[comptime] layout: BlockLayout,
) {
    let scales = tile + comptime!(layout.before_scales());
    let to = comptime!(at + layout.first_scales());
    let row = lane() as usize / MEMBERS;
    #[unroll]
    for half in 0..2usize {
        loaded[comptime!(to + half)] = weight[scales + comptime!(8 * half) + row];
        if comptime!(layout.scales == Scales::HalvesAndMinima) {
            loaded[comptime!(to + 2 + half)] = weight[scales + comptime!(ROWS + 8 * half) + row];
        }
    }
    if comptime!(layout.scales == Scales::Bytes) {
        loaded[comptime!(to + 2)] = weight[scales + ROWS + row / VECTOR];
    }
}

/// Returns the codes of pair `pair` of four of a group, for the rows of half `half`: two halves.
/// `at` is the lane's first vector in `loaded`.
#[cube]
pub(crate) fn codes_of_pair(
    loaded: &Array<Words>,
    #[comptime] at: usize,
    #[comptime] half: usize,
    #[comptime] group: usize,
    #[comptime] pair: usize,
    #[comptime] layout: BlockLayout,
) -> u32 {
    if comptime!(layout.code_bits == 8) {
        let vector = loaded[comptime!(at + group / 2 * 2 + half)];
        let word = vector.extract(comptime!(group % 2 * 2 + pair / 2));
        if comptime!(pair % 2 == 0) {
            word & 0x00FF_00FFu32
        } else {
            (word >> 8u32) & 0x00FF_00FFu32
        }
    } else {
        let vector = loaded[comptime!(at + group / 4 * 2 + half)];
        let word = vector.extract(comptime!(group % 4));
        let mut moved = word;
        if comptime!(pair >= 2) {
            moved = word >> 8u32;
        }
        // The bits of an odd pair stay four further up.
        let mask = comptime!(if pair % 2 == 0 {
            0x000F_000F
        } else {
            0x00F0_00F0u32
        });
        let codes = moved & mask;
        if comptime!(layout.upper_bits == 0) {
            codes
        } else {
            codes | upper_of_pair(loaded, at, half, comptime!(4 * group + pair), layout)
        }
    }
}

/// Returns the upper bits of pair `pair` of 32 of a row, above the lower ones.
#[cube]
fn upper_of_pair(
    loaded: &Array<Words>,
    #[comptime] at: usize,
    #[comptime] half: usize,
    #[comptime] pair: usize,
    #[comptime] layout: BlockLayout,
) -> u32 {
    let bits = comptime!(layout.upper_bits);
    let first = comptime!(at + layout.code_bits);
    // Pairs of a word, and where the lower bits of a pair end.
    let pairs = comptime!(16 / bits);
    let to = comptime!(4 + 4 * (pair % 2));
    let from = comptime!(pair % pairs * bits);
    let word = if comptime!(bits == 1) {
        loaded[first].extract(comptime!(2 * half + pair / pairs))
    } else {
        loaded[comptime!(first + half)].extract(comptime!(pair / pairs))
    };
    let moved = if comptime!(from > to) {
        word >> comptime!((from - to.min(from)) as u32)
    } else {
        word << comptime!((to - from.min(to)) as u32)
    };
    let mask = comptime!((((1u32 << bits) - 1) * 0x0001_0001) << to);
    moved & mask
}

/// The factors of the results for one row of a tile.
#[derive(CubeType)]
pub(crate) struct RowScales {
    /// The factor of each group, or of each 16 features.
    pub factors: Array<f32>,
    /// The factor of the row.
    pub factor: f32,
    /// Multiplies the sums of x of two groups, or of 16 features each: two halves.
    pub low_shifts: u32,
    /// The same for the next features.
    pub high_shifts: u32,
    /// The factor of the row's shifts.
    pub shift: f32,
}

#[cube]
fn half_of(word: u32, #[comptime] i: usize) -> f32 {
    let halves = Vector::<f16, Const<2>>::reinterpret(word);
    f32::cast_from(halves.extract(i))
}

/// Returns the word whose number is this lane's member number.
#[cube]
fn own_word(vector: Words) -> u32 {
    word_of(vector, lane() % comptime!(MEMBERS as u32))
}

#[cube]
fn word_of(vector: Words, i: u32) -> u32 {
    let low = select(i % 2 == 0, vector.extract(0usize), vector.extract(1usize));
    let high = select(i % 2 == 0, vector.extract(2usize), vector.extract(3usize));
    select(i < 2, low, high)
}

/// Returns the scales of the lane's row of half `half`. Those of 6 bits are by 2^-24.
#[cube]
pub(crate) fn scales_of_row(
    loaded: &Array<Words>,
    #[comptime] at: usize,
    #[comptime] half: usize,
    #[comptime] layout: BlockLayout,
) -> RowScales {
    let first = comptime!(at + layout.first_scales());
    let vector = loaded[comptime!(first + half)];
    if comptime!(layout.scales == Scales::SixBits) {
        scales_of_six_bits(vector)
    } else if comptime!(layout.scales == Scales::Bytes) {
        scales_of_bytes(vector, loaded[comptime!(first + 2)], half)
    } else if comptime!(layout.scales == Scales::HalvesAndMinima) {
        scales_of_halves(vector, loaded[comptime!(first + 2 + half)])
    } else {
        // Each code is the zero point too large, by the same scale.
        scales_of_halves(vector, vector)
    }
}

#[cube]
fn scales_of_six_bits(vector: Words) -> RowScales {
    let (first, second, third) = (
        vector.extract(1usize),
        vector.extract(2usize),
        vector.extract(3usize),
    );
    let mut pairs = Array::<u32>::new(4usize);
    pairs[0] = first & 0x003F_003Fu32;
    pairs[1] = (first >> 6u32) & 0x003F_003Fu32;
    pairs[2] = ((first >> 12u32) & 0x000F_000Fu32) | ((second >> 8u32) & 0x0030_0030u32);
    pairs[3] = ((third >> 12u32) & 0x000F_000Fu32) | ((second >> 10u32) & 0x0030_0030u32);
    let mut factors = Array::<f32>::new(GROUPS);
    #[unroll]
    for group in 0..GROUPS {
        factors[group] = half_of(pairs[comptime!(group / 2)], comptime!(group % 2));
    }
    let member = lane() % comptime!(MEMBERS as u32);
    let minima = select(member < 2, second, third) >> (member % 2 * 6);
    let own = minima & 0x003F_003Fu32;
    let of_row = vector.extract(0usize);
    RowScales {
        factors,
        factor: half_of(of_row, 0usize),
        low_shifts: own,
        high_shifts: own,
        shift: -half_of(of_row, 1usize),
    }
}

/// `rows` has the scales of four rows of each half.
#[cube]
fn scales_of_bytes(vector: Words, rows: Words, #[comptime] half: usize) -> RowScales {
    let mut factors = Array::<f32>::new(comptime!(2 * GROUPS));
    #[unroll]
    for word in 0..4usize {
        let (low, high) = halves_of_bytes(vector.extract(word));
        #[unroll]
        for i in 0..2usize {
            factors[comptime!(4 * word + i)] = half_of(low, i);
            factors[comptime!(4 * word + 2 + i)] = half_of(high, i);
        }
    }
    let (low_shifts, high_shifts) = halves_of_bytes(own_word(vector));
    let word = (lane() / comptime!(MEMBERS as u32)) % 4;
    let factor = half_of(word_of(rows, word), half);
    RowScales {
        factors,
        factor,
        low_shifts,
        high_shifts,
        shift: factor,
    }
}

/// `shifts` has the halves that multiply the sums of x.
#[cube]
fn scales_of_halves(vector: Words, shifts: Words) -> RowScales {
    let mut factors = Array::<f32>::new(GROUPS);
    #[unroll]
    for group in 0..GROUPS {
        factors[group] = half_of(vector.extract(comptime!(group / 2)), comptime!(group % 2));
    }
    let own = own_word(shifts);
    RowScales {
        factors,
        factor: 1.0f32,
        low_shifts: own,
        high_shifts: own,
        shift: 1.0f32,
    }
}

/// Returns the signed numbers of a word whose bit 7 is flipped as halves: its first pair and its
/// second.
#[cube]
fn halves_of_bytes(word: u32) -> (u32, u32) {
    (
        signed_halves(word & 0x00FF_00FFu32),
        signed_halves((word >> 8u32) & 0x00FF_00FFu32),
    )
}

#[cube]
fn signed_halves(bytes: u32) -> u32 {
    // 1024 + byte.
    let large = Vector::<f16, Const<2>>::reinterpret(bytes | 0x6400_6400u32);
    let signed = large - Vector::<f16, Const<2>>::new(f16::new(1152.0));
    u32::reinterpret(signed)
}

/// Returns eight weights of a row of the tile that begins at word `tile`: the two runs of group
/// `group` of member `member`. It takes no type but f32 and u32, so that every device has it.
#[cube]
pub(crate) fn weights_of_member(
    words: &[u32],
    tile: usize,
    row: usize,
    group: usize,
    member: usize,
    #[comptime] layout: BlockLayout,
) -> Array<f32> {
    let scales = scales_of_group(words, tile, row, group, layout);
    let lane = row % 8 * MEMBERS + member;
    let mut weights = Array::<f32>::new(comptime!(2 * RUN));
    #[unroll]
    for i in 0..comptime!(2 * RUN) {
        let code = code_of(words, tile, row / 8, lane, group, i, layout);
        let number = f32::cast_from(code) - comptime!(layout.zero_point as f32);
        let scale = if comptime!(i < RUN) {
            scales.low
        } else {
            scales.high
        };
        weights[i] = scale * number + scales.shift;
    }
    weights
}

/// Returns code `i` of eight of a lane's row in a group.
#[cube]
fn code_of(
    words: &[u32],
    tile: usize,
    half: usize,
    lane: usize,
    group: usize,
    #[comptime] i: usize,
    #[comptime] layout: BlockLayout,
) -> u32 {
    let (pair, second) = comptime!((i / 2, i % 2));
    if comptime!(layout.code_bits == 8) {
        let vector = (group / 2 * 2 + half) * LANES + lane;
        let word = words[tile + VECTOR * vector + group % 2 * 2 + comptime!(pair / 2)];
        (word >> comptime!((8 * (pair % 2) + 16 * second) as u32)) & 255u32
    } else {
        let vector = (group / 4 * 2 + half) * LANES + lane;
        let word = words[tile + VECTOR * vector + group % 4];
        let mut code = (word >> comptime!((4 * pair + 16 * second) as u32)) & 15u32;
        let upper = tile + comptime!(VECTOR * layout.codes());
        if comptime!(layout.upper_bits == 1) {
            let word = words[upper + VECTOR * lane + half * 2 + group / 4];
            let bit = (group % 4 * 4 + comptime!(pair + 16 * second)) as u32;
            code |= ((word >> bit) & 1u32) << 4u32;
        }
        if comptime!(layout.upper_bits == 2) {
            let word = words[upper + VECTOR * (half * LANES + lane) + group / 2];
            let bit = (group % 2 * 8 + comptime!(2 * pair + 16 * second)) as u32;
            code |= ((word >> bit) & 3u32) << 4u32;
        }
        code
    }
}

/// The scales of both runs of a group, and a number that is added to its weights.
#[derive(CubeType)]
struct GroupScales {
    low: f32,
    high: f32,
    shift: f32,
}

#[cube]
fn scales_of_group(
    words: &[u32],
    tile: usize,
    row: usize,
    group: usize,
    #[comptime] layout: BlockLayout,
) -> GroupScales {
    let scales = tile + comptime!(VECTOR * layout.before_scales());
    if comptime!(layout.scales == Scales::SixBits) {
        six_bits_of_group(words, scales + VECTOR * row, group)
    } else if comptime!(layout.scales == Scales::Bytes) {
        let word = words[scales + VECTOR * row + group / 2];
        let of_rows = words[scales + comptime!(VECTOR * ROWS) + row % 8];
        let of_row = half_bits(of_rows >> (row / 8 * 16) as u32);
        let byte = (group % 2 * 8) as u32;
        GroupScales {
            low: of_row * signed_byte(word, byte),
            high: of_row * signed_byte(word, byte + 16),
            shift: 0.0f32,
        }
    } else {
        let bit = (group % 2 * 16) as u32;
        let at = VECTOR * row + group / 2;
        let scale = half_bits(words[scales + at] >> bit);
        let mut shift = 0.0f32;
        if comptime!(layout.scales == Scales::HalvesAndMinima) {
            shift += half_bits(words[scales + comptime!(VECTOR * ROWS) + at] >> bit);
        }
        GroupScales {
            low: scale,
            high: scale,
            shift,
        }
    }
}

/// `at` is the first word of the row's scales.
#[cube]
fn six_bits_of_group(words: &[u32], at: usize, group: usize) -> GroupScales {
    let (first, second, third) = (words[at + 1], words[at + 2], words[at + 3]);
    let bit = (group % 2 * 16) as u32;
    let mut code = first >> bit;
    let mut minimum = second >> bit;
    if group >= 4 {
        code = ((first >> (bit + 12)) & 15u32) | (((second >> (bit + 12)) & 3u32) << 4u32);
        minimum = third >> bit;
    }
    if group / 2 % 2 == 1 {
        code >>= 6u32;
        minimum >>= 6u32;
    }
    if group >= 6 {
        code = ((third >> (bit + 12)) & 15u32) | (((second >> (bit + 14)) & 3u32) << 4u32);
    }
    let of_row = words[at];
    let scale = half_bits(of_row) * f32::cast_from(code & 63u32);
    GroupScales {
        low: scale,
        high: scale,
        shift: -half_bits(of_row >> 16u32) * f32::cast_from(minimum & 63u32),
    }
}

/// Returns the finite number in f16 of the lower 16 bits of a word. A device may flush subnormal
/// numbers of f32, so that none occurs.
#[cube]
fn half_bits(word: u32) -> f32 {
    let magnitude = word & 0x7FFFu32;
    // The exponents of f32 and f16 differ by 112.
    let normal = f32::reinterpret((magnitude << 13u32) + comptime!(112u32 << 23));
    let subnormal = f32::cast_from(magnitude) * comptime!(1.0f32 / 16_777_216.0);
    let number = select(magnitude < 0x0400u32, subnormal, normal);
    select(word & 0x8000u32 == 0u32, number, -number)
}

#[cube]
fn signed_byte(word: u32, shift: u32) -> f32 {
    f32::cast_from((word >> shift) & 255u32) - 128.0f32
}
