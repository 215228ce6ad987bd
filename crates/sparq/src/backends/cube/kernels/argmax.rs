//! The largest element of each row, in two launches: of parts of a row, then of its parts.

use cubecl::prelude::*;

/// The key of positive infinity. Those of positive NaN are larger.
const INFINITY: u32 = 0xff80_0000;
/// The key of negative infinity. Those of negative NaN are smaller.
const NEG_INFINITY: u32 = 0x007f_ffff;
/// Words of the result of a part: the largest key, its index, and 1 if an element has no rank.
pub(crate) const PART: usize = 3;

/// The largest element of some elements.
#[derive(CubeType)]
struct Largest {
    key: u32,
    index: u32,
    /// 1 if an element is NaN or positive infinity.
    unranked: u32,
}

/// Returns a key that orders as the number does. Both zeros have the same.
#[cube]
fn key_of(x: f32) -> u32 {
    let bits = u32::reinterpret(select(x == 0.0f32, 0.0f32, x));
    let negative = bits >> 31u32 == 1u32;
    select(negative, bits ^ 0xffff_ffffu32, bits | 0x8000_0000u32)
}

#[cube]
impl Largest {
    /// Of no element.
    fn new() -> Largest {
        Largest {
            key: 0u32,
            index: u32::MAX.runtime(),
            unranked: 0u32,
        }
    }

    /// Takes over a larger element, or an equal one with a lower index.
    fn add(&mut self, key: u32, index: u32, unranked: u32) {
        let first = key > self.key || (key == self.key && index < self.index);
        self.key = select(first, key, self.key);
        self.index = select(first, index, self.index);
        self.unranked |= unranked;
    }

    /// Adds those of all units; unit 0 has the result. `units` is a power of two.
    fn add_cube(&mut self, #[comptime] units: usize) {
        let mut words = Shared::<[u32]>::new_slice(comptime!(PART * units));
        let unit = UNIT_POS as usize;
        #[unroll]
        for step in 0..comptime!(units.ilog2()) {
            let half = comptime!(units >> (step + 1));
            words[unit] = self.key;
            words[comptime!(units) + unit] = self.index;
            words[comptime!(2 * units) + unit] = self.unranked;
            sync_cube();
            let other = (unit + half) % units;
            self.add(
                words[other],
                words[comptime!(units) + other],
                words[comptime!(2 * units) + other],
            );
            sync_cube();
        }
    }
}

/// Writes the largest element of each part of each row of x [rows, width] to `found`
/// [rows, parts, [`PART`]]. One cube for each part.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(crate) fn largest_of_parts_kernel(
    x: &[f32],
    found: &mut [u32],
    rows: u32,
    width: u32,
    parts: u32,
    #[comptime] units: usize,
) {
    let (width, parts) = (width as usize, parts as usize);
    let row = CUBE_POS / parts;
    if row >= rows as usize {
        terminate!();
    }
    let len = width.div_ceil(parts);
    let from = CUBE_POS % parts * len;
    let to = min(from + len, width);
    let mut largest = Largest::new();
    // Every unit runs the same number of rounds.
    for round in 0..len.div_ceil(units) {
        let i = from + round * units + UNIT_POS as usize;
        if i < to {
            let key = key_of(x[row * width + i]);
            let infinite = select(key >= INFINITY, 1u32, 0u32);
            let negative_nan = select(key < NEG_INFINITY, 1u32, 0u32);
            largest.add(key, i as u32, infinite | negative_nan);
        }
    }
    largest.add_cube(units);
    if UNIT_POS == 0 {
        let at = CUBE_POS * PART;
        found[at] = largest.key;
        found[at + 1] = largest.index;
        found[at + 2] = largest.unranked;
    }
}

/// Writes the index of the largest element of each row, and whether all elements have a rank and
/// one of them is a candidate, to `out` [2, rows]. One cube for each row, with a unit for each of
/// at most `units` parts.
#[cube(launch_unchecked)]
pub(crate) fn largest_of_rows_kernel<I: Int>(
    found: &[u32],
    out: &mut [I],
    rows: u32,
    parts: u32,
    #[comptime] units: usize,
    #[define(I)] _type: ElemType,
) {
    let (rows, parts) = (rows as usize, parts as usize);
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let mut largest = Largest::new();
    let part = UNIT_POS as usize;
    if part < parts {
        let at = (row * parts + part) * PART;
        largest.add(found[at], found[at + 1], found[at + 2]);
    }
    largest.add_cube(units);
    if UNIT_POS == 0 {
        let valid = largest.unranked == 0 && largest.key > NEG_INFINITY;
        out[row] = I::cast_from(largest.index);
        out[rows + row] = I::cast_from(select(valid, 1u32, 0u32));
    }
}
