//! Causal attention of many queries, with blocks of keys against tiles of queries.
//!
//! A row is one query of one head. All heads of a group read the same K rows and V rows, so a tile
//! has the rows of a few queries times the group. Rows lie along the lanes: K and V are then read
//! in the layout of the cache, element by element, and nothing of the cache is transposed.

use std::ops::Range;

use rayon::prelude::*;

use super::attend::{Attend, Span};
use super::element::Element;
use super::online_softmax::{LOWEST, OnlineSoftmax, exp};
use super::simd::{Kernel, Level, MAX_LANES, Simd};
use super::threads::Threads;
use crate::ops::Spans;

/// The rows of a tile, unless a group is larger.
///
/// Converting an element of the cache costs as much as multiplying it with a few rows.
const TILE: usize = 96;

/// Positions per update of the online softmax.
const BLOCK: usize = 64;

/// Elements of K or V that are multiplied with the same vectors of rows.
const ELEMENTS: usize = 4;

/// The largest number of rows that are faster along the rows of the cache, as in a decode step.
const FEW: usize = 8;

/// The keys of one tile are not divided among threads below this number of positions.
const MIN_POSITIONS: usize = 256;

/// The queries, keys and values of a prefill.
pub(super) struct Prefill<'a, T> {
    pub(super) level: Level,
    /// [B, H, T, d].
    pub(super) q: &'a [f32],
    /// [B, H_kv, S_max, d].
    pub(super) keys: &'a [T],
    /// [B, H_kv, S_max, d].
    pub(super) values: &'a [T],
    /// The spans with the queries.
    pub(super) spans: &'a Spans,
    pub(super) window: Option<usize>,
    pub(super) kv_heads: usize,
    pub(super) group: usize,
    /// T.
    pub(super) len: usize,
    pub(super) capacity: usize,
    pub(super) dim: usize,
}

/// Consecutive queries of one batch head, with the outputs of each head of the group.
struct Tile<'a> {
    batch_head: usize,
    queries: Range<usize>,
    /// [g] slices of [queries, d].
    outputs: Vec<&'a mut [f32]>,
}

impl<T: Element> Prefill<'_, T> {
    /// Returns the attention, [B, H, T, d].
    pub(super) fn attend(&self) -> Vec<f32> {
        let mut output = vec![0.0; self.q.len()];
        if output.is_empty() {
            return output;
        }
        let tiles = self.tiles(&mut output);
        let scores: usize = tiles.iter().map(|tile| self.scores(tile)).sum();
        // A thread multiplies with about eight rows in the time that a decode step needs to read
        // the element.
        let bytes = scores * self.dim * size_of::<T>() / 8;
        let threads = Threads::new(tiles.len(), bytes);
        let min_len = threads.min_len(tiles.len());
        tiles
            .into_par_iter()
            .with_min_len(min_len)
            .for_each(|tile| self.attend_tile(tile, threads));
        output
    }

    /// Divides the output [B, H, T, d] into tiles, those with the most positions first.
    fn tiles<'o>(&self, output: &'o mut [f32]) -> Vec<Tile<'o>> {
        let Self {
            group, len, dim, ..
        } = *self;
        let count = (TILE / group).clamp(1, len);
        let mut tiles = Vec::new();
        for (batch_head, heads) in output.chunks_mut(group * len * dim).enumerate() {
            let mut of_heads: Vec<_> = heads
                .chunks_mut(len * dim)
                .map(|head| head.chunks_mut(count * dim))
                .collect();
            tiles.extend((0..len).step_by(count).map(|first| Tile {
                batch_head,
                queries: first..(first + count).min(len),
                outputs: of_heads.iter_mut().filter_map(Iterator::next).collect(),
            }));
        }
        tiles.sort_by_key(|tile| std::cmp::Reverse(self.scores(tile)));
        tiles
    }

    /// Returns the number of scores of a tile, masked ones included.
    fn scores(&self, tile: &Tile<'_>) -> usize {
        let reach = self.reach(tile.batch_head);
        tile.queries.len() * self.group * reach.of(&tile.queries).len()
    }

    fn reach(&self, batch_head: usize) -> Reach {
        let sequence = batch_head / self.kv_heads;
        let end = self.spans.end[sequence].min(self.capacity);
        Reach {
            before: end.saturating_sub(self.len),
            start: self.spans.start[sequence],
            window: self.window.unwrap_or(usize::MAX),
        }
    }

    /// Writes the outputs of a tile.
    fn attend_tile(&self, mut tile: Tile<'_>, threads: Threads) {
        let Self { group, dim, .. } = *self;
        let reach = self.reach(tile.batch_head);
        let seen = reach.of(&tile.queries);
        let matrix =
            tile.batch_head * self.capacity * dim..(tile.batch_head + 1) * self.capacity * dim;
        let heads = tile.batch_head * group * self.len * dim..;
        let rows = Rows {
            q: &self.q[heads],
            keys: &self.keys[matrix.clone()],
            values: &self.values[matrix],
            queries: tile.queries.clone(),
            len: self.len,
            group,
            dim,
            reach,
        };
        let over = |part: Range<usize>| {
            let positions = seen.start + part.start..seen.start + part.end;
            match rows.count() <= FEW {
                true => rows.over_common(self.level, positions),
                false => rows.over(self.level, positions),
            }
        };
        let parts = threads.parts(seen.len(), MIN_POSITIONS);
        // Merged in the order of the positions, so that the result does not depend on which thread
        // finishes first.
        let states: Vec<OnlineSoftmax> = match parts.len() {
            1 => vec![over(0..seen.len())],
            _ => parts.into_par_iter().map(over).collect(),
        };
        let Some(state) = states.into_iter().reduce(|all, state| all.merge(&state)) else {
            return;
        };
        for (head, output) in tile.outputs.iter_mut().enumerate() {
            for (query, output) in output.chunks_exact_mut(dim).enumerate() {
                state.write(query * group + head, output);
            }
        }
    }
}

