//! Steps 1 to 3: which components to read, and the approximate scores of all positions from the key sketch.

use std::marker::PhantomData;

use super::attend::for_heads;
use super::element::Element;
use super::simd::{Kernel, LINE, Level, MOST_LANES, Simd, order};
use super::softmax::{LOWEST, exp};
use crate::SparqConfig;
use crate::methods::{Components, GroupScore};

/// Positions whose scores are computed together; they stay in the first cache level. A multiple of every strip.
pub(super) const BLOCK: usize = 1024;

/// Vectors of a strip, the positions that one load of 4-bit words holds.
const VECTORS: usize = 8;

/// How the rows of a key sketch are stored.
pub(super) trait Channel: Send + Sync {
    /// What a row consists of.
    type Cell: Copy + Default + Send + Sync;
    /// Positions in a cell.
    const POSITIONS: usize;
    /// Strips that the rows are asked for ahead of their use.
    const AHEAD: usize;
    /// One of the vectors of a strip.
    fn vector<S: Simd>(simd: S, strip: &[Self::Cell], vector: usize) -> S::F;
}

/// A row of elements: a full sketch.
pub(super) struct Full<T>(PhantomData<T>);

/// A row of words of four 8-bit codes.
pub(super) struct Bytes;

/// A row of words of eight 4-bit codes. A vector holds every eighth position: code j of each word.
pub(super) struct Nibbles;

impl<T: Element> Channel for Full<T> {
    type Cell = T;
    const POSITIONS: usize = 1;
    const AHEAD: usize = 2;
    #[inline(always)]
    fn vector<S: Simd>(simd: S, strip: &[T], vector: usize) -> S::F {
        T::load(simd, &strip[vector * S::LANES..])
    }
}

impl Channel for Bytes {
    type Cell = u32;
    const POSITIONS: usize = 4;
    const AHEAD: usize = 2;
    #[inline(always)]
    fn vector<S: Simd>(simd: S, strip: &[u32], vector: usize) -> S::F {
        simd.bytes(&strip[vector * S::LANES / 4..])
    }
}

impl Channel for Nibbles {
    type Cell = u32;
    const POSITIONS: usize = 8;
    const AHEAD: usize = 4;
    #[inline(always)]
    fn vector<S: Simd>(simd: S, strip: &[u32], vector: usize) -> S::F {
        simd.nibbles(strip, vector)
    }
}

/// Where a position's score lies. Scores of 4-bit codes are left in the order in which they come out of the words: sorting them would cost more than
/// reading a component.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slots {
    /// Words of a strip of 4-bit codes, or 0 where slots are positions.
    words: usize,
}

impl Slots {
    /// The slots of a channel's scores.
    pub(super) fn of<C: Channel>(level: Level) -> Self {
        let words = if C::POSITIONS == VECTORS {
            level.lanes()
        } else {
            0
        };
        Self { words }
    }

    pub(super) fn slot(self, position: usize) -> usize {
        if self.words == 0 {
            return position;
        }
        let strip = self.words * VECTORS;
        let (first, within) = (position - position % strip, position % strip);
        first + within % VECTORS * self.words + within / VECTORS
    }

    pub(super) fn position(self, slot: usize) -> usize {
        if self.words == 0 {
            return slot;
        }
        let strip = self.words * VECTORS;
        let (first, within) = (slot - slot % strip, slot % strip);
        first + within % self.words * VECTORS + within / self.words
    }
}

/// A group's query on its chosen components.
pub(super) struct Query {
    /// Step 1: i1, ascending, [r].
    pub(super) components: Vec<u32>,
    /// What is scored, and times the channel's step for a sketch in bits: [r, columns].
    weights: Vec<f32>,
    columns: Columns,
}

/// What is scored of a group: the heads' queries q[i1] over their temperatures (step 2), or the sum of those, or both.
#[derive(Clone, Copy, Debug)]
pub(super) struct Columns {
    /// Heads whose softmax is needed, the first columns: all g, or none.
    pub(super) heads: usize,
    /// The column that ranks positions. Where there is none, the heads' probabilities rank them, which [`GroupKeys`] adds up.
    pub(super) ranking: Option<usize>,
}

impl Columns {
    /// For g heads, whose alpha is asked for or not.
    pub(super) fn new(config: &SparqConfig, group: usize, alpha: bool) -> Self {
        // For one head, logits and probabilities rank alike.
        let by_logits = config.group_score == GroupScore::Logits || group == 1;
        let heads = if alpha || !by_logits { group } else { 0 };
        let ranking = by_logits.then_some(if group == 1 { 0 } else { heads });
        Self { heads, ranking }
    }

    /// How many there are.
    pub(super) fn count(self) -> usize {
        self.heads
            .max(self.ranking.map_or(0, |ranking| ranking + 1))
    }
}

