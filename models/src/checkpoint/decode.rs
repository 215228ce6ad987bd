//! From the bytes of a file to the weights of a tensor.

use burn::tensor::{DType, FloatDType, TensorData};
use half::{bf16, f16};

use super::{
    CheckpointError, chunk::Chunk, source::Source, stored_type::StoredType, weight::Weight,
};

/// Weights converted at a time: their bytes, their values in f32 and the result stay in a core's cache together, so that the check for
/// NaN costs no trip to memory, and a tensor needs no second copy of itself while it is read. Whole blocks of every type.
const CHUNK: usize = 1 << 15;

/// Weights of a block whose scale lies apart.
const SCALED_BLOCK: usize = 32;

/// Rows of a chunk that is transposed, at least: they become neighbours, and fewer would not fill a cache line of the result.
const TRANSPOSED_ROWS: usize = 16;

/// How the weights of a tensor lie behind one another once they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// As in the file.
    AsStored,
    /// A matrix [rows, columns] becomes [columns, rows].
    Transposed,
}

impl Order {
    fn other(self) -> Self {
        match self {
            Self::AsStored => Self::Transposed,
            Self::Transposed => Self::AsStored,
        }
    }
}

/// How one tensor lies in its file. The shape and the type agree with `bytes`, and a row is whole blocks: the header was checked.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) dtype: StoredType,
    pub(super) shape: Vec<usize>,
    /// From the start of the file.
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) layout: Layout,
    /// Of type, layout, shape and bytes, where the file has one.
    pub(super) checksum: Option<u32>,
}

/// How the weights of a tensor lie behind one another in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Row behind row: the rotary embedding pairs row i of a head with row i + head_dim / 2.
    Rows,
    /// Row behind row, in the order that llama.cpp has those of queries and keys in: the pairs are neighbours.
    PairedRows {
        /// Rows of a head.
        head_dim: usize,
    },
    /// Row behind row, with other weights between them: a part of the columns of a larger matrix, or one row again and again.
    SpacedRows {
        /// Weights from the beginning of a row to that of the next.
        stride: usize,
    },
    /// Column behind column: a matrix as the layers of a model want it.
    Columns,
}

impl Layout {
    /// The weights in the file before the row `row` of a tensor with rows of `columns`.
    fn start(self, row: usize, columns: usize) -> usize {
        match self {
            Self::Rows | Self::Columns => row * columns,
            Self::SpacedRows { stride } => row * stride,
            Self::PairedRows { head_dim } => {
                let (head, row) = (row / head_dim, row % head_dim);
                let (half, pair) = (row / (head_dim / 2), row % (head_dim / 2));
                (head * head_dim + 2 * pair + half) * columns
            }
        }
    }
}

impl Stored {
    pub(super) fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether every product of dimensions can be counted, also where one of them is zero and takes the others with it.
    pub(super) fn fits_into_memory(&self) -> bool {
        let mut sizes = self.shape.iter().map(|&size| size.max(1));
        let bytes = sizes.try_fold(size_of::<f64>(), usize::checked_mul);
        bytes.is_some_and(|bytes| isize::try_from(bytes).is_ok())
    }

    /// The matrix that the file of a matrix in columns holds in rows.
    fn transpose(&self) -> Self {
        Self {
            shape: self.shape.iter().rev().copied().collect(),
            layout: Layout::Rows,
            ..*self
        }
    }

