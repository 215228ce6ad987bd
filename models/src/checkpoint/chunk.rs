//! A piece of a tensor on its way from the file: [`Chunk`].

use half::{f16, slice::HalfFloatSliceExt};

use super::{
    blocks,
    stored_type::{Block, StoredType},
};

/// The buffers of one chunk: bytes as stored, and their values in f32, which holds every stored float exactly.
pub(super) struct Chunk {
    dtype: StoredType,
    block: Block,
    bytes: Vec<u8>,
    halves: Vec<f16>,
    values: Vec<f32>,
}

impl Chunk {
    /// Buffers for up to `count` weights, which are whole blocks, or `None` for a type that is not read.
    pub(super) fn new(dtype: StoredType, count: usize) -> Option<Self> {
        let block = dtype.block()?;
        let halves = if dtype == StoredType::F16 { count } else { 0 };
        Some(Self {
            dtype,
            block,
            bytes: vec![0; count / block.weights * block.bytes],
            halves: vec![f16::ZERO; halves],
            values: vec![0.0; count],
        })
    }

    /// The place for the bytes of `count` weights. Scales that lie behind all codes in the file lie behind those of the chunk here.
    pub(super) fn bytes(&mut self, count: usize) -> &mut [u8] {
        &mut self.bytes[..count / self.block.weights * self.block.bytes]
    }

    /// The values of the first `count` weights.
    pub(super) fn values(&mut self, count: usize) -> &[f32] {
        let values = &mut self.values[..count];
        let pairs = self.bytes.as_chunks::<2>().0;
        match self.dtype {
            StoredType::F32 => {
                for (value, &bytes) in values.iter_mut().zip(self.bytes.as_chunks().0) {
                    *value = f32::from_le_bytes(bytes);
                }
            }
            StoredType::F16 => {
                let halves = &mut self.halves[..count];
                for (half, &bytes) in halves.iter_mut().zip(pairs) {
                    *half = f16::from_le_bytes(bytes);
                }
                halves.convert_to_f32_slice(values);
            }
            StoredType::BF16 => {
                for (value, &bytes) in values.iter_mut().zip(pairs) {
                    *value = f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16);
                }
            }
            StoredType::Q4_0 => each(&self.bytes, values, blocks::q4_0),
            StoredType::Q4_1 => each(&self.bytes, values, blocks::q4_1),
            StoredType::Q5_0 => each(&self.bytes, values, blocks::q5_0),
            StoredType::Q5_1 => each(&self.bytes, values, blocks::q5_1),
            StoredType::Q8_0 => each(&self.bytes, values, blocks::q8_0),
            StoredType::Q4_K => each(&self.bytes, values, blocks::q4_k),
            StoredType::Q5_K => each(&self.bytes, values, blocks::q5_k),
            StoredType::Q6_K => each(&self.bytes, values, blocks::q6_k),
            StoredType::Q8 => each_scaled(&self.bytes, values, blocks::q8),
            StoredType::Q4 => each_scaled(&self.bytes, values, blocks::q4),
            StoredType::Other(_) => unreachable!("there is no chunk of such a type"),
        }
        values
    }
}

/// Decodes block after block.
fn each<const BYTES: usize, const WEIGHTS: usize>(
    bytes: &[u8],
    values: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; WEIGHTS]),
) {
    let blocks = bytes.as_chunks().0.iter();
    for (block, values) in blocks.zip(values.as_chunks_mut().0) {
        decode(block, values);
    }
}

/// Decodes block after block of codes with the scales behind them.
fn each_scaled<const BYTES: usize, const WEIGHTS: usize>(
    bytes: &[u8],
    values: &mut [f32],
    decode: impl Fn(&[u8; BYTES], f32, &mut [f32; WEIGHTS]),
) {
    let values = values.as_chunks_mut().0;
    let (codes, scales) = bytes.split_at(values.len() * BYTES);
    let scales = scales
        .as_chunks()
        .0
        .iter()
        .map(|&scale| f16::from_le_bytes(scale).to_f32());
    for ((codes, scale), values) in codes.as_chunks().0.iter().zip(scales).zip(values) {
        decode(codes, scale, values);
    }
}
