//! The ranges of a sketch in codes from the keys of a sequence, and all its codes.

use cubecl::prelude::*;

use crate::backends::cube::parts::codes::{ChannelRanges, code_of};
use crate::backends::cube::parts::row_codes::component;

/// Positions whose codes a cube writes: at least 32 bytes of each channel.
pub(crate) const TILE: usize = 64;

/// The settings that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RangesBlueprint {
    /// d.
    pub head_dim: usize,
    /// Bits of a code.
    pub bits: usize,
    /// The keys are codes of 8 bits.
    pub coded: bool,
    /// Units of a cube.
    pub units: usize,
}

impl RangesBlueprint {
    /// Units that share a channel.
    fn lanes(&self) -> usize {
        (self.units / self.head_dim).max(1)
    }
}

/// One sequence of a cache.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct SequenceKeys {
    /// H_kv.
    pub kv_heads: u32,
    /// The sequence's first batch head.
    pub first_head: u32,
    /// S_max.
    pub capacity: u32,
    /// The first position that determines the ranges.
    pub start: u32,
    /// One past the last position.
    pub end: u32,
    /// Parts of the positions from `start` to `end` whose extremes are found by themselves.
    pub parts: u32,
}

/// Writes the least and the largest finite component of each channel in each part to `extremes`,
/// [H_kv, parts, 2, d]. One cube for each part.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(crate) fn channel_extremes_kernel<E: Numeric>(
    keys: &[E],
    scales: &[f32],
    extremes: &mut [f32],
    sequence: &SequenceKeys,
    #[comptime] plan: RangesBlueprint,
    #[define(E)] _type: ElemType,
) {
    let d = comptime!(plan.head_dim);
    let lanes = comptime!(plan.lanes());
    let parts = sequence.parts as usize;
    let head = CUBE_POS / parts;
    if head >= sequence.kv_heads as usize {
        terminate!();
    }
    let (start, end) = (sequence.start as usize, sequence.end as usize);
    let share = (end - start).div_ceil(parts);
    let from = min(start + CUBE_POS % parts * share, end);
    let to = min(from + share, end);
    let first = (sequence.first_head as usize + head) * sequence.capacity as usize;
    let mut least = Shared::<[f32]>::new_slice(comptime!(lanes * d));
    let mut largest = Shared::<[f32]>::new_slice(comptime!(lanes * d));
    let mut i = UNIT_POS as usize;
    while i < comptime!(lanes * d).runtime() {
        let mut low = f32::MAX.runtime();
        let mut high = f32::MIN.runtime();
        let mut position = from + i / d;
        while position < to {
            let row = first + position;
            let key = component::<E>(keys, scales, row, i % d, d, plan.coded);
            // A comparison with NaN is false.
            let finite = key.abs() <= f32::MAX;
            low = select(finite, min(low, key), low);
            high = select(finite, max(high, key), high);
            position += lanes;
        }
        least[i] = low;
        largest[i] = high;
        i += plan.units;
    }
    sync_cube();
    let mut c = UNIT_POS as usize;
    while c < d.runtime() {
        let mut low = least[c];
        let mut high = largest[c];
        for lane in 1..lanes.runtime() {
            low = min(low, least[lane * d + c]);
            high = max(high, largest[lane * d + c]);
        }
        extremes[CUBE_POS * comptime!(2 * d) + c] = low;
        extremes[CUBE_POS * comptime!(2 * d) + d + c] = high;
        c += plan.units;
    }
}

/// Sets the ranges of every channel from `extremes`, and writes the codes of all positions up to
/// the end. One cube for each KV head and tile; the codes that the last word lacks become 0.
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn encode_kernel<E: Numeric>(
    keys: &[E],
    scales: &[f32],
    extremes: &[f32],
    ranges: &mut ChannelRanges,
    codes: &mut [u32],
    sequence: &SequenceKeys,
    tiles: u32,
    #[comptime] plan: RangesBlueprint,
    #[define(E)] _type: ElemType,
) {
    let (d, bits) = comptime!((plan.head_dim, plan.bits));
    let per_word = comptime!(32 / bits);
    let levels = comptime!(((1u32 << bits) - 1) as f32);
    let head = CUBE_POS / tiles as usize;
    if head >= sequence.kv_heads as usize {
        terminate!();
    }
    let tile = CUBE_POS % tiles as usize;
    let capacity = sequence.capacity as usize;
    let end = sequence.end as usize;
    let index = sequence.first_head as usize + head;
    let mut c = UNIT_POS as usize;
    while c < d.runtime() {
        let mut low = f32::MAX.runtime();
        let mut high = f32::MIN.runtime();
        for part in 0..sequence.parts as usize {
            let at = (head * sequence.parts as usize + part) * comptime!(2 * d) + c;
            low = min(low, extremes[at]);
            high = max(high, extremes[at + d]);
        }
        let empty = low > high;
        let width = (high - low) / levels;
        let usable = !empty && width <= f32::MAX;
        let zero_point = select(empty, 0.0f32, low);
        let scale = select(usable, width, 0.0f32);
        let channel = index * d + c;
        if tile == 0 {
            ranges.zero_point[channel] = zero_point;
            ranges.scale[channel] = scale;
        }
        for word in 0..comptime!(TILE / per_word).runtime() {
            let first = tile * TILE + word * per_word;
            if first < end {
                let mut word = 0u32;
                #[unroll]
                for i in 0..per_word {
                    let position = first + i;
                    let row = index * capacity + min(position, end - 1);
                    let key = component::<E>(keys, scales, row, c, d, plan.coded);
                    let code = code_of(key, zero_point, scale, bits);
                    let code = select(position < end, code, 0u32);
                    word |= code << comptime!((i * bits) as u32);
                }
                codes[(channel * capacity + first) / per_word] = word;
            }
        }
        c += plan.units;
    }
}