/// The positions that the queries of a sequence attend to.
#[derive(Clone, Copy)]
struct Reach {
    /// The position of the first query.
    before: usize,
    /// The first valid position.
    start: usize,
    window: usize,
}

impl Reach {
    /// Returns the position of a query, the last one it attends to.
    #[inline(always)]
    fn last(self, query: usize) -> usize {
        self.before + query
    }

    /// Returns the first position that a query attends to. Left padding attends to itself.
    #[inline(always)]
    fn first(self, query: usize) -> usize {
        let own = self.last(query);
        self.start
            .min(own)
            .max((own + 1).saturating_sub(self.window))
    }

    /// Returns the positions that any of some consecutive queries attends to.
    fn of(self, queries: &Range<usize>) -> Range<usize> {
        self.first(queries.start)..self.last(queries.end - 1) + 1
    }
}

/// The rows of a tile: row i is head i % g of query i / g.
struct Rows<'a, T> {
    /// The queries from the first head of the group on, [.., T, d].
    q: &'a [f32],
    /// [S_max, d].
    keys: &'a [T],
    /// [S_max, d].
    values: &'a [T],
    queries: Range<usize>,
    len: usize,
    group: usize,
    dim: usize,
    reach: Reach,
}

impl<T: Element> Rows<'_, T> {
    fn count(&self) -> usize {
        self.queries.len() * self.group
    }

    /// Returns the query vector of a row.
    fn query(&self, row: usize) -> &[f32] {
        let query = self.queries.start + row / self.group;
        let at = (row % self.group * self.len + query) * self.dim;
        &self.q[at..at + self.dim]
    }

    /// Returns the softmax state over the given positions, as decode steps compute it.
    ///
    /// One pass serves all rows at the positions that all of them attend to. Each query attends to
    /// its few others by itself.
    fn over_common(&self, level: Level, positions: Range<usize>) -> OnlineSoftmax {
        let (dim, group) = (self.dim, self.group);
        let width = dim.next_multiple_of(MAX_LANES);
        let scale = (dim as f32).sqrt();
        let mut q = vec![0.0; self.count() * width];
        for (row, to) in q.chunks_exact_mut(width).enumerate() {
            for (to, from) in to.iter_mut().zip(self.query(row)) {
                *to = from / scale;
            }
        }
        let over = |q: &[f32], seen: Range<usize>| {
            let (start, end) = (seen.start.max(positions.start), seen.end.min(positions.end));
            let attend = Attend {
                q,
                keys: self.keys,
                values: self.values,
                dim,
                width,
            };
            attend.over(level, Span(start, end.max(start)))
        };
        let Range { start, end } = self.queries;
        let first = self.reach.first(end - 1);
        let common = first..(self.reach.last(start) + 1).max(first);
        let mut state = over(&q, common.clone());
        for query in start..end {
            let own = self.reach.of(&(query..query + 1));
            let row = (query - start) * group;
            let q = &q[row * width..(row + group) * width];
            for rest in [
                own.start..common.start.min(own.end),
                common.end.max(own.start)..own.end,
            ] {
                if !rest.is_empty() {
                    state.merge_heads(row, &over(q, rest));
                }
            }
        }
        state
    }

    /// Returns the softmax state over the given positions.
    fn over(&self, level: Level, positions: Range<usize>) -> OnlineSoftmax {
        let depth = self.dim.next_multiple_of(ELEMENTS);
        let widest = level.vectors() * level.lanes();
        let count = self.count();
        let mut panels: Vec<Panel> = (0..count)
            .step_by(widest)
            .map(|first| {
                let rows = first..(first + widest).min(count);
                Panel::new(self, rows, level.lanes(), depth)
            })
            .collect();
        let mut block = KeyBlock {
            positions: 0..0,
            keys: vec![0.0; BLOCK * self.dim],
            values: vec![0.0; BLOCK * depth],
            dim: self.dim,
            depth,
        };
        let mut weights = vec![0.0; BLOCK * widest];
        for first in positions.clone().step_by(BLOCK) {
            block.positions = first..(first + BLOCK).min(positions.end);
            level.run(LoadKernel {
                rows: self,
                block: &mut block,
            });
            for panel in &mut panels {
                level.run(PanelKernel {
                    panel,
                    block: &block,
                    weights: &mut weights,
                });
            }
        }
        let width = self.dim.next_multiple_of(MAX_LANES);
        let mut state = OnlineSoftmax::new(count, width);
        for panel in &panels {
            panel.copy_to(&mut state, width, self.dim);
        }
        state
    }
}

