//! Decodes the bytes of a file into the weights of a tensor.

use burn::tensor::{DType, FloatDType, TensorData};
use half::{bf16, f16};

use super::{
    CheckpointError,
    formats::{Format, SCALE_BYTES, StoredType},
    source::Source,
    weight::Weight,
};

/// Weights converted at a time, whole blocks of every type.
///
/// Their bytes, their values in f32 and the result fit into a core's cache together. The check for
/// NaN therefore costs no trip to memory, and reading a tensor needs no second copy of it.
const CHUNK: usize = 1 << 15;

/// The least number of rows in a chunk that is transposed. They become neighbours in the result,
/// and fewer would not fill a cache line of it.
const TRANSPOSED_ROWS: usize = 16;

/// The order of a tensor's weights in memory.
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

/// The place and layout of one tensor in its file.
///
/// The header has been checked: shape and type agree with `bytes`, and a row is whole blocks.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) dtype: StoredType,
    pub(super) shape: Vec<usize>,
    /// From the start of the file.
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) layout: Layout,
    /// The checksum of type, layout, shape and bytes, if the file has one.
    pub(super) checksum: Option<u32>,
}

/// The order of a tensor's weights in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Row-major. RoPE pairs row i of a head with row i + head_dim / 2.
    Rows,
    /// Row-major, with the rows of queries and keys in llama.cpp's order: RoPE pairs neighbours.
    PairedRows {
        /// Rows of a head.
        head_dim: usize,
    },
    /// Row-major with a stride: some columns of a larger matrix, or one row repeated.
    SpacedRows {
        /// Weights from the beginning of a row to that of the next.
        stride: usize,
    },
    /// Column-major: the layout of a matrix in a linear layer.
    Columns,
}

impl Layout {
    /// Returns the number of weights in the file before the row `row` of a tensor with rows of
    /// `columns` weights.
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

    /// Returns whether every product of dimensions fits into memory, even beside a dimension of 0.
    pub(super) fn fits_into_memory(&self) -> bool {
        let mut sizes = self.shape.iter().map(|&size| size.max(1));
        let bytes = sizes.try_fold(size_of::<f64>(), usize::checked_mul);
        bytes.is_some_and(|bytes| isize::try_from(bytes).is_ok())
    }

    /// Returns the transpose of a column-major matrix, which the file holds row-major.
    fn transpose(&self) -> Self {
        Self {
            shape: self.shape.iter().rev().copied().collect(),
            layout: Layout::Rows,
            ..*self
        }
    }

    /// Returns the number of weights in one row.
    fn columns(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Returns the index in the tensor of element `flat`.
    fn index(&self, mut flat: usize) -> Vec<usize> {
        let mut index = vec![0; self.shape.len()];
        for (position, &size) in index.iter_mut().zip(&self.shape).rev() {
            *position = flat % size;
            flat /= size;
        }
        index
    }
}

/// Reads the tensor `stored` in `source` as `dtype`. Calls `on_bytes` with the number of bytes of
/// each chunk.
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
        let transpose = stored.transpose();
        return read(source, &transpose, name, dtype, order.other(), on_bytes);
    }
    if let Some(data) = in_place(source, stored, dtype, order) {
        on_bytes(stored.bytes);
        return Ok(data);
    }
    let Some(format) = stored.dtype.format() else {
        return Err(CheckpointError::StoredType {
            path: source.path().into(),
            tensor: name.into(),
            found: stored.dtype,
        });
    };
    let reader = Reader {
        source,
        stored,
        format,
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

/// Returns zeros if `source` is blank.
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

/// Returns the mapped weights without a copy, if the file is mapped and has them in this type and
/// order.
///
/// Their values are not checked again: the conversion has checked that they are finite, and the
/// checksum that they have not changed.
fn in_place(
    source: &Source,
    stored: &Stored,
    dtype: FloatDType,
    order: Order,
) -> Option<TensorData> {
    let same = stored.dtype.float().is_some_and(|(own, _)| own == dtype);
    if !same || order != Order::AsStored || cfg!(target_endian = "big") {
        return None;
    }
    let bytes = source.mapped()?.clone();
    TensorData::try_from_bytes(bytes, stored.shape.clone(), dtype.into()).ok()
}

/// One tensor while it is read chunk by chunk.
struct Reader<'a> {
    source: &'a Source,
    stored: &'a Stored,
    format: &'static Format,
    name: &'a str,
    dtype: FloatDType,
    order: Order,
    on_bytes: &'a dyn Fn(u64),
}

