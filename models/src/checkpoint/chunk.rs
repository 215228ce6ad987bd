//! A piece of a tensor on its way from the file: [`Chunk`].

use half::{f16, slice::HalfFloatSliceExt};
use safetensors::Dtype;

/// The buffers of one chunk: bytes as stored, and their values in f32, which holds every stored type exactly.
pub(super) struct Chunk {
    dtype: Dtype,
    bytes: Vec<u8>,
    halves: Vec<f16>,
    values: Vec<f32>,
}

impl Chunk {
    /// Buffers for up to `count` weights, or `None` for a type that is not read.
    pub(super) fn new(dtype: Dtype, count: usize) -> Option<Self> {
        let (size, halves) = match dtype {
            Dtype::F32 => (4, 0),
            Dtype::BF16 => (2, 0),
            Dtype::F16 => (2, count),
            _ => return None,
        };
        Some(Self {
            dtype,
            bytes: vec![0; count * size],
            halves: vec![f16::ZERO; halves],
            values: vec![0.0; count],
        })
    }

    /// The place for the bytes of `count` weights.
    pub(super) fn bytes(&mut self, count: usize) -> &mut [u8] {
        let size = if self.dtype == Dtype::F32 { 4 } else { 2 };
        &mut self.bytes[..count * size]
    }

    /// The values of the first `count` weights.
    pub(super) fn values(&mut self, count: usize) -> &[f32] {
        let values = &mut self.values[..count];
        let pairs = self.bytes.as_chunks::<2>().0;
        match self.dtype {
            Dtype::F32 => {
                for (value, &bytes) in values.iter_mut().zip(self.bytes.as_chunks().0) {
                    *value = f32::from_le_bytes(bytes);
                }
            }
            Dtype::F16 => {
                let halves = &mut self.halves[..count];
                for (half, &bytes) in halves.iter_mut().zip(pairs) {
                    *half = f16::from_le_bytes(bytes);
                }
                halves.convert_to_f32_slice(values);
            }
            _ => {
                for (value, &bytes) in values.iter_mut().zip(pairs) {
                    *value = f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16);
                }
            }
        }
        values
    }
}
