//! Moves blocks of a file to the layout of [`blocks`](crate::backends::cube::parts::blocks).

use cubecl::prelude::*;

use crate::backends::cube::parts::blocks::{
    BlockLayout, FEATURES, GROUP, LANES, MEMBERS, ROWS, Scales, first_of_run,
};
use crate::ops::BlockFormat;

/// Writes the tiles of a matrix [outputs, features], a unit for each word. `blocks` are those of
/// the file in little-endian words.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(crate) fn store_blocks_kernel(
    blocks: &[u32],
    tiles: &mut [u32],
    outputs: u32,
    features: u32,
    #[comptime] layout: BlockLayout,
) {
    let at = CUBE_POS * CUBE_DIM as usize + UNIT_POS as usize;
    if at >= tiles.len() {
        terminate!();
    }
    let of_row = (features as usize).div_ceil(FEATURES);
    let tile = at / comptime!(layout.words());
    let word = at % comptime!(layout.words());
    let row = tile / of_row * ROWS;
    let feature = tile % of_row * FEATURES;
    let file = File::new(blocks, outputs, features, row, feature);
    let (vector, word) = (word / 4, word % 4);
    if vector < comptime!(layout.codes()) {
        tiles[at] = file.codes(vector, word, layout);
    } else if vector >= comptime!(layout.before_scales()) {
        tiles[at] = file.scales(vector - comptime!(layout.before_scales()), word, layout);
    } else if comptime!(layout.upper_bits > 0) {
        tiles[at] = file.upper_bits(vector - comptime!(layout.codes()), word, layout);
    }
}

/// The blocks of a matrix, and the first row and feature of a tile.
#[derive(CubeType)]
struct File<'a> {
    blocks: &'a [u32],
    outputs: usize,
    features: usize,
    row: usize,
    feature: usize,
}

#[cube]
impl<'a> File<'a> {
    fn new(blocks: &'a [u32], outputs: u32, features: u32, row: usize, feature: usize) -> File<'a> {
        File::<'a> {
            blocks,
            outputs: outputs as usize,
            features: features as usize,
            row,
            feature,
        }
    }

    /// Returns whether the matrix has a weight, counted in the tile.
    fn has(&self, row: usize, feature: usize) -> bool {
        self.row + row < self.outputs && self.feature + feature < self.features
    }

    fn byte(&self, at: usize) -> u32 {
        self.blocks[at / 4] >> (at % 4 * 8) as u32 & 255u32
    }

    fn half(&self, at: usize) -> u32 {
        self.byte(at) | self.byte(at + 1) << 8u32
    }

    /// Returns the first byte of the block of a weight.
    fn block(&self, row: usize, feature: usize, #[comptime] layout: BlockLayout) -> usize {
        let weights = comptime!(layout.format.weights());
        let block =
            (self.row + row) * (self.features / weights) + (self.feature + feature) / weights;
        block * comptime!(layout.format.bytes())
    }

    /// Returns the code of a weight without its upper bits; those of 8 bits with bit 7 flipped.
    fn code(&self, row: usize, feature: usize, #[comptime] layout: BlockLayout) -> u32 {
        let mut code = 0u32;
        if self.has(row, feature) {
            let block = self.block(row, feature, layout);
            let first = block + comptime!(codes_of_block(layout.format));
            if comptime!(layout.code_bits == 8) {
                code = self.byte(first + feature % GROUP) ^ 128u32;
            } else if comptime!(layout.format == BlockFormat::Q6_K) {
                let byte = self.byte(first + feature / 128 * 64 + feature % 64);
                code = byte >> (feature % 128 / 64 * 4) as u32 & 15u32;
            } else if comptime!(layout.format.weights() == FEATURES) {
                let byte = self.byte(first + feature / 64 * 32 + feature % 32);
                code = byte >> (feature % 64 / 32 * 4) as u32 & 15u32;
            } else {
                let byte = self.byte(first + feature % 16);
                code = byte >> (feature % GROUP / 16 * 4) as u32 & 15u32;
            }
        }
        code
    }

    /// Returns the upper bits of a code.
    fn upper(&self, row: usize, feature: usize, #[comptime] layout: BlockLayout) -> u32 {
        let mut bits = 0u32;
        if self.has(row, feature) {
            let block = self.block(row, feature, layout);
            if comptime!(layout.format == BlockFormat::Q6_K) {
                let byte = self.byte(block + 128 + feature / 128 * 32 + feature % 32);
                bits = byte >> (feature % 128 / 32 * 2) as u32 & 3u32;
            } else if comptime!(layout.format == BlockFormat::Q5_K) {
                let byte = self.byte(block + 16 + feature % 32);
                bits = byte >> (feature / 32) as u32 & 1u32;
            } else {
                let first = block + comptime!(codes_of_block(layout.format) - 4);
                let byte = self.byte(first + feature % GROUP / 8);
                bits = byte >> (feature % 8) as u32 & 1u32;
            }
        }
        bits
    }