impl Reader<'_> {
    fn read<W: Weight>(&self) -> Result<TensorData, CheckpointError> {
        let total = self.stored.elements();
        let mut weights = self.reserve::<W>(total)?;
        if self.is_transposed_matrix() {
            weights.resize(total, W::ZERO);
        }
        let limit = self.chunk_limit();
        let Format { block, decode, .. } = *self.format;
        let bytes_of = |weights: usize| weights / block.weights * block.bytes;
        let mut bytes = vec![0; bytes_of(total.min(limit))];
        let mut values = vec![0.0; total.min(limit)];
        let mut converted = Vec::with_capacity(total.min(limit));
        let mut faults = Faults::default();
        let mut start = 0;
        while start < total {
            let count = (total - start).min(limit);
            let (bytes, values) = (&mut bytes[..bytes_of(count)], &mut values[..count]);
            self.fetch(start, count, bytes)?;
            (self.on_bytes)(bytes.len() as u64);
            decode(bytes, values);
            converted.clear();
            W::extend(&mut converted, values);
            // No early exit within the chunk: a loop without branches is vectorised.
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

    /// Reserves memory for the weights. The file is as long as its header says, so this fails only
    /// if memory runs out, and then with an error instead of an abort.
    fn reserve<W: Weight>(&self, total: usize) -> Result<Vec<W>, CheckpointError> {
        let mut weights = Vec::new();
        let reserved = weights.try_reserve_exact(total);
        reserved.map_err(|_| CheckpointError::OutOfMemory {
            path: self.source.path().into(),
            tensor: self.name.into(),
            bytes: total.saturating_mul(size_of::<W>()),
        })?;
        Ok(weights)
    }

    fn is_transposed_matrix(&self) -> bool {
        self.order == Order::Transposed && self.stored.shape.len() == 2
    }

    /// Returns the number of weights read at a time: whole rows unless their order stays as stored.
    fn chunk_limit(&self) -> usize {
        let columns = self.stored.columns();
        let rows = CHUNK / columns.max(1);
        if self.is_transposed_matrix() {
            columns.saturating_mul(rows.max(TRANSPOSED_ROWS))
        } else if self.stored.layout != Layout::Rows {
            columns * rows.max(1)
        } else {
            CHUNK
        }
    }

    /// Reads the bytes of `count` weights from `start` on.
    fn fetch(&self, start: usize, count: usize, bytes: &mut [u8]) -> Result<(), CheckpointError> {
        let Stored { offset, layout, .. } = *self.stored;
        let block = self.format.block;
        // No product overflows: the tensor lies within the file.
        let bytes_of = |weights: usize| (weights / block.weights * block.bytes) as u64;
        if self.stored.dtype.quantized().is_some() {
            // In the file, the scales of all blocks follow the codes of all blocks.
            let blocks = |weights: usize| weights / block.weights;
            let code_bytes = block.bytes - SCALE_BYTES;
            let scales_start = blocks(self.stored.elements()) * code_bytes;
            let (codes, scales) = bytes.split_at_mut(blocks(count) * code_bytes);
            let first = blocks(start);
            self.source
                .read_at(offset + (first * code_bytes) as u64, codes)?;
            let scales_start = offset + (scales_start + first * SCALE_BYTES) as u64;
            return self.source.read_at(scales_start, scales);
        }
        if layout == Layout::Rows {
            return self.source.read_at(offset + bytes_of(start), bytes);
        }
        let columns = self.stored.columns();
        let rows = bytes.chunks_exact_mut(bytes_of(columns) as usize);
        for (row, bytes) in rows.enumerate() {
            let place = layout.start(start / columns + row, columns);
            self.source.read_at(offset + bytes_of(place), bytes)?;
        }
        Ok(())
    }

    /// Returns the error for the first fault, if there is one.
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

/// Writes whole rows of a matrix, from row `first` on, into its transpose, whose rows have `height`
/// weights.
fn place_rows<W: Copy>(
    transpose: &mut [W],
    height: usize,
    rows: &[W],
    columns: usize,
    first: usize,
) {
    // With few columns at a time, the cache lines written to stay in the cache until they are full.
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

/// The number of unusable weights, by kind of fault.
#[derive(Default)]
struct Faults {
    /// NaN or infinite in the file.
    non_finite: Fault,
    /// Finite in the file, infinite in the requested type.
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
