//! Exact attention of the g query heads of a group over given positions: stage 3 of SparQ, and
//! dense attention.

use std::ops::Range;

use super::element::Element;
use super::online_softmax::{OnlineSoftmax, bound, exp};
use super::simd::{CACHE_LINE, Kernel, Level, Simd};

/// Positions per update of the online softmax.
pub(super) const BLOCK: usize = 32;

/// K rows or V rows that are read at once. Four K rows share one reduction over the lanes, and four
/// V rows share one load of the output sums.
const ROWS: usize = 4;

/// A list of positions.
pub(super) trait Positions: Copy + Send + Sync {
    /// True if the rows are scattered. The cache lines of scattered rows are prefetched one by one,
    /// in between the work on other rows. Consecutive rows are prefetched whole, as a stream that
    /// the processor then continues.
    const SCATTERED: bool;
    /// The number of rows between a prefetch and the use of its data.
    const AHEAD: usize;
    /// Fewer positions are not divided among threads.
    const MIN_PART: usize;
    fn count(self) -> usize;
    fn at(self, index: usize) -> usize;
    fn part(self, part: Range<usize>) -> Self;
}

/// The positions from the first to before the second.
#[derive(Clone, Copy)]
pub(super) struct Span(pub(super) usize, pub(super) usize);

impl Positions for Span {
    const SCATTERED: bool = false;
    const AHEAD: usize = 16;
    const MIN_PART: usize = 256;
    #[inline(always)]
    fn count(self) -> usize {
        self.1 - self.0
    }
    #[inline(always)]
    fn at(self, index: usize) -> usize {
        self.0 + index
    }
    fn part(self, part: Range<usize>) -> Self {
        Span(self.0 + part.start, self.0 + part.end)
    }
}

impl Positions for &[u32] {
    const SCATTERED: bool = true;
    const AHEAD: usize = BLOCK;
    const MIN_PART: usize = 64;
    #[inline(always)]
    fn count(self) -> usize {
        self.len()
    }
    #[inline(always)]
    fn at(self, index: usize) -> usize {
        self[index] as usize
    }
    fn part(self, part: Range<usize>) -> Self {
        &self[part]
    }
}

/// Exact attention for one batch head.
pub(super) struct Attend<'a, T> {
    /// The queries over sqrt(d), padded with zeros, [g, width].
    pub(super) q: &'a [f32],
    /// [S_max, d].
    pub(super) keys: &'a [T],
    /// [S_max, d].
    pub(super) values: &'a [T],
    pub(super) dim: usize,
    /// d rounded up to whole vectors.
    pub(super) width: usize,
    pub(super) softcap: Option<f32>,
}

impl<T: Element> Attend<'_, T> {
    /// Returns the softmax state over the given positions.
    pub(super) fn over(&self, level: Level, positions: impl Positions) -> OnlineSoftmax {
        let mut state = OnlineSoftmax::new(self.q.len() / self.width, self.width);
        self.add(level, positions, &mut state);
        state
    }

    /// Adds positions to a softmax state.
    ///
    /// Several calls give the bits of a single one, if each but the last has whole [`BLOCK`]s.
    pub(super) fn add(&self, level: Level, positions: impl Positions, state: &mut OnlineSoftmax) {
        level.run(AttendKernel {
            attend: self,
            positions,
            state,
        })
    }
}

struct AttendKernel<'a, T, P> {
    attend: &'a Attend<'a, T>,
    positions: P,
    state: &'a mut OnlineSoftmax,
}

impl<T: Element, P: Positions> Kernel for AttendKernel<'_, T, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let heads = self.attend.q.len() / self.attend.width;
        let mut weights = vec![0.0; heads * BLOCK];
        let mut kept = vec![0.0; heads];
        if self.positions.count() == 0 {
            return;
        }
        for index in (0..P::AHEAD).step_by(ROWS) {
            let starts = self.starts(index);
            self.prefetch(simd, self.attend.keys, starts);
            self.prefetch(simd, self.attend.values, starts);
        }
        let mut first = 0;
        while first < self.positions.count() {
            let block = first..(first + BLOCK).min(self.positions.count());
            self.logits(simd, &block, &mut weights);
            for head in 0..heads {
                let weights = &mut weights[head * BLOCK..(head + 1) * BLOCK];
                if let Some(softcap) = self.attend.softcap {
                    bound(simd, weights, softcap);
                }
                weights[block.len()..].fill(f32::NEG_INFINITY);
                kept[head] = update_softmax(
                    simd,
                    weights,
                    &mut self.state.largest[head],
                    &mut self.state.weight[head],
                );
            }
            let mut sums = std::mem::take(&mut self.state.sum);
            self.add_values(simd, &block, &weights, &kept, &mut sums);
            self.state.sum = sums;
            first = block.end;
        }
    }
}

