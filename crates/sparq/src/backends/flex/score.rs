//! Stage 1: the approximate scores of all positions from the key sketch, block by block.

use super::attend::for_heads;
use super::online_softmax::{LOWEST, exp};
use super::query::{Columns, Query};
use super::simd::{CACHE_LINE, Kernel, Simd};
use super::sketch::{BLOCK, Slots, Storage, VECTORS};

/// The scores of [`BLOCK`] positions.
pub(super) struct Scores<'a> {
    /// [columns, BLOCK]. For heads e^(x - m), x being the approximate logits; the ranking column
    /// keeps its logits.
    pub(super) weights: &'a mut [f32],
    /// The largest logit m, [heads], then the sum of the weights l, [heads].
    pub(super) statistics: &'a mut [f32],
    /// Sort keys of the group's scores, [BLOCK]; 0 excludes a position from the selection.
    pub(super) keys: &'a mut [u32],
}

/// Scores a block of positions.
pub(super) struct ScoreBlock<'a, C: Storage> {
    pub(super) query: &'a Query,
    /// The rows of the sketch for the selected components, [r] of S_max positions.
    pub(super) rows: &'a [&'a [C::Cell]],
    pub(super) slots: Slots,
    /// The first position of the block.
    pub(super) first: usize,
    /// The span of valid positions.
    pub(super) valid: (usize, usize),
    /// The first position of the local window, which needs no keys.
    pub(super) window: usize,
    pub(super) scores: Scores<'a>,
}

impl<C: Storage> Kernel for ScoreBlock<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let strip = VECTORS * S::LANES;
        let end = self.valid.1.min(self.first + BLOCK);
        let mut at = self.first;
        while at < end {
            self.score_strip(simd, at);
            at += strip;
        }
        self.finish(simd, at - self.first);
    }
}

impl<C: Storage> ScoreBlock<'_, C> {
    /// Writes the logits of the strip that begins with position `at`.
    #[inline(always)]
    fn score_strip<S: Simd>(&mut self, simd: S, at: usize) {
        let cells = VECTORS * S::LANES / C::POSITIONS;
        let from = at / C::POSITIONS;
        if self.rows.first().is_none_or(|row| row.len() < from + cells) {
            return self.score_last_strip(simd, at);
        }
        let to = &mut self.scores.weights[at - self.first..];
        multiply::<S, C>(simd, self.query, self.rows, from, to);
    }

    /// Scores a strip that extends past the end of the rows, from a copy padded with zeros.
    #[inline(always)]
    fn score_last_strip<S: Simd>(&mut self, simd: S, at: usize) {
        let cells = VECTORS * S::LANES / C::POSITIONS;
        let mut padded = vec![C::Cell::default(); self.rows.len() * cells];
        for (padded, row) in padded.chunks_exact_mut(cells).zip(self.rows) {
            let rest = &row[(at / C::POSITIONS).min(row.len())..];
            padded[..rest.len()].copy_from_slice(rest);
        }
        let rows: Vec<&[C::Cell]> = padded.chunks_exact(cells).collect();
        let to = &mut self.scores.weights[at - self.first..];
        multiply::<S, C>(simd, self.query, &rows, 0, to);
    }

    /// Turns the logits of the block's first `filled` positions into weights, statistics and keys.
    #[inline(always)]
    fn finish<S: Simd>(&mut self, simd: S, filled: usize) {
        let Columns { heads, ranking } = self.query.columns;
        let (zero, lowest) = (simd.splat(0.0), simd.splat(LOWEST));
        self.mask_logits(filled);
        if let Some(ranking) = ranking {
            let logits = &self.scores.weights[ranking * BLOCK..];
            let mut at = 0;
            while at < filled {
                simd.store_sort_keys(simd.load(&logits[at..]), &mut self.scores.keys[at..]);
                at += S::LANES;
            }
            self.scores.keys[filled..].fill(0);
            let eligible = (self.valid.0, self.window);
            mask_keys(self.scores.keys, self.slots, self.first, eligible);
        }
        let mut head = 0;
        while head < heads {
            let weights = &mut self.scores.weights[head * BLOCK..head * BLOCK + filled];
            let mut most = lowest;
            for part in weights.chunks_exact(S::LANES) {
                most = simd.max(most, simd.load(part));
            }
            let largest = simd.largest(most);
            let (shift, mut sum) = (simd.splat(largest), zero);
            for part in weights.chunks_exact_mut(S::LANES) {
                let weight = exp(simd, simd.sub(simd.load(part), shift));
                simd.store(weight, part);
                sum = simd.add(sum, weight);
            }
            self.scores.statistics[head] = largest;
            self.scores.statistics[heads + head] = simd.sum(sum);
            head += 1;
        }
    }

    /// Sets the logits of invalid positions to -inf, among the first `filled` ones.
    fn mask_logits(&mut self, filled: usize) {
        let start = self.valid.0.saturating_sub(self.first);
        let end = self.valid.1 - self.first;
        for within in (0..start.min(filled)).chain(end.min(filled)..filled) {
            let slot = self.slots.slot(within);
            for column in 0..self.query.columns.count() {
                self.scores.weights[column * BLOCK + slot] = f32::NEG_INFINITY;
            }
        }
    }
}

