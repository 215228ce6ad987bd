//! The rows of a tile along the lanes of vectors, and a block of keys and values.
//!
//! K and V are multiplied in the layout of the cache, element by element with vectors of rows, and
//! nothing of the cache is transposed.

use std::ops::Range;

use super::super::element::Element;
use super::super::online_softmax::{LOWEST, OnlineSoftmax, bound, exp};
use super::super::simd::{Kernel, Level, Simd};
use super::{Reach, Rows};

/// Positions per update of the online softmax.
pub(super) const BLOCK: usize = 64;

/// Elements of K or V that are multiplied with the same vectors of rows.
const ELEMENTS: usize = 4;

/// A block of K rows and V rows in fp32.
pub(super) struct KeyBlock {
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
pub(super) struct Panel {
    /// The rows of the tile that lie in the lanes. Lanes after the last row have a query of zeros.
    rows: Range<usize>,
    /// The first query of the tile.
    first: usize,
    group: usize,
    reach: Reach,
    softcap: Option<f32>,
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

mod in_order;

impl KeyBlock {
    pub(super) fn new(dim: usize) -> Self {
        let depth = dim.next_multiple_of(ELEMENTS);
        Self {
            positions: 0..0,
            keys: vec![0.0; BLOCK * dim],
            values: vec![0.0; BLOCK * depth],
            dim,
            depth,
        }
    }

    /// Loads the K rows and V rows of up to [`BLOCK`] positions.
    pub(super) fn load<T: Element>(
        &mut self,
        level: Level,
        rows: &Rows<'_, T>,
        positions: Range<usize>,
    ) {
        self.positions = positions;
        level.run(LoadKernel { rows, block: self });
    }
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
            if let Some(softcap) = panel.softcap {
                bound(simd, &mut weights[..block.positions.len() * VECTORS * S::LANES], softcap);
            }
            panel.mask::<S, VECTORS>(block, weights);
            panel.add::<S, VECTORS>(simd, block, weights)
        });
    }
}

impl Panel {
    /// Makes the panel of some rows of a tile, with vectors of `lanes`.
    pub(super) fn new<T: Element>(from: &Rows<'_, T>, rows: Range<usize>, lanes: usize) -> Self {
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
            softcap: from.softcap,
            vectors,
            q,
            largest: vec![LOWEST; width],
            weight: vec![0.0; width],
            sum: vec![0.0; dim.next_multiple_of(ELEMENTS) * width],
        }
    }

    /// Adds a block of keys and values to the state. `weights` is working memory, [BLOCK, lanes].
    pub(super) fn attend(&mut self, level: Level, block: &KeyBlock, weights: &mut [f32]) {
        level.run(PanelKernel {
            panel: self,
            block,
            weights,
        });
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
    pub(super) fn copy_to(&self, state: &mut OnlineSoftmax, width: usize, dim: usize) {
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