/// A block of K rows and V rows in fp32.
struct KeyBlock {
    positions: Range<usize>,
    /// [BLOCK, d].
    keys: Vec<f32>,
    /// [BLOCK, depth].
    values: Vec<f32>,
    dim: usize,
    /// d rounded up to a multiple of [`ELEMENTS`].
    depth: usize,
}

/// Some rows of a tile, one per lane of a few vectors, with their softmax state.
struct Panel {
    /// The rows of the tile that lie in the lanes. Lanes after the last row have a query of zeros.
    rows: Range<usize>,
    /// The first query of the tile.
    first: usize,
    group: usize,
    reach: Reach,
    vectors: usize,
    /// The queries over sqrt(d), [d, lanes].
    q: Vec<f32>,
    /// [lanes].
    largest: Vec<f32>,
    /// [lanes].
    weight: Vec<f32>,
    /// [depth, lanes].
    sum: Vec<f32>,
}

/// Evaluates an expression with the constant `$vectors` set to a number of vectors, up to 4.
macro_rules! with_vectors {
    ($simd:ty, $count:expr, $vectors:ident => $body:expr) => {
        with_vectors!(@ $simd, $count, $vectors, $body, 1 2 3 4)
    };
    (@ $simd:ty, $count:expr, $vectors:ident, $body:expr, $($number:literal)*) => {
        $(if $number <= <$simd>::VECTORS && $count == $number {
            const $vectors: usize = $number;
            $body;
        })*
    };
}

/// Converts the K rows and V rows of a block's positions. The rows after them stay finite.
struct LoadKernel<'a, T> {
    rows: &'a Rows<'a, T>,
    block: &'a mut KeyBlock,
}

impl<T: Element> Kernel for LoadKernel<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let KeyBlock { dim, depth, .. } = *self.block;
        let positions = &self.block.positions;
        let part = positions.start * dim..positions.end * dim;
        convert(simd, &self.rows.keys[part.clone()], &mut self.block.keys);
        let values = &self.rows.values[part];
        if depth == dim {
            return convert(simd, values, &mut self.block.values);
        }
        let to = self.block.values.chunks_exact_mut(depth);
        for (from, to) in values.chunks_exact(dim).zip(to) {
            convert(simd, from, to);
        }
    }
}