/// Turns logits into weights in place, and updates a head's maximum and sum of weights. Returns the
/// factor that the new maximum applies to earlier weights.
#[inline(always)]
fn update_softmax<S: Simd>(
    simd: S,
    logits: &mut [f32],
    largest: &mut f32,
    weight: &mut f32,
) -> f32 {
    let mut most = simd.splat(*largest);
    for part in logits.chunks_exact(S::LANES) {
        most = simd.max(simd.load(part), most);
    }
    let now = simd.largest(most);
    let kept = (*largest - now).exp();
    let (shift, mut sum) = (simd.splat(now), simd.splat(0.0));
    for part in logits.chunks_exact_mut(S::LANES) {
        let weights = exp(simd, simd.sub(simd.load(part), shift));
        simd.store(weights, part);
        sum = simd.add(sum, weights);
    }
    *largest = now;
    *weight = *weight * kept + simd.sum(sum);
    kept
}

/// Evaluates an expression for `$count` heads, as many at once as fit in the registers. `$head` is
/// the first of them, and the constant `$heads` is their number.
macro_rules! for_heads {
    ($simd:ty, $count:expr, |$head:ident, $heads:ident| $body:expr) => {
        for_heads!(@ $simd, $count, $head, $heads, $body, 1 2 3 4)
    };
    (@ $simd:ty, $count:expr, $head:ident, $heads:ident, $body:expr, $($number:literal)*) => {{
        let (count, mut $head) = ($count, 0);
        while $head < count {
            let now = (count - $head).min(<$simd>::HEADS);
            $(if now == $number {
                const $heads: usize = $number;
                $body;
            })*
            $head += now;
        }
    }};
}
pub(super) use for_heads;

