//! The blocks of a file from the layout of [`blocks`](super::super::parts::blocks), on the host:
//! weights leave a device when they are saved or moved.

use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;

use super::super::parts::blocks::{
    BlockLayout, FEATURES, GROUP, LANES, MEMBERS, ROWS, RUN, Scales, tiles_of_row,
};
use crate::ops::BlockFormat;
use crate::ops::primitive::Primitive;

/// Reads the tiles of a matrix, and returns its blocks in words.
pub(super) fn restore(tiles: &CubeTensor, layout: BlockLayout, dims: [usize; 2]) -> CubeTensor {
    let tiles = CubeBackend::int::<1>(tiles.clone());
    let device = tiles.device();
    let data = tiles.into_data();
    let words = data.as_slice::<u32>().expect("tiles are words");
    let words = blocks_of(words, layout, dims);
    let data = TensorData::new(words.clone(), [words.len()]);
    CubeBackend::int_primitive(Tensor::<1, Int>::from_data(data, (&device, DType::U32)))
}

fn blocks_of(tiles: &[u32], layout: BlockLayout, [outputs, features]: [usize; 2]) -> Vec<u32> {
    let weights = layout.format.weights();
    let mut bytes = Vec::with_capacity(outputs * layout.format.row_bytes(features) + 3);
    for row in 0..outputs {
        for feature in (0..features).step_by(weights) {
            let tile = row / ROWS * tiles_of_row(features) + feature / FEATURES;
            let row = Row {
                words: &tiles[tile * layout.words()..][..layout.words()],
                layout,
                row: row % ROWS,
            };
            row.write_block(feature % FEATURES, &mut bytes);
        }
    }
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
    bytes.chunks_exact(4).map(word).collect()
}

/// A row of a tile.
struct Row<'a> {
    words: &'a [u32],
    layout: BlockLayout,
    row: usize,
}

impl Row<'_> {
    /// Appends the block from feature `first` on.
    fn write_block(&self, first: usize, bytes: &mut Vec<u8>) {
        let layout = self.layout;
        let group = first / GROUP;
        match layout.format {
            BlockFormat::Q6_K => self.write_q6_k(bytes),
            BlockFormat::Q4_K | BlockFormat::Q5_K => self.write_six_bits(bytes),
            format => {
                let halves = if layout.scales == Scales::Halves {
                    1
                } else {
                    2
                };
                for vector in 0..halves {
                    let pair = self.scale_word(vector * ROWS + self.row, group / 2);
                    bytes.extend(half(pair, group % 2));
                }
                let code = |i: usize| self.code(first + i);
                if format == BlockFormat::Q8_0 {
                    bytes.extend((0..GROUP).map(|i| code(i) as u8 ^ 128));
                    return;
                }
                if layout.upper_bits > 0 {
                    let fifth = (0..GROUP).fold(0, |bits, i| bits | (code(i) >> 4) << i);
                    bytes.extend(u32::to_le_bytes(fifth));
                }
                bytes.extend((0..16).map(|i| nibbles(code(i), code(i + 16))));
            }
        }
    }

    fn write_six_bits(&self, bytes: &mut Vec<u8>) {
        let word = |i: usize| self.scale_word(self.row, i);
        bytes.extend(word(0).to_le_bytes());
        // Pairs of the scales, then of the minima.
        let pairs = [
            word(1),
            word(1) >> 6,
            (word(1) >> 12 & 0x000F_000F) | (word(2) >> 8 & 0x0030_0030),
            (word(3) >> 12 & 0x000F_000F) | (word(2) >> 10 & 0x0030_0030),
            word(2),
            word(2) >> 6,
            word(3),
            word(3) >> 6,
        ];
        let six = |i: usize| (pairs[i / 2] >> (i % 2 * 16) & 63) as u8;
        let (scale, minimum) = (|i: usize| six(i), |i: usize| six(8 + i));
        bytes.extend((0..4).map(|i| scale(i) | scale(i + 4) >> 4 << 6));
        bytes.extend((0..4).map(|i| minimum(i) | minimum(i + 4) >> 4 << 6));
        bytes.extend((4..8).map(|i| scale(i) & 15 | minimum(i) << 4));
        if self.layout.upper_bits > 0 {
            let fifth = |i: usize| {
                (0..8).fold(0, |bits, r| bits | (self.code(GROUP * r + i) >> 4) << r) as u8
            };
            bytes.extend((0..GROUP).map(fifth));
        }
        let code = |i: usize| self.code(i / 32 * 64 + i % 32);
        bytes.extend((0..128).map(|i| nibbles(code(i), self.code(i / 32 * 64 + i % 32 + 32))));
    }

    fn write_q6_k(&self, bytes: &mut Vec<u8>) {
        let low = |i: usize| {
            let first = i / 64 * 128 + i % 64;
            nibbles(self.code(first), self.code(first + 64))
        };
        bytes.extend((0..128).map(low));
        let high = |i: usize| {
            let first = i / 32 * 128 + i % 32;
            (0..4).fold(0, |bits, r| {
                bits | (self.code(first + 32 * r) >> 4) << (2 * r)
            }) as u8
        };
        bytes.extend((0..64).map(high));
        let scale = |i: usize| {
            let byte = i % 4 / 2 + i % 2 * 2;
            (self.scale_word(self.row, i / 4) >> (8 * byte)) as u8 ^ 128
        };
        bytes.extend((0..16).map(scale));
        let rows = self.scale_word(ROWS + self.row % 8 / 4, self.row % 4);
        bytes.extend(half(rows, self.row / 8));
    }

    /// Returns a word of a vector of scales.
    fn scale_word(&self, vector: usize, word: usize) -> u32 {
        self.words[4 * (self.layout.before_scales() + vector) + word]
    }

    /// Returns a code with its upper bits.
    fn code(&self, feature: usize) -> u32 {
        let (group, place) = (feature / GROUP, feature % GROUP);
        let lane = self.row % 8 * MEMBERS + place % 16 / RUN;
        let half = self.row / 8;
        let (run, pair, second) = (place / 16, place / 16 * 2 + place % RUN / 2, place % 2);
        let word = |vector: usize, word: usize| self.words[4 * vector + word];
        if self.layout.code_bits == 8 {
            let codes = word((group / 2 * 2 + half) * LANES + lane, group % 2 * 2 + run);
            return codes >> (8 * (pair % 2) + 16 * second) & 255;
        }
        let codes = word((group / 4 * 2 + half) * LANES + lane, group % 4);
        let code = codes >> (4 * pair + 16 * second) & 15;
        let upper = self.layout.codes();
        let index = 4 * group + pair;
        match self.layout.upper_bits {
            0 => code,
            1 => {
                let bits = word(upper + lane, 2 * half + index / 16);
                code | (bits >> (index % 16 + 16 * second) & 1) << 4
            }
            _ => {
                let bits = word(upper + half * LANES + lane, index / 8);
                code | (bits >> (2 * (index % 8) + 16 * second) & 3) << 4
            }
        }
    }
}

fn nibbles(low: u32, high: u32) -> u8 {
    (low & 15 | (high & 15) << 4) as u8
}

fn half(pair: u32, second: usize) -> [u8; 2] {
    ((pair >> (16 * second)) as u16).to_le_bytes()
}
