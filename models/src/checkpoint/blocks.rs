//! Reads matrices in blocks without dequantising them.

use std::ops::Range;

use burn::tensor::Bytes;
use sparq::ops::BlockFormat;

use super::{
    Checkpoint, CheckpointError,
    decode::{Layout, Request, Stored},
    source::Source,
    threads,
};

/// Bytes of blocks that a thread checks or copies at a time.
const CHUNK_BYTES: usize = 1 << 20;

impl Checkpoint {
    /// Returns the blocks of the matrix `name`, or of some of its rows, of the shape `shape`, row
    /// by row. `None` if products do not read its stored type, or if the checkpoint gives
    /// [floats](Self::with_floats).
    ///
    /// Rows in the order of the file are mapped if `map` is set.
    pub(super) fn blocks(
        &self,
        (name, rows): (&str, Option<Range<usize>>),
        shape: [usize; 2],
        map: bool,
        request: Request<'_>,
    ) -> Result<Option<(BlockFormat, Bytes)>, CheckpointError> {
        let Some(tracked) = self.tensors.get(name).filter(|_| !self.floats) else {
            return Ok(None);
        };
        let source = &self.sources[tracked.source];
        let Some(stored) = rows.map_or(Some(tracked.stored.clone()), |rows| {
            tracked.stored.rows(rows)
        }) else {
            return Ok(None);
        };
        let stored = &stored;
        let Some(format) = stored.dtype.packed().filter(|_| stored.shape == shape) else {
            return Ok(None);
        };
        if !is_in_whole_blocks(stored, format) {
            return Ok(None);
        }
        self.verify_tensor(tracked, name)?;
        let bytes = match source.zeros() {
            Some(zeros) => zeros.view(0, stored.bytes as usize).ok(),
            None => read(source, stored, format, map, request)?,
        };
        let Some(bytes) = bytes.filter(|bytes| are_finite(format, bytes)) else {
            // Reading the weights one by one finds the first that is not finite.
            return Ok(None);
        };
        (request.on_bytes)(stored.bytes);
        self.ignore(name);
        Ok(Some((format, bytes)))
    }
}

/// Returns whether every row begins with a block.
fn is_in_whole_blocks(stored: &Stored, format: BlockFormat) -> bool {
    let whole = |weights: usize| weights.is_multiple_of(format.weights());
    match stored.layout {
        Layout::Rows | Layout::PairedRows { .. } => whole(stored.columns()),
        Layout::SpacedRows { stride } => whole(stored.columns()) && whole(stride),
        Layout::Columns => false,
    }
}

/// Returns the blocks row by row.
fn read(
    source: &Source,
    stored: &Stored,
    format: BlockFormat,
    map: bool,
    request: Request<'_>,
) -> Result<Option<Bytes>, CheckpointError> {
    // The file is as long as its header says, so this is its size in memory.
    let (size, in_order) = (stored.bytes as usize, stored.layout == Layout::Rows);
    if map
        && in_order
        && let Some(bytes) = source.map(stored.offset, size)?
    {
        return Ok(Some(bytes));
    }
    let buffer = request.staging.and_then(|staging| staging.take(size));
    match buffer {
        Some(mut buffer) => {
            fill(source, stored, format, buffer.as_mut())?;
            Ok(Some(buffer.into_bytes()))
        }
        None => {
            let mut bytes = vec![0; size];
            fill(source, stored, format, &mut bytes)?;
            Ok(Some(Bytes::from_bytes_vec(bytes)))
        }
    }
}

/// Reads the rows into `bytes`, with several threads.
fn fill(
    source: &Source,
    stored: &Stored,
    format: BlockFormat,
    bytes: &mut [u8],
) -> Result<(), CheckpointError> {
    let (columns, count) = (stored.columns(), threads::for_bytes(bytes.len()));
    let row_bytes = format.row_bytes(columns);
    let rows = (CHUNK_BYTES / row_bytes.max(1)).max(1);
    let chunks = bytes.chunks_mut((rows * row_bytes).max(1)).enumerate();
    let read_chunk = |(index, bytes): (usize, &mut [u8])| {
        if stored.layout == Layout::Rows {
            let start = (index * rows * row_bytes) as u64;
            return source.read_at(stored.offset + start, bytes);
        }
        let mut each = bytes.chunks_exact_mut(row_bytes).enumerate();
        each.try_for_each(|(row, bytes)| {
            let weights = stored.layout.start(index * rows + row, columns);
            let start = format.row_bytes(weights) as u64;
            source.read_at(stored.offset + start, bytes)
        })
    };
    let results = threads::run(count, chunks, |chunks| {
        let mut read = chunks.map(read_chunk);
        read.try_for_each(|result| result)
    });
    results.into_iter().collect()
}

/// Returns whether all weights of the blocks are finite, which their scales determine.
fn are_finite(format: BlockFormat, bytes: &[u8]) -> bool {
    let blocks = CHUNK_BYTES / format.bytes();
    let chunks = bytes.chunks(blocks * format.bytes());
    let results = threads::run(threads::for_bytes(bytes.len()), chunks, |chunks| {
        let mut finite = chunks.map(|chunk| format.is_finite(chunk));
        finite.all(|finite| finite)
    });
    results.into_iter().all(|finite| finite)
}
