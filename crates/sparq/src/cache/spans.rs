//! The valid positions of each sequence in a cache.

use std::ops::Range;

use burn::tensor::{Bool, DType, Device, Int, Tensor};

/// The span of valid positions of every sequence: sequence b holds the positions `start[b] ..
/// end[b]`.
///
/// `start` is the left padding, `end` the length with the padding. All ends are equal in a batch
/// with left padding, all starts in a batch with a length per sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spans {
    /// First valid position of each sequence.
    pub start: Vec<usize>,
    /// One past the last valid position of each sequence.
    pub end: Vec<usize>,
}

impl Spans {
    /// `batch` empty sequences without padding.
    pub fn empty(batch: usize) -> Self {
        Self {
            start: vec![0; batch],
            end: vec![0; batch],
        }
    }

    /// `batch` sequences of `len` positions without padding.
    pub fn full(batch: usize, len: usize) -> Self {
        Self {
            start: vec![0; batch],
            end: vec![len; batch],
        }
    }

    /// The number of sequences.
    pub fn batch(&self) -> usize {
        self.end.len()
    }

    /// S: the end of the longest sequence.
    pub fn longest(&self) -> usize {
        self.end.iter().copied().max().unwrap_or(0)
    }

    /// The number of valid positions of a sequence.
    pub fn count(&self, sequence: usize) -> usize {
        self.end[sequence].saturating_sub(self.start[sequence])
    }

    /// The end of all sequences, if it is the same.
    pub fn common_end(&self) -> Option<usize> {
        let first = *self.end.first()?;
        self.end.iter().all(|&end| end == first).then_some(first)
    }

    /// Returns whether every sequence fills 0 .. S, so that nothing has to be masked.
    pub fn is_rectangular(&self) -> bool {
        self.common_end().is_some() && self.start.iter().all(|&start| start == 0)
    }

    /// Returns the spans with `counts[b]` more positions in sequence b.
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

    /// Returns the spans of some of the sequences.
    pub fn select(&self, sequences: Range<usize>) -> Self {
        Self {
            start: self.start[sequences.clone()].to_vec(),
            end: self.end[sequences].to_vec(),
        }
    }

    /// Returns the spans in the form of [`CacheTensors::spans`](crate::ops::CacheTensors), [3, B]
    /// in u32.
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

    /// The number of valid positions of each sequence, [B, 1, 1] in f32.
    pub(crate) fn counts(&self, device: &Device) -> Tensor<3> {
        let counts: Vec<f32> = (0..self.batch())
            .map(|sequence| self.count(sequence) as f32)
            .collect();
        Tensor::<1>::from_floats(counts.as_slice(), device).reshape([self.batch(), 1, 1])
    }

    /// Returns the spans of the last `window` positions: max(start, end - window) .. end.
    pub fn last(&self, window: usize) -> Self {
        let first = |b: usize| self.end[b].saturating_sub(window).max(self.start[b]);
        Self {
            start: (0..self.batch()).map(first).collect(),
            end: self.end.clone(),
        }
    }

    /// A mask of the valid positions, [B, 1, S]; `None` if all are valid.
    pub(crate) fn valid(&self, device: &Device) -> Option<Tensor<3, Bool>> {
        (!self.is_rectangular()).then(|| self.within(&self.start, device))
    }

    /// A mask of the last `window` positions of each sequence, [B, 1, S].
    pub(crate) fn latest(&self, window: usize, device: &Device) -> Tensor<3, Bool> {
        self.within(&self.last(window).start, device)
    }

    /// A mask of the first `count` valid positions of each sequence, [B, 1, S].
    pub(crate) fn earliest(&self, count: usize, device: &Device) -> Tensor<3, Bool> {
        let behind: Vec<usize> = self.start.iter().map(|start| start + count).collect();
        self.within(&self.start, device)
            .bool_and(self.within(&behind, device).bool_not())
    }

    /// A mask of the positions in `span` that are left padding, [B', 1, T] for the sequences
    /// `batch`.
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

    /// A mask of the positions from `start` to the end of each sequence, [B, 1, S].
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
