//! Reads, converts and checks one tensor: [`Reader`].

use burn::tensor::{FloatDType, TensorData};

use super::{
    CheckpointError,
    decode::{Layout, Order, Stored},
    formats::{Format, SCALE_BYTES},
    source::Source,
    staging::Buffer,
    threads,
    weight::{self, Weight},
};

/// Weights converted at a time, whole blocks of every type.
///
/// Their bytes, their values in f32 and the result fit into a core's cache together. The check for
/// NaN therefore costs no trip to memory, and reading a tensor needs no second copy of it.
const CHUNK: usize = 1 << 15;

/// Bytes read at a time if nothing is converted. The check finds them in a core's cache.
const COPIED_BYTES: usize = 1 << 18;

/// The least number of rows in a chunk that is transposed. They become neighbours in the result,
/// and fewer would not fill a cache line of it.
const TRANSPOSED_ROWS: usize = 16;

/// One tensor while it is read chunk by chunk, by several threads.
pub(super) struct Reader<'a> {
    pub(super) source: &'a Source,
    pub(super) stored: &'a Stored,
    pub(super) format: &'static Format,
    pub(super) name: &'a str,
    pub(super) dtype: FloatDType,
    pub(super) order: Order,
    pub(super) on_bytes: &'a (dyn Fn(u64) + Sync),
}