impl<T: Element, P: Positions> AttendKernel<'_, T, P> {
    #[inline(always)]
    fn row<'r>(&self, rows: &'r [T], index: usize) -> &'r [T] {
        let at = self.positions.at(index) * self.attend.dim;
        &rows[at..at + self.attend.dim]
    }

    /// Returns the offsets of the four rows from `index` on. Past the end, repeats the last row's.
    #[inline(always)]
    fn starts(&self, index: usize) -> [usize; ROWS] {
        let last = self.positions.count() - 1;
        let mut starts = [0; ROWS];
        for (i, start) in starts.iter_mut().enumerate() {
            *start = self.positions.at((index + i).min(last)) * self.attend.dim;
        }
        starts
    }

    /// Prefetches whole rows.
    #[inline(always)]
    fn prefetch<S: Simd>(&self, simd: S, rows: &[T], starts: [usize; ROWS]) {
        for start in starts {
            let mut at = 0;
            while at < self.attend.dim {
                simd.prefetch(rows, start + at);
                at += CACHE_LINE / size_of::<T>();
            }
        }
    }

    /// Prefetches the cache lines at element `at` of scattered rows, if a line begins there.
    ///
    /// The lines of one row in succession would look like the start of a stream, and the processor
    /// would also fetch the memory after the row.
    #[inline(always)]
    fn prefetch_lines<S: Simd>(&self, simd: S, rows: &[T], starts: [usize; ROWS], at: usize) {
        if P::SCATTERED && at.is_multiple_of(CACHE_LINE / size_of::<T>()) {
            for start in starts {
                simd.prefetch(rows, start + at);
            }
        }
    }

    /// Writes the logits of a block, [g, BLOCK].
    #[inline(always)]
    fn logits<S: Simd>(&self, simd: S, block: &Range<usize>, logits: &mut [f32]) {
        let heads = self.attend.q.len() / self.attend.width;
        let mut first = block.start;
        while first < block.end {
            let last = block.end - 1;
            let rows = [
                self.row(self.attend.keys, first),
                self.row(self.attend.keys, (first + 1).min(last)),
                self.row(self.attend.keys, (first + 2).min(last)),
                self.row(self.attend.keys, (first + 3).min(last)),
            ];
            let ahead = self.starts(first + P::AHEAD);
            if !P::SCATTERED {
                self.prefetch(simd, self.attend.keys, ahead);
            }
            let logits = &mut logits[first - block.start..];
            for_heads!(S, heads, |head, HEADS| self
                .dots::<S, HEADS>(simd, rows, ahead, head, logits));
            first += ROWS;
        }
    }

    /// Writes the dot products of four keys with `HEADS` queries from `head` on. Prefetches later
    /// keys meanwhile.
    #[inline(always)]
    fn dots<S: Simd, const HEADS: usize>(
        &self,
        simd: S,
        rows: [&[T]; ROWS],
        ahead: [usize; ROWS],
        head: usize,
        logits: &mut [f32],
    ) {
        let Attend { dim, width, .. } = *self.attend;
        let q = &self.attend.q[head * width..(head + HEADS) * width];
        let mut dots = [[simd.splat(0.0); ROWS]; HEADS];
        let mut at = 0;
        while at + S::LANES <= dim {
            if head == 0 {
                self.prefetch_lines(simd, self.attend.keys, ahead, at);
            }
            let mut keys = [simd.splat(0.0); ROWS];
            for i in 0..ROWS {
                keys[i] = T::load(simd, &rows[i][at..at + S::LANES]);
            }
            for h in 0..HEADS {
                let q = simd.load(&q[h * width + at..]);
                for i in 0..ROWS {
                    dots[h][i] = simd.mul_add(q, keys[i], dots[h][i]);
                }
            }
            at += S::LANES;
        }
        if at < dim {
            if head == 0 {
                self.prefetch_lines(simd, self.attend.keys, ahead, at);
            }
            for i in 0..ROWS {
                let keys = T::load_partial(simd, &rows[i][at..]);
                for h in 0..HEADS {
                    dots[h][i] = simd.mul_add(simd.load(&q[h * width + at..]), keys, dots[h][i]);
                }
            }
        }
        for h in 0..HEADS {
            logits[(head + h) * BLOCK..][..ROWS].copy_from_slice(&simd.sums(dots[h]));
        }
    }

    /// Scales the sums by `kept` [g], then adds a block's weighted values.
    ///
    /// Reads four rows at a time, each once and whole, which spreads the memory requests evenly.
    #[inline(always)]
    fn add_values<S: Simd>(
        &self,
        simd: S,
        block: &Range<usize>,
        weights: &[f32],
        kept: &[f32],
        sums: &mut [f32],
    ) {
        let width = self.attend.width;
        for (sums, &kept) in sums.chunks_exact_mut(width).zip(kept) {
            let kept = simd.splat(kept);
            for part in sums.chunks_exact_mut(S::LANES) {
                simd.store(simd.mul(simd.load(part), kept), part);
            }
        }
        let whole = block.end - block.len() % ROWS;
        for first in (block.start..whole).step_by(ROWS) {
            let rows = [
                self.row(self.attend.values, first),
                self.row(self.attend.values, first + 1),
                self.row(self.attend.values, first + 2),
                self.row(self.attend.values, first + 3),
            ];
            let ahead = self.starts(first + P::AHEAD);
            if !P::SCATTERED {
                self.prefetch(simd, self.attend.values, ahead);
            }
            let weights = &weights[first - block.start..];
            let values = Values { rows, weights };
            for_heads!(S, kept.len(), |head, HEADS| self
                .add_rows::<S, HEADS, ROWS>(simd, &values, ahead, head, sums));
        }
        // One by one: repeating a row with a weight of 0 would give NaN if it holds infinity.
        for last in whole..block.end {
            let rows = [self.row(self.attend.values, last)];
            let weights = &weights[last - block.start..];
            let values = Values { rows, weights };
            for_heads!(S, kept.len(), |head, HEADS| self
                .add_rows::<S, HEADS, 1>(simd, &values, [0; ROWS], head, sums));
        }
    }

    /// Adds weighted V rows to the sums of `HEADS` heads from `head` on. Prefetches later rows
    /// meanwhile.
    #[inline(always)]
    fn add_rows<S: Simd, const HEADS: usize, const COUNT: usize>(
        &self,
        simd: S,
        &Values { rows, weights }: &Values<'_, T, COUNT>,
        ahead: [usize; ROWS],
        head: usize,
        sums: &mut [f32],
    ) {
        let Attend { dim, width, .. } = *self.attend;
        let mut of_rows = [[simd.splat(0.0); COUNT]; HEADS];
        for h in 0..HEADS {
            let weights = &weights[(head + h) * BLOCK..][..COUNT];
            for i in 0..COUNT {
                of_rows[h][i] = simd.splat(weights[i]);
            }
        }
        let sums = &mut sums[head * width..(head + HEADS) * width];
        let mut at = 0;
        while at < dim {
            if head == 0 && COUNT == ROWS {
                self.prefetch_lines(simd, self.attend.values, ahead, at);
            }
            let mut values = [simd.splat(0.0); COUNT];
            for i in 0..COUNT {
                values[i] = if at + S::LANES <= dim {
                    T::load(simd, &rows[i][at..at + S::LANES])
                } else {
                    T::load_partial(simd, &rows[i][at..])
                };
            }
            for h in 0..HEADS {
                let sums = &mut sums[h * width + at..][..S::LANES];
                let mut sum = simd.load(sums);
                for i in 0..COUNT {
                    sum = simd.mul_add(of_rows[h][i], values[i], sum);
                }
                simd.store(sum, sums);
            }
            at += S::LANES;
        }
    }
}

/// V rows and their weights, those of head h from `h * BLOCK` on.
struct Values<'a, T, const COUNT: usize> {
    rows: [&'a [T]; COUNT],
    weights: &'a [f32],
}