/// Converts elements to fp32.
#[inline(always)]
fn convert<T: Element, S: Simd>(simd: S, from: &[T], to: &mut [f32]) {
    let to = &mut to[..from.len()];
    let whole = from.len() - from.len() % S::LANES;
    let vectors = to.chunks_exact_mut(S::LANES);
    for (from, to) in from.chunks_exact(S::LANES).zip(vectors) {
        simd.store(T::load(simd, from), to);
    }
    for (from, to) in from[whole..].iter().zip(&mut to[whole..]) {
        *to = from.widen();
    }
}

/// Adds a block of keys and values to the state of a panel.
struct PanelKernel<'a> {
    panel: &'a mut Panel,
    block: &'a KeyBlock,
    /// Working memory, [BLOCK, lanes].
    weights: &'a mut [f32],
}

impl Kernel for PanelKernel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self {
            panel,
            block,
            weights,
        } = self;
        let seen = panel.seen();
        // Causality or the window hides the whole block.
        if seen.end <= block.positions.start || seen.start >= block.positions.end {
            return;
        }
        with_vectors!(S, panel.vectors, VECTORS => {
            panel.logits::<S, VECTORS>(simd, block, weights);
            panel.mask::<S, VECTORS>(block, weights);
            panel.add::<S, VECTORS>(simd, block, weights)
        });
    }
}

impl Panel {
    fn new<T: Element>(from: &Rows<'_, T>, rows: Range<usize>, lanes: usize, depth: usize) -> Self {
        let vectors = rows.len().div_ceil(lanes);
        let width = vectors * lanes;
        let (dim, scale) = (from.dim, (from.dim as f32).sqrt());
        let mut q = vec![0.0; dim * width];
        for (lane, row) in rows.clone().enumerate() {
            for (to, from) in q[lane..].iter_mut().step_by(width).zip(from.query(row)) {
                *to = from / scale;
            }
        }
        Self {
            rows,
            first: from.queries.start,
            group: from.group,
            reach: from.reach,
            vectors,
            q,
            largest: vec![LOWEST; width],
            weight: vec![0.0; width],
            sum: vec![0.0; depth * width],
        }
    }

    /// Returns the query of a row.
    #[inline(always)]
    fn query(&self, row: usize) -> usize {
        self.first + row / self.group
    }

    /// Returns the positions that any row attends to.
    #[inline(always)]
    fn seen(&self) -> Range<usize> {
        let end = self.query(self.rows.end - 1) + 1;
        self.reach.of(&(self.query(self.rows.start)..end))
    }

    /// Writes the logits of a block, [BLOCK, lanes].
    #[inline(always)]
    fn logits<S: Simd, const VECTORS: usize>(&self, simd: S, block: &KeyBlock, logits: &mut [f32]) {
        let (dim, width) = (block.dim, VECTORS * S::LANES);
        let count = block.positions.len();
        for first in (0..count).step_by(ELEMENTS) {
            let mut keys = [&block.keys[..dim]; ELEMENTS];
            for (i, key) in keys.iter_mut().enumerate() {
                *key = &block.keys[(first + i) * dim..][..dim];
            }
            let mut dots = [[simd.splat(0.0); VECTORS]; ELEMENTS];
            for (c, q) in self.q.chunks_exact(width).take(dim).enumerate() {
                let mut queries = [simd.splat(0.0); VECTORS];
                for v in 0..VECTORS {
                    queries[v] = simd.load(&q[v * S::LANES..]);
                }
                for i in 0..ELEMENTS {
                    let key = simd.splat(keys[i][c]);
                    for v in 0..VECTORS {
                        dots[i][v] = simd.mul_add(key, queries[v], dots[i][v]);
                    }
                }
            }
            let logits = &mut logits[first * width..(first + ELEMENTS) * width];
            for i in 0..ELEMENTS {
                for v in 0..VECTORS {
                    simd.store(dots[i][v], &mut logits[i * width + v * S::LANES..]);
                }
            }
        }
    }