impl Reader<'_> {
    /// Reads the tensor into `buffer`, which has its size, or into memory of the process.
    pub(super) fn read<W: Weight>(
        &self,
        buffer: Option<Buffer>,
    ) -> Result<TensorData, CheckpointError> {
        let total = self.stored.elements();
        let weights = match buffer {
            Some(mut buffer) => {
                self.fill::<W>(buffer.as_mut())?;
                buffer.into_bytes()
            }
            None => {
                self.check_memory(total * W::BYTES)?;
                let mut weights = W::zeros(total);
                self.fill::<W>(&mut weights)?;
                weights
            }
        };
        let mut shape = self.stored.shape.clone();
        if self.order == Order::Transposed {
            shape.reverse();
        }
        Ok(TensorData::from_bytes(weights, shape, W::DTYPE))
    }

    /// Returns an error if the system does not provide `bytes` bytes: allocating them without this
    /// check would end the process. The file is as long as its header says, so this fails only if
    /// memory runs out.
    fn check_memory(&self, bytes: usize) -> Result<(), CheckpointError> {
        let reserved = Vec::<u8>::new().try_reserve_exact(bytes);
        reserved.map_err(|_| CheckpointError::OutOfMemory {
            path: self.source.path().into(),
            tensor: self.name.into(),
            bytes,
        })
    }

    /// Fills `weights` with the tensor.
    fn fill<W: Weight>(&self, weights: &mut [u8]) -> Result<(), CheckpointError> {
        if weights.is_empty() {
            return Ok(());
        }
        let faults = match (self.order, &*self.stored.shape) {
            (Order::Transposed, &[rows, columns]) => {
                self.fill_transposed::<W>(weights, rows, columns)?
            }
            _ => self.fill_in_order::<W>(weights)?,
        };
        self.refuse(faults)
    }

    /// Fills `weights` in the order of the file, with several threads.
    fn fill_in_order<W: Weight>(&self, weights: &mut [u8]) -> Result<Faults, CheckpointError> {
        let limit = self.chunk_limit::<W>();
        let count = threads::for_bytes(weights.len());
        let chunks = weights.chunks_mut(limit * W::BYTES).enumerate();
        let results = threads::run(count, chunks, |chunks| -> Result<_, CheckpointError> {
            let (mut scratch, mut faults) = (Scratch::default(), Faults::default());
            while let Some((index, weights)) = chunks.next() {
                let read = self.read_chunk::<W>(index * limit, weights, &mut scratch, &mut faults);
                if let Err(error) = read {
                    // The other threads find no chunk left.
                    chunks.for_each(drop);
                    return Err(error);
                }
            }
            Ok(faults)
        });
        results
            .into_iter()
            .try_fold(Faults::default(), |all, one| Ok(all.and(one?)))
    }

    /// Fills `weights` with the transpose of the matrix [rows, columns] of the file.
    ///
    /// On one thread, because chunks of rows are interleaved in the result.
    fn fill_transposed<W: Weight>(
        &self,
        weights: &mut [u8],
        rows: usize,
        columns: usize,
    ) -> Result<Faults, CheckpointError> {
        let (mut scratch, mut faults) = (Scratch::default(), Faults::default());
        let rows_at_once = (CHUNK / columns).max(TRANSPOSED_ROWS);
        let mut chunk = vec![0; rows_at_once.min(rows) * columns * W::BYTES];
        for first in (0..rows).step_by(rows_at_once) {
            let count = rows_at_once.min(rows - first);
            let chunk = &mut chunk[..count * columns * W::BYTES];
            self.read_chunk::<W>(first * columns, chunk, &mut scratch, &mut faults)?;
            match W::BYTES {
                2 => place_rows::<2>(weights, rows, chunk, columns, first),
                4 => place_rows::<4>(weights, rows, chunk, columns, first),
                _ => place_rows::<8>(weights, rows, chunk, columns, first),
            }
        }
        Ok(faults)
    }

    /// Fills `weights` with those from `start` on, and counts those that are not usable.
    fn read_chunk<W: Weight>(
        &self,
        start: usize,
        weights: &mut [u8],
        scratch: &mut Scratch,
        faults: &mut Faults,
    ) -> Result<(), CheckpointError> {
        let Format { block, decode, .. } = *self.format;
        let count = weights.len() / W::BYTES;
        let stored = count / block.weights * block.bytes;
        let finite = if self.is_stored_as(W::DTYPE.into()) {
            self.fetch(start, count, weights)?;
            W::are_finite(weights)
        } else {
            scratch.bytes.resize(stored, 0);
            scratch.values.resize(count, 0.0);
            self.fetch(start, count, &mut scratch.bytes)?;
            decode(&scratch.bytes, &mut scratch.values);
            W::encode(&scratch.values, weights);
            weight::are_finite(&scratch.values) & W::are_finite(weights)
        };
        (self.on_bytes)(stored as u64);
        if !finite {
            if self.is_stored_as(W::DTYPE.into()) {
                scratch.values.resize(count, 0.0);
                decode(weights, &mut scratch.values);
            }
            faults.count::<W>(start, &scratch.values, weights);
        }
        Ok(())
    }

    /// Returns whether the file has the weights as the bytes of `dtype` in memory.
    fn is_stored_as(&self, dtype: FloatDType) -> bool {
        let own = self.stored.dtype.float();
        cfg!(target_endian = "little") && own.is_some_and(|(own, _)| own == dtype)
    }

    /// Returns the number of weights that a thread reads at a time: whole rows unless they follow
    /// each other in the file.
    fn chunk_limit<W: Weight>(&self) -> usize {
        let limit = match self.is_stored_as(W::DTYPE.into()) {
            true => COPIED_BYTES / W::BYTES,
            false => CHUNK,
        };
        match self.stored.layout {
            Layout::Rows => limit,
            _ => {
                let columns = self.stored.columns();
                columns * (limit / columns).max(1)
            }
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
            let (before, total) = match self.stored.within {
                Some(within) => (within.first, within.total),
                None => (0, self.stored.elements()),
            };
            let scales_start = blocks(total) * code_bytes;
            let (codes, scales) = bytes.split_at_mut(blocks(count) * code_bytes);
            let first = blocks(before + start);
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

/// The buffers of one thread: the bytes of a chunk, and its values.
#[derive(Default)]
struct Scratch {
    bytes: Vec<u8>,
    values: Vec<f32>,
}

/// Writes whole rows of a matrix, from row `first` on, into its transpose, whose rows have `height`
/// weights of `BYTES` bytes.
fn place_rows<const BYTES: usize>(
    transpose: &mut [u8],
    height: usize,
    rows: &[u8],
    columns: usize,
    first: usize,
) {
    // With few columns at a time, the cache lines written to stay in the cache until they are full.
    const BLOCK: usize = 8;
    let (transpose, rows) = (
        transpose.as_chunks_mut::<BYTES>().0,
        rows.as_chunks::<BYTES>().0,
    );
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
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Faults {
    /// NaN or infinite in the file.
    non_finite: Fault,
    /// Finite in the file, infinite in the requested type.
    out_of_range: Fault,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Fault {
    first: Option<(usize, f32)>,
    count: usize,
}

impl Fault {
    /// Returns both together. Threads take chunks in any order, so the first is the one with the
    /// lower index.
    fn and(self, other: Self) -> Self {
        let firsts = self.first.into_iter().chain(other.first);
        Self {
            first: firsts.min_by_key(|(at, _)| *at),
            count: self.count + other.count,
        }
    }
}

impl Faults {
    /// Counts the faults of a chunk that begins at `start`. A thread takes later chunks later.
    fn count<W: Weight>(&mut self, start: usize, values: &[f32], weights: &[u8]) {
        let weights = weights.chunks_exact(W::BYTES);
        for (at, (&value, weight)) in values.iter().zip(weights).enumerate() {
            let fault = match (value.is_finite(), W::are_finite(weight)) {
                (false, _) => &mut self.non_finite,
                (true, false) => &mut self.out_of_range,
                (true, true) => continue,
            };
            fault.first.get_or_insert((start + at, value));
            fault.count += 1;
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            non_finite: self.non_finite.and(other.non_finite),
            out_of_range: self.out_of_range.and(other.out_of_range),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_of_threads_keep_the_first() {
        let fault = |first, count| Fault { first, count };
        let (late, early) = (fault(Some((9, 1e9)), 2), fault(Some((4, -1e9)), 3));
        for (one, other) in [(late, early), (early, late)] {
            assert_eq!(one.and(other), fault(Some((4, -1e9)), 5));
        }
        assert_eq!(Fault::default().and(late), late);
        let faults = |non_finite, out_of_range| Faults {
            non_finite,
            out_of_range,
        };
        let both = faults(late, Fault::default()).and(faults(Fault::default(), early));
        assert_eq!(both, faults(late, early));
    }
}
