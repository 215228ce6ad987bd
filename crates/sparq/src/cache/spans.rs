//! The valid positions of each sequence in a cache.

use std::ops::Range;

use burn::tensor::{Bool, DType, Device, Int, Tensor};

/// The span of valid positions of every sequence: sequence b holds the positions `start[b] ..
/// end[b]`.
///
/// `start` is the left padding, `end` the length with the padding. All ends are equal in a batch
/// with left padding, all starts in a batch with a length per sequence.
///
/// An idle sequence has the start [`Spans::IDLE`] and the end 0. It holds no positions, and appends
/// to every sequence pass over it. On the device its end is [`Spans::IDLE`] too, where no cache has
/// room for another position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spans {
    /// First valid position of each sequence.
    pub start: Vec<usize>,
    /// One past the last valid position of each sequence.
    pub end: Vec<usize>,
}

impl Spans {
    /// The start of an idle sequence, beyond every position.
    pub const IDLE: usize = 1 << 30;

    /// `batch` empty sequences without padding.
    pub fn empty(batch: usize) -> Self {
        Self::full(batch, 0)
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

    /// Returns whether a sequence is idle.
    pub fn is_idle(&self, sequence: usize) -> bool {
        self.start[sequence] == Self::IDLE
    }

    /// Returns `len` for each sequence, 0 for those that are idle.
    pub fn each(&self, len: usize) -> Vec<usize> {
        let count = |sequence| if self.is_idle(sequence) { 0 } else { len };
        (0..self.batch()).map(count).collect()
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

    /// Returns the spans with `counts[b]` more positions in sequence b, unless it is idle.
    pub fn grown(&self, counts: &[usize]) -> Self {
        let grown = |(sequence, count): (usize, &usize)| match self.is_idle(sequence) {
            true => self.end[sequence],
            false => self.end[sequence] + count,
        };
        Self {
            start: self.start.clone(),
            end: counts.iter().enumerate().map(grown).collect(),
        }
    }

    /// Returns the ends as the device has them.
    pub(crate) fn device_ends(&self) -> impl Iterator<Item = usize> {
        let pairs = std::iter::zip(&self.start, &self.end);
        pairs.map(|(&start, &end)| if start == Self::IDLE { start } else { end })
    }

    /// Returns the spans without the last `len` positions of each sequence.
    pub fn before(&self, len: usize) -> Self {
        Self {
            start: self.start.clone(),
            end: self.end.iter().map(|end| end.saturating_sub(len)).collect(),
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
        let counters = std::iter::repeat_n(0, self.batch());
        let rows = self.start.iter().copied().chain(self.device_ends());
        let rows: Vec<u32> = (rows.chain(counters))
            .map(|position| position as u32)
            .collect();
        Tensor::<1, Int>::from_data(rows.as_slice(), (device, DType::U32))
            .reshape([3, self.batch()])
    }

    /// The number of valid positions of each sequence, [B, 1, 1] in f32.
    pub(crate) fn counts(&self, device: &Device) -> Tensor<3> {
        let counts = (0..self.batch()).map(|sequence| self.count(sequence) as f32);
        let counts: Vec<f32> = counts.collect();
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
        let shape = [batch.len(), 1, span.len()];
        let start = per_sequence(&self.start[batch], device).expand(shape);
        indices(span, device).expand(shape).lower(start)
    }

    /// A mask of the positions from `start` to the end of each sequence, [B, 1, S].
    fn within(&self, start: &[usize], device: &Device) -> Tensor<3, Bool> {
        let shape = [self.batch(), 1, self.longest()];
        let per_sequence = |values: &[usize]| per_sequence(values, device).expand(shape);
        let position = indices(0..shape[2], device).expand(shape);
        let begun = position.clone().greater_equal(per_sequence(start));
        begun.bool_and(position.lower(per_sequence(&self.end)))
    }
}

/// One number per sequence, [B, 1, 1].
pub(crate) fn per_sequence(values: &[usize], device: &Device) -> Tensor<3, Int> {
    let values: Vec<i64> = values.iter().map(|&value| value as i64).collect();
    Tensor::<1, Int>::from_ints(values.as_slice(), device).reshape([values.len(), 1, 1])
}

/// The numbers of a range, [1, 1, n].
pub(crate) fn indices(range: Range<usize>, device: &Device) -> Tensor<3, Int> {
    let shape = [1, 1, range.len()];
    Tensor::<1, Int>::arange(range.start as i64..range.end as i64, device).reshape(shape)
}