impl Query {
    /// From the group's queries q [g, d] and the steps of the sketch's channels [d].
    pub(super) fn new(
        q: &[f32],
        dim: usize,
        steps: Option<&[f32]>,
        config: &SparqConfig,
        columns: Columns,
    ) -> Self {
        let heads = q.len() / dim;
        let column = |component: usize| (0..heads).map(move |head| q[head * dim + component]);
        let magnitude = |component: usize| match config.components {
            Components::SumAbs => column(component).map(f32::abs).sum::<f32>(),
            Components::AbsSum => column(component).sum::<f32>().abs(),
        };
        let rank = config.rank.min(dim);
        let mut ranked: Vec<(u32, u32)> = (0..dim)
            .map(|component| (!order(magnitude(component)), component as u32))
            .collect();
        // Among equal magnitudes, which 16-bit queries have, the first ones.
        if rank > 0 && rank < dim {
            ranked.select_nth_unstable(rank - 1);
        }
        let mut components: Vec<u32> = ranked[..rank]
            .iter()
            .map(|&(_, component)| component)
            .collect();
        components.sort_unstable();

        let temperature: Vec<f32> = q
            .chunks_exact(dim)
            .map(|q| {
                let chosen: f32 = components.iter().map(|&i| q[i as usize].abs()).sum();
                let whole: f32 = q.iter().map(|q| q.abs()).sum();
                // Without anything on the chosen components all scores are 0 for every temperature.
                let ratio = if chosen == 0.0 { 1.0 } else { chosen / whole };
                (ratio * dim as f32).sqrt()
            })
            .collect();
        let mut weights = vec![0.0; rank * columns.count()];
        let rows = weights.chunks_exact_mut(columns.count());
        for (weights, &component) in rows.zip(&components) {
            let step = steps.map_or(1.0, |steps| steps[component as usize]);
            let of_heads = || {
                column(component as usize)
                    .zip(&temperature)
                    .map(|(q, temperature)| q / temperature * step)
            };
            if let Some(ranking) = columns.ranking {
                weights[ranking] = of_heads().sum();
            }
            for (weight, of_head) in weights[..columns.heads].iter_mut().zip(of_heads()) {
                *weight = of_head;
            }
        }
        Self {
            components,
            weights,
            columns,
        }
    }
}

/// The scores of [`BLOCK`] positions.
pub(super) struct Scores<'a> {
    /// Of heads, e^(x - m) for the approximate logits x; else the logits: [columns, BLOCK].
    pub(super) weights: &'a mut [f32],
    /// m, the largest logit, [heads], then l, the sum of the weights, [heads].
    pub(super) sums: &'a mut [f32],
    /// Keys that order as the group's score, [BLOCK]; 0 where a position is not to be chosen.
    pub(super) keys: &'a mut [u32],
}

/// Step 3 over a block of positions.
pub(super) struct ScoreBlock<'a, C: Channel> {
    pub(super) query: &'a Query,
    /// The rows of the sketch for the chosen components, [r] of S_max positions.
    pub(super) rows: &'a [&'a [C::Cell]],
    pub(super) slots: Slots,
    /// The block's first position.
    pub(super) first: usize,
    /// The positions that are valid.
    pub(super) valid: (usize, usize),
    /// The first position of the local window, which needs no key.
    pub(super) window: usize,
    pub(super) scores: Scores<'a>,
}

impl<C: Channel> Kernel for ScoreBlock<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let strip = VECTORS * S::LANES;
        let end = self.valid.1.min(self.first + BLOCK);
        let mut at = self.first;
        while at < end {
            self.strip(simd, at);
            at += strip;
        }
        self.finish(simd, at - self.first);
    }
}