    /// Returns a word of codes.
    fn codes(&self, vector: usize, word: usize, #[comptime] layout: BlockLayout) -> u32 {
        let (piece, lane) = (vector / LANES, vector % LANES);
        let row = piece % 2 * 8 + lane / MEMBERS;
        let member = lane % MEMBERS;
        let mut codes = 0u32;
        if comptime!(layout.code_bits == 8) {
            let group = piece / 2 * 2 + word / 2;
            let first = group * GROUP + first_of_run(word % 2, member);
            #[unroll]
            for i in 0..4usize {
                let byte = comptime!((i / 2 + i % 2 * 2) as u32);
                codes |= self.code(row, first + i, layout) << comptime!(8 * byte);
            }
        } else {
            let group = piece / 2 * 4 + word;
            #[unroll]
            for i in 0..8usize {
                let (pair, second) = comptime!((i / 2, i % 2));
                let run = first_of_run(comptime!(pair / 2).runtime(), member);
                let feature = group * GROUP + run + comptime!(pair % 2 * 2 + second);
                let code = self.code(row, feature, layout);
                codes |= code << comptime!((4 * pair + 16 * second) as u32);
            }
        }
        codes
    }

    /// Returns a word of upper bits.
    fn upper_bits(&self, vector: usize, word: usize, #[comptime] layout: BlockLayout) -> u32 {
        let lane = vector % LANES;
        let bits = comptime!(layout.upper_bits);
        let pairs = comptime!(16 / layout.upper_bits);
        let mut half = vector / LANES;
        let mut first = word * pairs;
        if comptime!(bits == 1) {
            half = word / 2;
            first = word % 2 * pairs;
        }
        let row = half * 8 + lane / MEMBERS;
        let mut all = 0u32;
        #[unroll]
        for i in 0..comptime!(2 * pairs) {
            let pair = first + comptime!(i / 2);
            let run = first_of_run(pair % 4 / 2, lane % MEMBERS);
            let feature = pair / 4 * GROUP + run + pair % 2 * 2 + comptime!(i % 2);
            let upper = self.upper(row, feature, layout);
            all |= upper << comptime!((i / 2 * bits + 16 * (i % 2)) as u32);
        }
        all
    }

    /// Returns a word of scales.
    fn scales(&self, vector: usize, word: usize, #[comptime] layout: BlockLayout) -> u32 {
        let row = vector % ROWS;
        let mut all = 0u32;
        if comptime!(layout.scales == Scales::SixBits) {
            if self.has(row, 0usize) {
                let block = self.block(row, 0usize, layout);
                if word == 0 {
                    all = self.half(block) | self.half(block + 2) << 16u32;
                } else {
                    all = self.six_bits(block + 4, word, 0usize)
                        | self.six_bits(block + 4, word, 1usize) << 16u32;
                }
            }
        } else if comptime!(layout.scales == Scales::Bytes) {
            if vector < ROWS {
                if self.has(row, 0usize) {
                    let first = self.block(row, 0usize, layout) + 192 + 4 * word;
                    all = self.byte(first)
                        | self.byte(first + 1) << 16u32
                        | self.byte(first + 2) << 8u32
                        | self.byte(first + 3) << 24u32;
                }
                all ^= 0x8080_8080u32;
            } else {
                let row = (vector - ROWS) * 4 + word;
                if self.has(row, 0usize) {
                    all = self.half(self.block(row, 0usize, layout) + 208);
                }
                if self.has(row + 8, 0usize) {
                    all |= self.half(self.block(row + 8, 0usize, layout) + 208) << 16u32;
                }
            }
        } else {
            #[unroll]
            for i in 0..2usize {
                let feature = (2 * word + i) * GROUP;
                if self.has(row, feature) {
                    let at = self.block(row, feature, layout) + vector / ROWS * 2;
                    all |= self.half(at) << comptime!(16 * i as u32);
                }
            }
        }
        all
    }

    /// Returns half `second` of a word of scales and minima; `first` is their first byte.
    fn six_bits(&self, first: usize, word: usize, second: usize) -> u32 {
        let upper = self.byte(first + 8 + second) | self.byte(first + 10 + second) << 16u32;
        let scales = self.byte(first + second) | self.byte(first + 2 + second) << 16u32;
        let minima = self.byte(first + 4 + second) | self.byte(first + 6 + second) << 16u32;
        // Groups 0 + second and 2 + second, and those 4 further on.
        let (low_scale, high_scale) = (scales & 63u32, scales >> 16u32 & 63u32);
        let mut bits = low_scale | high_scale << 6u32 | (upper & 15u32) << 12u32;
        if word == 2 {
            let (low, high) = (minima & 63u32, minima >> 16u32 & 63u32);
            let of_scales = (scales >> 6u32 & 3u32) << 12u32 | (scales >> 22u32 & 3u32) << 14u32;
            bits = low | high << 6u32 | of_scales;
        }
        if word == 3 {
            let low = (upper >> 4u32 & 15u32) | (minima >> 6u32 & 3u32) << 4u32;
            let high = (upper >> 20u32 & 15u32) | (minima >> 22u32 & 3u32) << 4u32;
            bits = low | high << 6u32 | (upper >> 16u32 & 15u32) << 12u32;
        }
        bits
    }
}

/// The first byte of the codes of a block.
fn codes_of_block(format: BlockFormat) -> usize {
    match format {
        BlockFormat::Q8_0 | BlockFormat::Q4_0 => 2,
        BlockFormat::Q4_1 => 4,
        BlockFormat::Q5_0 => 6,
        BlockFormat::Q5_1 => 8,
        BlockFormat::Q4_K => 16,
        BlockFormat::Q5_K => 48,
        BlockFormat::Q6_K => 0,
    }
}
