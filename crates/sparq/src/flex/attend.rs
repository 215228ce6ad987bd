//! Exact attention of the g query heads of a group over given positions: step 6 of SparQ, and dense attention.

use std::ops::Range;

use super::element::Element;
use super::simd::{Kernel, LINE, Level, Simd};
use super::softmax::{State, exp};

/// Positions whose weights are computed together. Their keys and values are on their way while the block before is computed.
const BLOCK: usize = 32;

/// Keys that are read at once, so that the sums over their lanes share the work.
const KEYS: usize = 4;

/// Positions in an order.
pub(super) trait Positions: Copy + Send + Sync {
    fn count(self) -> usize;
    fn at(self, index: usize) -> usize;
    fn part(self, part: Range<usize>) -> Self;
}

/// All positions from the first to before the second.
#[derive(Clone, Copy)]
pub(super) struct Span(pub(super) usize, pub(super) usize);

impl Positions for Span {
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

/// Attention over positions of one key/value head.
pub(super) struct Attend<'a, T> {
    /// The queries over sqrt(d), [g, width]: rows of d, then zeros up to whole vectors.
    pub(super) q: &'a [f32],
    /// [S_max, d].
    pub(super) keys: &'a [T],
    /// [S_max, d].
    pub(super) values: &'a [T],
    /// d.
    pub(super) dim: usize,
    /// d rounded up to whole vectors.
    pub(super) width: usize,
}

impl<T: Element> Attend<'_, T> {
    /// The softmax state over the given positions.
    pub(super) fn over(&self, level: Level, positions: impl Positions) -> State {
        level.run(Over {
            attend: self,
            positions,
        })
    }
}

struct Over<'a, T, P> {
    attend: &'a Attend<'a, T>,
    positions: P,
}

impl<T: Element, P: Positions> Kernel for Over<'_, T, P> {
    type Output = State;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> State {
        let Attend { q, width, .. } = *self.attend;
        let heads = q.len() / width;
        let mut state = State::new(heads, width);
        let mut weights = vec![0.0; heads * BLOCK];
        let mut kept = vec![0.0; heads];
        for at in (0..self.attend.dim).step_by(S::LANES) {
            for index in 0..BLOCK {
                self.prefetch(simd, self.attend.keys, index, at..at + S::LANES);
                self.prefetch(simd, self.attend.values, index, at..at + S::LANES);
            }
        }
        let mut first = 0;
        while first < self.positions.count() {
            let block = first..(first + BLOCK).min(self.positions.count());
            self.logits(simd, &block, &mut weights);
            for head in 0..heads {
                let weights = &mut weights[head * BLOCK..(head + 1) * BLOCK];
                weights[block.len()..].fill(f32::NEG_INFINITY);
                kept[head] = to_weights(
                    simd,
                    weights,
                    &mut state.largest[head],
                    &mut state.weight[head],
                );
            }
            self.weigh(simd, &block, &weights, &kept, &mut state.sum);
            first = block.end;
        }
        state
    }
}

