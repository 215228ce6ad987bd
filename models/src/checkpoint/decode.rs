//! The layout of a tensor in its file, and the ways to read it.

use std::ops::Range;

use burn::tensor::{DType, FloatDType, TensorData};
use half::{bf16, f16};

use super::{
    CheckpointError, formats::StoredType, reader::Reader, source::Source, staging::Staging,
};

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

/// The type and order in which a tensor is read, and the place.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) dtype: FloatDType,
    pub(super) order: Order,
    /// The buffers that the device copies from, if it has its own.
    pub(super) staging: Option<&'a Staging>,
    /// Receives the number of bytes of each chunk, from several threads.
    pub(super) on_bytes: &'a (dyn Fn(u64) + Sync),
}

impl<'a> Request<'a> {
    /// Reads as `dtype`, in the order of the file, into memory of the process.
    pub(super) fn new(dtype: FloatDType, on_bytes: &'a (dyn Fn(u64) + Sync)) -> Self {
        Self {
            dtype,
            order: Order::AsStored,
            staging: None,
            on_bytes,
        }
    }

    pub(super) fn with_order(self, order: Order) -> Self {
        Self { order, ..self }
    }
}

/// The place and layout of one tensor in its file.
///
/// The header has been checked: shape and type agree with `bytes`, and a row is whole blocks.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) dtype: StoredType,
    pub(super) shape: Vec<usize>,
    /// From the start of the file.
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) layout: Layout,
    /// The checksum of type, layout, shape and bytes, if the file has one.
    pub(super) checksum: Option<u32>,
    /// The place in a larger tensor whose scales follow all its codes.
    pub(super) within: Option<Within>,
}

/// The place of some rows in a quantised tensor of a converted model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Within {
    /// The number of weights before the rows.
    pub(super) first: usize,
    /// The number of weights of the whole tensor.
    pub(super) total: usize,
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
    pub(super) fn start(self, row: usize, columns: usize) -> usize {
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

    /// Returns some rows as a tensor of their own, if the tensor has them and stores them one after
    /// the other.
    pub(super) fn rows(&self, rows: Range<usize>) -> Option<Self> {
        let (&all, rest) = self.shape.split_first()?;
        if self.layout != Layout::Rows || rows.end > all {
            return None;
        }
        // Rows are whole blocks.
        let row = self.bytes / all.max(1) as u64;
        let apart = self.dtype.quantized().is_some();
        let shape = std::iter::once(rows.len()).chain(rest.iter().copied());
        Some(Self {
            dtype: self.dtype,
            shape: shape.collect(),
            offset: self.offset + if apart { 0 } else { row * rows.start as u64 },
            bytes: row * rows.len() as u64,
            layout: self.layout,
            checksum: None,
            within: apart.then(|| Within {
                first: rows.start * self.columns(),
                total: self.elements(),
            }),
        })
    }

    /// Returns the number of weights in one row.
    pub(super) fn columns(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Returns the index in the tensor of element `flat`.
    pub(super) fn index(&self, mut flat: usize) -> Vec<usize> {
        let mut index = vec![0; self.shape.len()];
        for (position, &size) in index.iter_mut().zip(&self.shape).rev() {
            *position = flat % size;
            flat /= size;
        }
        index
    }
}

/// Reads the tensor `stored` in `source`.
pub(super) fn read(
    source: &Source,
    stored: &Stored,
    name: &str,
    request: Request<'_>,
) -> Result<TensorData, CheckpointError> {
    let Request { dtype, order, .. } = request;
    if let Some(data) = blank(source, stored, dtype, order) {
        return Ok(data);
    }
    if stored.layout == Layout::Columns {
        let request = request.with_order(order.other());
        return read(source, &stored.transpose(), name, request);
    }
    let size = stored.elements() * DType::from(dtype).size();
    let buffer = request.staging.and_then(|staging| staging.take(size));
    if buffer.is_none()
        && let Some(data) = in_place(source, stored, dtype, order)
    {
        (request.on_bytes)(stored.bytes);
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
        on_bytes: request.on_bytes,
    };
    match dtype {
        FloatDType::F64 => reader.read::<f64>(buffer),
        FloatDType::F32 | FloatDType::Flex32 => reader.read::<f32>(buffer),
        FloatDType::F16 => reader.read::<f16>(buffer),
        FloatDType::BF16 => reader.read::<bf16>(buffer),
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
    let bytes = match bytes.len() as u64 == stored.bytes {
        true => bytes,
        false => bytes
            .view(stored.offset as usize, stored.bytes as usize)
            .ok()?,
    };
    TensorData::try_from_bytes(bytes, stored.shape.clone(), dtype.into()).ok()
}
