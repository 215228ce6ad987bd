//! K rows and V rows in codes of 8 bits; see [`rows`](crate::cache::rows).

use cubecl::prelude::*;

use super::codes::round_half_to_even;
use super::reduce::max_in_plane;
use crate::cache::rows::LARGEST_CODE;

/// Codes in a word.
pub(crate) const PER_WORD: usize = 4;

/// The scale of each row, [B, H_kv, S_max]; in use if the rows are codes.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct RowScales {
    /// Of K.
    pub keys: Box<[f32]>,
    /// Of V.
    pub values: Box<[f32]>,
}

/// Returns code `i` of a word.
#[cube]
pub(crate) fn code_at(word: u32, i: u32) -> f32 {
    // The byte with bit 7 flipped is the code + 128. As the lowest bits of 2^23 it is a number.
    let flipped = word ^ 0x8080_8080u32;
    let bits = ((flipped >> (8u32 * i)) & 255u32) | 0x4B00_0000u32;
    f32::reinterpret(bits) - 8_388_736.0f32
}

/// [`code_at`] in two instructions, with CUDA's permutation of bytes.
#[cube]
fn code_permuted(word: u32, #[comptime] i: u32) -> f32 {
    let flipped = word ^ 0x8080_8080u32;
    let exponent = 0x4B00_0000u32;
    // Byte i of the word, two zeros and the exponent.
    let order = comptime!(0x7540u32 + i).runtime();
    let bits: u32;
    gpu_asm!(
        "prmt.b32 {bits}, {flipped}, {exponent}, {order};",
        bits = out(_) bits, flipped = in(_) flipped, exponent = in(_) exponent,
        order = in(_) order, options(nomem),
    );
    f32::reinterpret(bits) - 8_388_736.0f32
}

/// Returns element `e` of a vector of K or V: a float, or a code of the words. `permutes` as in
/// [`AttendBlueprint`](super::online_softmax::AttendBlueprint).
#[cube]
pub(crate) fn element<E: Numeric, N: Size>(
    vector: Vector<E, N>,
    #[comptime] e: usize,
    #[comptime] coded: bool,
    #[comptime] permutes: bool,
) -> f32 {
    if comptime!(coded) {
        let word = u32::cast_from(vector.extract(comptime!(e / PER_WORD)));
        let i = comptime!((e % PER_WORD) as u32);
        if comptime!(permutes) {
            code_permuted(word, i)
        } else {
            code_at(word, i)
        }
    } else {
        f32::cast_from(vector.extract(e))
    }
}

/// The magnitudes of a row that one unit has seen.
#[derive(CubeType)]
pub(crate) struct RowExtent {
    largest: f32,
    /// 0, or 1 after an infinity or NaN.
    unusable: f32,
}

#[cube]
impl RowExtent {
    pub fn new() -> RowExtent {
        RowExtent {
            largest: 0.0f32.runtime(),
            unusable: 0.0f32.runtime(),
        }
    }

    pub fn add(&mut self, x: f32) {
        self.largest = max(self.largest, x.abs());
        // A comparison with NaN is false.
        self.unusable = select(x.abs() <= f32::MAX, self.unusable, 1.0f32);
    }

    /// Returns the scale of a row whose elements the units of a plane have added.
    pub fn scale(&self, #[comptime] plane: u32) -> f32 {
        let scale = max_in_plane(self.largest, plane) / LARGEST_CODE;
        let usable = max_in_plane(self.unusable, plane) == 0.0f32;
        // The bits of NaN.
        f32::reinterpret(select(usable, u32::reinterpret(scale), 0x7FC0_0000u32))
    }
}

/// Returns component `c` of a row of `d` elements: a float, or what a code stands for.
#[cube]
pub(crate) fn component<E: Numeric>(
    rows: &[E],
    scales: &[f32],
    row: usize,
    c: usize,
    #[comptime] d: usize,
    #[comptime] coded: bool,
) -> f32 {
    if comptime!(coded) {
        let word = u32::cast_from(rows[row * comptime!(d / PER_WORD) + c / PER_WORD]);
        code_at(word, (c % PER_WORD) as u32) * scales[row]
    } else {
        f32::cast_from(rows[row * d + c])
    }
}

/// Returns the code of an element of a row, as a whole number from -127 to 127.
#[cube]
pub(crate) fn row_code(x: f32, scale: f32) -> f32 {
    // A comparison with NaN is false.
    let usable = scale > 0.0f32;
    let scaled = x / select(usable, scale, 1.0f32);
    let code = round_half_to_even(select(usable, scaled, 0.0f32));
    clamp(code, -LARGEST_CODE, LARGEST_CODE)
}

/// Returns the bits of code `i` in its word.
#[cube]
pub(crate) fn bits_of(code: f32, #[comptime] i: usize) -> u32 {
    u32::cast_from(code + 128.0f32) << comptime!((8 * i) as u32)
}

/// Returns a word of the bits of four codes.
#[cube]
pub(crate) fn word_of(bits: u32) -> u32 {
    bits ^ 0x8080_8080u32
}