    /// Weights of one row.
    fn columns(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// The position in the tensor of element `flat`.
    fn index(&self, mut flat: usize) -> Vec<usize> {
        let mut index = vec![0; self.shape.len()];
        for (position, &size) in index.iter_mut().zip(&self.shape).rev() {
            *position = flat % size;
            flat /= size;
        }
        index
    }
}

/// Reads the tensor `stored` in `source` as `dtype`; `on_bytes` hears how many bytes each chunk had.
pub(super) fn read(
    source: &Source,
    stored: &Stored,
    name: &str,
    dtype: FloatDType,
    order: Order,
    on_bytes: &dyn Fn(u64),
) -> Result<TensorData, CheckpointError> {
    if let Some(data) = blank(source, stored, dtype, order) {
        return Ok(data);
    }
    if stored.layout == Layout::Columns {
        // The file holds the transpose: what is a row behind row of one is a column behind column of the other.
        let transpose = stored.transpose();
        return read(source, &transpose, name, dtype, order.other(), on_bytes);
    }
    if let Some(data) = in_place(source, stored, dtype, order) {
        on_bytes(stored.bytes);
        return Ok(data);
    }
    let reader = Reader {
        source,
        stored,
        name,
        dtype,
        order,
        on_bytes,
    };
    match dtype {
        FloatDType::F64 => reader.read::<f64>(),
        FloatDType::F32 | FloatDType::Flex32 => reader.read::<f32>(),
        FloatDType::F16 => reader.read::<f16>(),
        FloatDType::BF16 => reader.read::<bf16>(),
    }
}

/// Zeros in the place of weights, if that is all there is.
fn blank(source: &Source, stored: &Stored, dtype: FloatDType, order: Order) -> Option<TensorData> {
    let mut shape = stored.shape.clone();
    if order == Order::Transposed {
        shape.reverse();
    }
    let dtype = DType::from(dtype);
    let zeros = source
        .zeros()?
        .view(0, stored.elements() * dtype.size())
        .ok()?;
    TensorData::try_from_bytes(zeros, shape, dtype).ok()
}

/// The weights where they lie, if the file is mapped and has them as they are asked for.
///
/// They are not looked at: who wrote the file has seen that they are finite, and its checksum that they are the same.
fn in_place(
    source: &Source,
    stored: &Stored,
    dtype: FloatDType,
    order: Order,
) -> Option<TensorData> {
    let same = match dtype {
        FloatDType::F32 => stored.dtype == StoredType::F32,
        FloatDType::F16 => stored.dtype == StoredType::F16,
        FloatDType::BF16 => stored.dtype == StoredType::BF16,
        _ => false,
    };
    if !same || order != Order::AsStored || cfg!(target_endian = "big") {
        return None;
    }
    let bytes = source.mapped()?.clone();
    TensorData::try_from_bytes(bytes, stored.shape.clone(), dtype.into()).ok()
}

struct Reader<'a> {
    source: &'a Source,
    stored: &'a Stored,
    name: &'a str,
    dtype: FloatDType,
    order: Order,
    on_bytes: &'a dyn Fn(u64),
}

