//! Which positions of a batch's cache hold tokens.

use std::ops::Range;

use burn::tensor::{Bool, DType, Device, Int, Tensor};

/// The span of valid positions of every sequence in a batch: sequence b holds the positions `start[b] .. end[b]` of its buffers.
///
/// `start` is the left padding; `end` is the length with the padding. The two forms of a ragged batch, left padding and a length per row, are
/// the cases where all ends, or all starts, are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowSpans {
    /// First valid position of each sequence.
    pub start: Vec<usize>,
    /// One past the last valid position of each sequence.
    pub end: Vec<usize>,
}

impl RowSpans {
    /// `batch` sequences without padding that hold nothing.
    pub fn empty(batch: usize) -> Self {
        Self {
            start: vec![0; batch],
            end: vec![0; batch],
        }
    }

    /// `batch` sequences without padding that hold `len` positions each.
    pub fn full(batch: usize, len: usize) -> Self {
        Self {
            start: vec![0; batch],
            end: vec![len; batch],
        }
    }

    /// Number of sequences.
    pub fn batch(&self) -> usize {
        self.end.len()
    }

    /// S: the end of the longest sequence, so the part of the buffers that has to be looked at.
    pub fn longest(&self) -> usize {
        self.end.iter().copied().max().unwrap_or(0)
    }

    /// Valid positions of sequence `row`.
    pub fn count(&self, row: usize) -> usize {
        self.end[row].saturating_sub(self.start[row])
    }

    /// The end that all sequences share, if they do.
    pub fn common_end(&self) -> Option<usize> {
        let first = *self.end.first()?;
        self.end.iter().all(|&end| end == first).then_some(first)
    }

    /// Whether every sequence fills 0 .. S, so that nothing has to be masked.
    pub fn is_rectangular(&self) -> bool {
        self.common_end().is_some() && self.start.iter().all(|&start| start == 0)
    }

    /// The spans with `counts[b]` more positions in sequence b.
    pub fn grown(&self, counts: &[usize]) -> Self {
        Self {
            start: self.start.clone(),
            end: self
                .end
                .iter()
                .zip(counts)
                .map(|(end, count)| end + count)
                .collect(),
        }
    }

    /// The spans of the sequences `rows` alone.
    pub fn select(&self, rows: Range<usize>) -> Self {
        Self {
            start: self.start[rows.clone()].to_vec(),
            end: self.end[rows].to_vec(),
        }
    }

    /// The spans as [`CacheTensors::spans`](crate::CacheTensors) holds them, [3, B] in u32.
    pub(crate) fn to_tensor(&self, device: &Device) -> Tensor<2, Int> {
        let spans: Vec<u32> = self
            .start
            .iter()
            .chain(&self.end)
            .map(|&position| position as u32)
            .chain(std::iter::repeat_n(0, self.batch()))
            .collect();
        Tensor::<1, Int>::from_data(spans.as_slice(), (device, DType::U32))
            .reshape([3, self.batch()])
    }

    /// Valid positions of each sequence as [B, 1, 1] in f32.
    pub(crate) fn counts(&self, device: &Device) -> Tensor<3> {
        let counts: Vec<f32> = (0..self.batch())
            .map(|row| self.count(row) as f32)
            .collect();
        Tensor::<1>::from_floats(counts.as_slice(), device).reshape([self.batch(), 1, 1])
    }

    /// The spans of the last `window` positions of each sequence: from max(start, end - window) on.
    pub fn last(&self, window: usize) -> Self {
        let first = |row: usize| self.end[row].saturating_sub(window).max(self.start[row]);
        Self {
            start: (0..self.batch()).map(first).collect(),
            end: self.end.clone(),
        }
    }

    /// Where `positions` 0 .. S are valid, [B, 1, S]; `None` if they all are.
    pub(crate) fn valid(&self, device: &Device) -> Option<Tensor<3, Bool>> {
        (!self.is_rectangular()).then(|| self.within(&self.start, device))
    }

    /// The last `window` positions of each sequence, [B, 1, S].
    pub(crate) fn latest(&self, window: usize, device: &Device) -> Tensor<3, Bool> {
        self.within(&self.last(window).start, device)
    }

    /// The first `count` valid positions of each sequence, [B, 1, S].
    pub(crate) fn earliest(&self, count: usize, device: &Device) -> Tensor<3, Bool> {
        let behind: Vec<usize> = self.start.iter().map(|start| start + count).collect();
        self.within(&self.start, device)
            .bool_and(self.within(&behind, device).bool_not())
    }

    /// Which of the positions `span` are left padding, [B', 1, T] for the sequences `batch`.
    pub(crate) fn padding(
        &self,
        batch: Range<usize>,
        span: Range<usize>,
        device: &Device,
    ) -> Tensor<3, Bool> {
        let (count, len) = (batch.len(), span.len());
        let start: Vec<i64> = self.start[batch]
            .iter()
            .map(|&start| start as i64)
            .collect();
        let start = Tensor::<1, Int>::from_ints(start.as_slice(), device)
            .reshape([count, 1, 1])
            .expand([count, 1, len]);
        let position = Tensor::<1, Int>::arange(span.start as i64..span.end as i64, device);
        position
            .reshape([1, 1, len])
            .expand([count, 1, len])
            .lower(start)
    }

    fn within(&self, start: &[usize], device: &Device) -> Tensor<3, Bool> {
        let (batch, len) = (self.batch(), self.longest());
        let column = |values: &[usize]| {
            let values: Vec<i64> = values.iter().map(|&value| value as i64).collect();
            Tensor::<1, Int>::from_ints(values.as_slice(), device)
                .reshape([batch, 1, 1])
                .expand([batch, 1, len])
        };
        let position = Tensor::<1, Int>::arange(0..len as i64, device)
            .reshape([1, 1, len])
            .expand([batch, 1, len]);
        position
            .clone()
            .greater_equal(column(start))
            .bool_and(position.lower(column(&self.end)))
    }
}