impl<C: Channel> ScoreBlock<'_, C> {
    /// The logits of the strip of positions from `at` on.
    #[inline(always)]
    fn strip<S: Simd>(&mut self, simd: S, at: usize) {
        let cells = VECTORS * S::LANES / C::POSITIONS;
        let from = at / C::POSITIONS;
        if self.rows.first().is_none_or(|row| row.len() < from + cells) {
            return self.last_strip(simd, at);
        }
        let to = &mut self.scores.weights[at - self.first..];
        multiply::<S, C>(simd, self.query, self.rows, from, to);
    }

    /// A strip that reaches behind the end of the rows.
    #[inline(always)]
    fn last_strip<S: Simd>(&mut self, simd: S, at: usize) {
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

    /// From the logits of the block's first `filled` positions to weights, sums and keys.
    #[inline(always)]
    fn finish<S: Simd>(&mut self, simd: S, filled: usize) {
        let Columns { heads, ranking } = self.query.columns;
        let (zero, lowest) = (simd.splat(0.0), simd.splat(LOWEST));
        self.exclude(f32::NEG_INFINITY, filled);
        if let Some(ranking) = ranking {
            let logits = &self.scores.weights[ranking * BLOCK..];
            let mut at = 0;
            while at < filled {
                simd.store_order(simd.load(&logits[at..]), &mut self.scores.keys[at..]);
                at += S::LANES;
            }
            self.scores.keys[filled..].fill(0);
            self.hide_keys();
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
            self.scores.sums[head] = largest;
            self.scores.sums[heads + head] = simd.sum(sum);
            head += 1;
        }
    }

    /// Sets the logits of the filled positions that are not valid.
    fn exclude(&mut self, value: f32, filled: usize) {
        let (start, end) = (
            self.valid.0.saturating_sub(self.first),
            self.valid.1 - self.first,
        );
        for within in (0..start.min(filled)).chain(end.min(filled)..filled) {
            let slot = self.slots.slot(within);
            for column in 0..self.query.columns.count() {
                self.scores.weights[column * BLOCK + slot] = value;
            }
        }
    }

    /// Sets the keys of positions that are not to be chosen: what is not valid, and the window.
    fn hide_keys(&mut self) {
        hide_keys(
            self.scores.keys,
            self.slots,
            self.first,
            self.valid.0,
            self.window,
        );
    }
}

/// Sets the keys of a block's positions outside of `start .. end` to 0.
fn hide_keys(keys: &mut [u32], slots: Slots, first: usize, start: usize, end: usize) {
    let (start, end) = (start.saturating_sub(first), end.saturating_sub(first));
    for within in (0..start.min(BLOCK)).chain(end.min(BLOCK)..BLOCK) {
        keys[slots.slot(within)] = 0;
    }
}

/// NaN becomes the lowest finite number, and infinities the nearest ones.
#[inline(always)]
fn finite<S: Simd>(simd: S, score: S::F) -> S::F {
    simd.min(simd.max(score, simd.splat(LOWEST)), simd.splat(f32::MAX))
}

/// The logits of a strip: the products of the rows' cells from `from` on with the query, [columns, BLOCK].
#[inline(always)]
fn multiply<S: Simd, C: Channel>(
    simd: S,
    query: &Query,
    rows: &[&[C::Cell]],
    from: usize,
    to: &mut [f32],
) {
    for_heads!(S, query.columns.count(), |head, HEADS| {
        // Sixteen or, where there are fewer registers, eight sums at once.
        if HEADS * VECTORS <= 4 * S::HEADS || HEADS == 1 {
            multiply_vectors::<S, C, HEADS, VECTORS>(simd, query, rows, from, head, 0, to);
        } else {
            multiply_vectors::<S, C, HEADS, { VECTORS / 2 }>(simd, query, rows, from, head, 0, to);
            multiply_vectors::<S, C, HEADS, { VECTORS / 2 }>(
                simd,
                query,
                rows,
                from,
                head,
                VECTORS / 2,
                to,
            );
        }
    });
}

/// [`multiply`] for `HEADS` columns from `head` on and `COUNT` vectors from `vector` on.
#[inline(always)]
fn multiply_vectors<S: Simd, C: Channel, const HEADS: usize, const COUNT: usize>(
    simd: S,
    query: &Query,
    rows: &[&[C::Cell]],
    from: usize,
    head: usize,
    vector: usize,
    to: &mut [f32],
) {
    let cells = VECTORS * S::LANES / C::POSITIONS;
    let mut sums = [[simd.splat(0.0); COUNT]; HEADS];
    // What these vectors are of a strip further on. The hardware follows a few streams by itself, but not one for each component.
    let (first, end) = (cells * vector / VECTORS, cells * (vector + COUNT) / VECTORS);
    let ahead = from + C::AHEAD * cells;
    let line = LINE / size_of::<C::Cell>();
    for (row, weights) in rows
        .iter()
        .zip(query.weights.chunks_exact(query.columns.count()))
    {
        let mut at = first;
        while head == 0 && at < end && at.is_multiple_of(line) {
            simd.prefetch(row, ahead + at);
            at += line;
        }
        let strip = &row[from..from + cells];
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

/// The keys of a block by the summed probabilities of its heads, which need the softmax over all blocks.
pub(super) struct GroupKeys<'a> {
    /// [g, BLOCK], as in [`Scores`].
    pub(super) weights: &'a [f32],
    /// What a weight of this block is worth as a probability, [g].
    pub(super) scales: &'a [f32],
    pub(super) slots: Slots,
    pub(super) first: usize,
    /// The positions that may be chosen.
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
            simd.store_order(sum, &mut self.keys[at..]);
            at += S::LANES;
        }
        hide_keys(
            self.keys,
            self.slots,
            self.first,
            self.eligible.0,
            self.eligible.1,
        );
    }
}

const _: () = assert!(BLOCK.is_multiple_of(VECTORS * MOST_LANES));