impl Reader<'_> {
    fn read<W: Weight>(&self) -> Result<TensorData, CheckpointError> {
        let total = self.stored.elements();
        let mut weights = Vec::<W>::new();
        // The file is really as long as its header says, so this fails for want of memory only, and then without ending the process.
        weights
            .try_reserve_exact(total)
            .map_err(|_| CheckpointError::OutOfMemory {
                path: self.source.path().into(),
                tensor: self.name.into(),
                bytes: total.saturating_mul(size_of::<W>()),
            })?;

        let limit = match (self.order, &*self.stored.shape) {
            (Order::Transposed, &[_, columns]) => {
                weights.resize(total, W::ZERO);
                columns.saturating_mul((CHUNK / columns.max(1)).max(TRANSPOSED_ROWS))
            }
            _ if self.stored.layout != Layout::Rows => {
                let columns = self.stored.columns();
                columns * (CHUNK / columns.max(1)).max(1)
            }
            _ => CHUNK,
        };
        let mut chunk = Chunk::new(self.stored.dtype, total.min(limit))
            .ok_or_else(|| self.unsupported(self.stored.dtype))?;
        let mut converted = Vec::with_capacity(total.min(limit));
        let mut faults = Faults::default();
        let mut start = 0;
        while start < total {
            let count = (total - start).min(limit);
            let bytes = chunk.bytes(count);
            self.fetch(start, count, bytes)?;
            (self.on_bytes)(bytes.len() as u64);
            let values = chunk.values(count);
            converted.clear();
            W::extend(&mut converted, values);
            // No early exit within the chunk: the loop without branches runs many weights at a time.
            let check = |finite, weight: &W| finite & weight.is_finite();
            if !converted.iter().fold(true, check) {
                faults.count(start, values, &converted);
            }
            match (self.order, &*self.stored.shape) {
                (Order::Transposed, &[rows, columns]) => {
                    place_rows(&mut weights, rows, &converted, columns, start / columns);
                }
                _ => weights.extend_from_slice(&converted),
            }
            start += count;
        }
        self.refuse(faults)?;
        let mut shape = self.stored.shape.clone();
        if self.order == Order::Transposed {
            shape.reverse();
        }
        Ok(TensorData::new(weights, shape))
    }

    /// Reads the bytes of the `count` weights from `start` on, whole rows where rows lie in another order.
    fn fetch(&self, start: usize, count: usize, bytes: &mut [u8]) -> Result<(), CheckpointError> {
        let Stored { offset, layout, .. } = *self.stored;
        // No product overflows: the tensor lies within the file.
        let length = bytes.len() as u64;
        let per_weight = |weights: usize| weights as u64 * length / count as u64;
        if let scale @ 1.. = self.stored.dtype.scale_bytes() {
            let blocks = |weights: usize| weights / SCALED_BLOCK;
            let (codes, scales) = bytes.split_at_mut(bytes.len() - blocks(count) * scale);
            let all_codes = self.stored.bytes - (blocks(self.stored.elements()) * scale) as u64;
            let first = blocks(start) as u64;
            let per_block = (codes.len() / blocks(count)) as u64;
            self.source.read_at(offset + first * per_block, codes)?;
            return self
                .source
                .read_at(offset + all_codes + first * scale as u64, scales);
        }
        if layout == Layout::Rows {
            return self.source.read_at(offset + per_weight(start), bytes);
        }
        let columns = self.stored.columns();
        let row_bytes = per_weight(columns) as usize;
        for (row, bytes) in bytes.chunks_exact_mut(row_bytes).enumerate() {
            let place = layout.start(start / columns + row, columns);
            self.source.read_at(offset + per_weight(place), bytes)?;
        }
        Ok(())
    }

    fn unsupported(&self, found: StoredType) -> CheckpointError {
        CheckpointError::StoredType {
            path: self.source.path().into(),
            tensor: self.name.into(),
            found,
        }
    }

    fn refuse(&self, faults: Faults) -> Result<(), CheckpointError> {
        let (path, tensor) = (self.source.path().into(), self.name.into());
        let total = self.stored.elements();
        if let Some((at, value)) = faults.non_finite.first {
            return Err(CheckpointError::NonFinite {
                path,
                tensor,
                index: self.stored.index(at),
                value,
                count: faults.non_finite.count,
                total,
            });
        }
        if let Some((at, value)) = faults.out_of_range.first {
            return Err(CheckpointError::OutOfRange {
                path,
                tensor,
                index: self.stored.index(at),
                value,
                count: faults.out_of_range.count,
                total,
                dtype: self.dtype,
            });
        }
        Ok(())
    }
}

/// Writes whole rows of a matrix, from row `first` on, to where they belong in its transpose: rows of `height` weights.
fn place_rows<W: Copy>(
    transpose: &mut [W],
    height: usize,
    rows: &[W],
    columns: usize,
    first: usize,
) {
    // Few columns at a time: the lines that they are written to stay in the cache until the rows have filled them.
    const BLOCK: usize = 8;
    for left in (0..columns).step_by(BLOCK) {
        let width = BLOCK.min(columns - left);
        for (at, row) in rows.chunks_exact(columns).enumerate() {
            for (column, &weight) in row[left..left + width].iter().enumerate() {
                transpose[(left + column) * height + first + at] = weight;
            }
        }
    }
}

/// The weights that cannot be used, counted by what is wrong with them.
#[derive(Default)]
struct Faults {
    /// NaN or infinite in the file.
    non_finite: Fault,
    /// Finite in the file, infinite in the type asked for.
    out_of_range: Fault,
}

#[derive(Default)]
struct Fault {
    first: Option<(usize, f32)>,
    count: usize,
}

impl Faults {
    fn count<W: Weight>(&mut self, start: usize, values: &[f32], weights: &[W]) {
        for (at, (&value, weight)) in values.iter().zip(weights).enumerate() {
            let fault = match (value.is_finite(), weight.is_finite()) {
                (false, _) => &mut self.non_finite,
                (true, false) => &mut self.out_of_range,
                (true, true) => continue,
            };
            fault.first.get_or_insert((start + at, value));
            fault.count += 1;
        }
    }
}