/// Sets the keys of a block's positions outside of `eligible` to 0.
fn mask_keys(keys: &mut [u32], slots: Slots, first: usize, eligible: (usize, usize)) {
    let start = eligible.0.saturating_sub(first);
    let end = eligible.1.saturating_sub(first);
    for within in (0..start.min(BLOCK)).chain(end.min(BLOCK)..BLOCK) {
        keys[slots.slot(within)] = 0;
    }
}

/// Replaces NaN by the lowest finite number, and infinities by the nearest finite ones.
#[inline(always)]
fn finite<S: Simd>(simd: S, score: S::F) -> S::F {
    simd.min(simd.max(score, simd.splat(LOWEST)), simd.splat(f32::MAX))
}

/// Writes the logits of a strip, [columns, BLOCK]: the products of the query with the cells of
/// `rows` that begin at `from`.
#[inline(always)]
fn multiply<S: Simd, C: Storage>(
    simd: S,
    query: &Query,
    rows: &[&[C::Cell]],
    from: usize,
    to: &mut [f32],
) {
    let strip = Strip::<C> { query, rows, from };
    for_heads!(S, query.columns.count(), |head, HEADS| {
        // Sixteen sums at once, or eight where there are fewer registers.
        if HEADS * VECTORS <= 4 * S::HEADS || HEADS == 1 {
            strip.multiply::<S, HEADS, VECTORS>(simd, head, 0, to);
        } else {
            strip.multiply::<S, HEADS, { VECTORS / 2 }>(simd, head, 0, to);
            strip.multiply::<S, HEADS, { VECTORS / 2 }>(simd, head, VECTORS / 2, to);
        }
    });
}

/// The cells of a strip in the rows of the selected components.
struct Strip<'a, C: Storage> {
    query: &'a Query,
    rows: &'a [&'a [C::Cell]],
    /// The first cell of the strip.
    from: usize,
}

impl<C: Storage> Strip<'_, C> {
    /// Writes the logits of `HEADS` columns from `head` on and `COUNT` vectors from `vector` on.
    #[inline(always)]
    fn multiply<S: Simd, const HEADS: usize, const COUNT: usize>(
        &self,
        simd: S,
        head: usize,
        vector: usize,
        to: &mut [f32],
    ) {
        let columns = self.query.columns.count();
        let cells = VECTORS * S::LANES / C::POSITIONS;
        let mut sums = [[simd.splat(0.0); COUNT]; HEADS];
        // The cells of these vectors in a later strip are prefetched. The hardware follows a few
        // streams by itself, but not one for each component.
        let (first, end) = (cells * vector / VECTORS, cells * (vector + COUNT) / VECTORS);
        let ahead = self.from + C::AHEAD * cells;
        let line = CACHE_LINE / size_of::<C::Cell>();
        for (row, weights) in self
            .rows
            .iter()
            .zip(self.query.weights.chunks_exact(columns))
        {
            let mut at = first;
            while head == 0 && at < end && at.is_multiple_of(line) {
                simd.prefetch(row, ahead + at);
                at += line;
            }
            let strip = &row[self.from..self.from + cells];
            let weights = &weights[head..head + HEADS];
            #[allow(clippy::needless_range_loop, reason = "v is the second index of sums")]
            for v in 0..COUNT {
                let keys = C::vector(simd, strip, vector + v);
                for h in 0..HEADS {
                    sums[h][v] = simd.mul_add(simd.splat(weights[h]), keys, sums[h][v]);
                }
            }
        }
        for h in 0..HEADS {
            for v in 0..COUNT {
                let to = &mut to[(head + h) * BLOCK + (vector + v) * S::LANES..];
                simd.store(finite(simd, sums[h][v]), to);
            }
        }
    }
}

/// Writes the keys of a block from the summed probabilities of its heads. Runs after the softmax
/// over all blocks.
pub(super) struct GroupKeys<'a> {
    /// [g, BLOCK], as in [`Scores`].
    pub(super) weights: &'a [f32],
    /// The factor from a weight of this block to a probability, [g].
    pub(super) scales: &'a [f32],
    pub(super) slots: Slots,
    pub(super) first: usize,
    /// The positions that may be selected: from the first to before the second.
    pub(super) eligible: (usize, usize),
    pub(super) keys: &'a mut [u32],
}

impl Kernel for GroupKeys<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut at = 0;
        while at < BLOCK {
            let mut sum = simd.splat(0.0);
            for (weights, &scale) in self.weights.chunks_exact(BLOCK).zip(self.scales) {
                sum = simd.mul_add(simd.load(&weights[at..]), simd.splat(scale), sum);
            }
            simd.store_sort_keys(sum, &mut self.keys[at..]);
            at += S::LANES;
        }
        mask_keys(self.keys, self.slots, self.first, self.eligible);
    }
}