/// Turns logits into weights in place and takes them up in a head's maximum and sum. Returns what the maximum's change leaves of earlier weights.
#[inline(always)]
fn to_weights<S: Simd>(simd: S, logits: &mut [f32], largest: &mut f32, weight: &mut f32) -> f32 {
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

/// Evaluates an expression for `$count` heads, as many at once as the registers hold: `$head` is the first of them and the constant `$heads` their number.
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

impl<T: Element, P: Positions> Over<'_, T, P> {
    #[inline(always)]
    fn row<'r>(&self, rows: &'r [T], index: usize) -> &'r [T] {
        let at = self.positions.at(index) * self.attend.dim;
        &rows[at..at + self.attend.dim]
    }

    /// Asks for the cache lines of a row that begin within `elements`, if there is a row of this index.
    ///
    /// Callers go from row to row before they come to the next lines of the first: line after line of one row looks to the processor like the start of
    /// a stream, and it would fetch what lies behind the row as well, which wastes bandwidth where rows are short and lie apart.
    #[inline(always)]
    fn prefetch<S: Simd>(&self, simd: S, rows: &[T], index: usize, elements: Range<usize>) {
        if index >= self.positions.count() {
            return;
        }
        let line = LINE / size_of::<T>();
        let row = self.positions.at(index) * self.attend.dim;
        let mut at = elements.start.next_multiple_of(line);
        while at < elements.end {
            simd.prefetch(rows, row + at);
            at += line;
        }
    }

    /// The logits of a block, [g, BLOCK].
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
            let logits = &mut logits[first - block.start..];
            for_heads!(S, heads, |head, HEADS| self
                .dots::<S, HEADS>(simd, first, rows, head, logits));
            first += KEYS;
        }
    }

    /// The dot products of four keys with `HEADS` queries from `head` on. Meanwhile the keys one block further on are on their way.
    #[inline(always)]
    fn dots<S: Simd, const HEADS: usize>(
        &self,
        simd: S,
        first: usize,
        rows: [&[T]; KEYS],
        head: usize,
        logits: &mut [f32],
    ) {
        let Attend { dim, width, .. } = *self.attend;
        let q = &self.attend.q[head * width..(head + HEADS) * width];
        let mut dots = [[simd.splat(0.0); KEYS]; HEADS];
        let mut at = 0;
        while at + S::LANES <= dim {
            if head == 0 {
                for i in 0..KEYS {
                    let index = first + BLOCK + i;
                    self.prefetch(simd, self.attend.keys, index, at..at + S::LANES);
                }
            }
            let mut keys = [simd.splat(0.0); KEYS];
            for i in 0..KEYS {
                keys[i] = T::load(simd, &rows[i][at..at + S::LANES]);
            }
            for h in 0..HEADS {
                let q = simd.load(&q[h * width + at..]);
                for i in 0..KEYS {
                    dots[h][i] = simd.mul_add(q, keys[i], dots[h][i]);
                }
            }
            at += S::LANES;
        }
        if at < dim {
            if head == 0 {
                for i in 0..KEYS {
                    let index = first + BLOCK + i;
                    self.prefetch(simd, self.attend.keys, index, at..at + S::LANES);
                }
            }
            for i in 0..KEYS {
                let keys = T::load_rest(simd, &rows[i][at..]);
                for h in 0..HEADS {
                    dots[h][i] = simd.mul_add(simd.load(&q[h * width + at..]), keys, dots[h][i]);
                }
            }
        }
        for h in 0..HEADS {
            logits[(head + h) * BLOCK..][..KEYS].copy_from_slice(&simd.sums(dots[h]));
        }
    }

    /// Adds a block's weighted values to the sums, which keep the share `kept` [g]. Meanwhile the values one block further on are on their way.
    #[inline(always)]
    fn weigh<S: Simd>(
        &self,
        simd: S,
        block: &Range<usize>,
        weights: &[f32],
        kept: &[f32],
        sums: &mut [f32],
    ) {
        /// Vectors of a row that are summed at once.
        const WIDE: usize = 4;
        let dim = self.attend.dim;
        let whole = dim - dim % S::LANES;
        let wide = dim - dim % (WIDE * S::LANES);
        for_heads!(S, kept.len(), |head, HEADS| self.weigh_heads::<S, HEADS>(
            simd,
            block,
            weights,
            kept,
            sums,
            head,
            [wide, whole]
        ));
    }

    /// [`Over::weigh`] for `HEADS` heads from `head` on. Vectors are taken by fours up to `ends[0]`, and one by one up to `ends[1]`.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn weigh_heads<S: Simd, const HEADS: usize>(
        &self,
        simd: S,
        block: &Range<usize>,
        weights: &[f32],
        kept: &[f32],
        sums: &mut [f32],
        head: usize,
        ends: [usize; 2],
    ) {
        let mut at = 0;
        while at < ends[0] {
            self.weigh_part::<S, HEADS, 4, false>(simd, block, weights, kept, sums, head, at);
            at += 4 * S::LANES;
        }
        while at < ends[1] {
            self.weigh_part::<S, HEADS, 1, false>(simd, block, weights, kept, sums, head, at);
            at += S::LANES;
        }
        if at < self.attend.dim {
            self.weigh_part::<S, HEADS, 1, true>(simd, block, weights, kept, sums, head, at);
        }
    }

    /// [`Over::weigh`] for `HEADS` heads and the `WIDE` vectors of a row from element `at` on; `REST` if it is the row's last, incomplete one.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn weigh_part<S: Simd, const HEADS: usize, const WIDE: usize, const REST: bool>(
        &self,
        simd: S,
        block: &Range<usize>,
        weights: &[f32],
        kept: &[f32],
        sums: &mut [f32],
        head: usize,
        at: usize,
    ) {
        let width = self.attend.width;
        let mut parts = [[simd.splat(0.0); WIDE]; HEADS];
        for h in 0..HEADS {
            let kept = simd.splat(kept[head + h]);
            for w in 0..WIDE {
                let sum = simd.load(&sums[(head + h) * width + at + w * S::LANES..]);
                parts[h][w] = simd.mul(sum, kept);
            }
        }
        let weights = &weights[head * BLOCK..(head + HEADS) * BLOCK];
        for index in 0..block.len().min(BLOCK) {
            let row = self.row(self.attend.values, block.start + index);
            if head == 0 {
                let next = block.start + BLOCK + index;
                self.prefetch(simd, self.attend.values, next, at..at + WIDE * S::LANES);
            }
            let mut values = [simd.splat(0.0); WIDE];
            if REST {
                values[0] = T::load_rest(simd, &row[at..]);
            } else {
                let row = &row[at..at + WIDE * S::LANES];
                for w in 0..WIDE {
                    values[w] = T::load(simd, &row[w * S::LANES..]);
                }
            }
            for h in 0..HEADS {
                let weight = simd.splat(weights[h * BLOCK + index]);
                for w in 0..WIDE {
                    parts[h][w] = simd.mul_add(weight, values[w], parts[h][w]);
                }
            }
        }
        for h in 0..HEADS {
            for w in 0..WIDE {
                simd.store(
                    parts[h][w],
                    &mut sums[(head + h) * width + at + w * S::LANES..],
                );
            }
        }
    }
}