    /// Sets the logits of hidden positions to -inf.
    #[inline(always)]
    fn mask<S: Simd, const VECTORS: usize>(&self, block: &KeyBlock, logits: &mut [f32]) {
        let (width, reach) = (VECTORS * S::LANES, self.reach);
        let (first, last) = (self.query(self.rows.start), self.query(self.rows.end - 1));
        let hides = reach.last(first) + 1 < block.positions.end
            || reach.first(last) > block.positions.start;
        if !hides {
            return;
        }
        for (position, logits) in block.positions.clone().zip(logits.chunks_exact_mut(width)) {
            for (row, logit) in self.rows.clone().zip(logits) {
                let query = self.query(row);
                if position > reach.last(query) || position < reach.first(query) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }

    /// Turns the logits of a block into weights in place, and adds its values.
    #[inline(always)]
    fn add<S: Simd, const VECTORS: usize>(
        &mut self,
        simd: S,
        block: &KeyBlock,
        weights: &mut [f32],
    ) {
        let width = VECTORS * S::LANES;
        let weights = &mut weights[..block.positions.len() * width];
        let mut before = [simd.splat(0.0); VECTORS];
        for (v, before) in before.iter_mut().enumerate() {
            *before = simd.load(&self.largest[v * S::LANES..]);
        }
        let mut largest = before;
        for logits in weights.chunks_exact(width) {
            for v in 0..VECTORS {
                largest[v] = simd.max(simd.load(&logits[v * S::LANES..]), largest[v]);
            }
        }
        let mut sums = [simd.splat(0.0); VECTORS];
        for weights in weights.chunks_exact_mut(width) {
            for v in 0..VECTORS {
                let part = &mut weights[v * S::LANES..][..S::LANES];
                let weight = exp(simd, simd.sub(simd.load(part), largest[v]));
                simd.store(weight, part);
                sums[v] = simd.add(sums[v], weight);
            }
        }
        let mut kept = [simd.splat(0.0); VECTORS];
        for v in 0..VECTORS {
            kept[v] = exp(simd, simd.sub(before[v], largest[v]));
            simd.store(largest[v], &mut self.largest[v * S::LANES..]);
            let weight = &mut self.weight[v * S::LANES..];
            simd.store(simd.mul_add(simd.load(weight), kept[v], sums[v]), weight);
        }
        self.add_values::<S, VECTORS>(simd, block, weights, kept);
    }

    /// Scales the sums by `kept`, then adds the weighted values.
    #[inline(always)]
    fn add_values<S: Simd, const VECTORS: usize>(
        &mut self,
        simd: S,
        block: &KeyBlock,
        weights: &[f32],
        kept: [S::F; VECTORS],
    ) {
        let (depth, width) = (block.depth, VECTORS * S::LANES);
        for (element, sum) in self.sum.chunks_exact_mut(ELEMENTS * width).enumerate() {
            let mut sums = [[simd.splat(0.0); VECTORS]; ELEMENTS];
            for i in 0..ELEMENTS {
                for v in 0..VECTORS {
                    let sum = simd.load(&sum[i * width + v * S::LANES..]);
                    sums[i][v] = simd.mul(sum, kept[v]);
                }
            }
            let values = block.values[element * ELEMENTS..].chunks(depth);
            for (weights, values) in weights.chunks_exact(width).zip(values) {
                let values = &values[..ELEMENTS];
                let mut of_rows = [simd.splat(0.0); VECTORS];
                for v in 0..VECTORS {
                    of_rows[v] = simd.load(&weights[v * S::LANES..]);
                }
                for i in 0..ELEMENTS {
                    let value = simd.splat(values[i]);
                    for v in 0..VECTORS {
                        sums[i][v] = simd.mul_add(value, of_rows[v], sums[i][v]);
                    }
                }
            }
            for i in 0..ELEMENTS {
                for v in 0..VECTORS {
                    simd.store(sums[i][v], &mut sum[i * width + v * S::LANES..]);
                }
            }
        }
    }

    /// Copies the state of the rows.
    fn copy_to(&self, state: &mut OnlineSoftmax, width: usize, dim: usize) {
        let lanes = self.largest.len();
        for (lane, row) in self.rows.clone().enumerate() {
            state.largest[row] = self.largest[lane];
            state.weight[row] = self.weight[lane];
            let sums = self.sum[lane..].iter().step_by(lanes);
            for (to, from) in state.sum[row * width..][..dim].iter_mut().zip(sums) {
                *to = *from;
            }
        }
    }
}
