//! The rows of a key sketch: how they are stored, and how they are read as vectors of positions.

use std::marker::PhantomData;

use super::element::Element;
use super::simd::{Level, MAX_LANES, Simd};

/// The vectors of a strip. A load of words with 4-bit codes yields this many.
pub(super) const VECTORS: usize = 8;

/// The storage of a key sketch. A strip is `VECTORS` vectors of consecutive positions.
pub(super) trait Storage: Send + Sync {
    type Cell: Copy + Default + Send + Sync;
    /// Positions in a cell.
    const POSITIONS: usize;
    /// The number of strips between a prefetch and the use of its data.
    const AHEAD: usize;
    /// Returns one vector of a strip.
    fn vector<S: Simd>(simd: S, strip: &[Self::Cell], vector: usize) -> S::F;
}

/// A full sketch: a row of elements of the cache's type.
pub(super) struct Full<T>(PhantomData<T>);

/// A row of words with four 8-bit codes each.
pub(super) struct Codes8;

/// A row of words with eight 4-bit codes each. Vector j holds code j of every word of the strip.
pub(super) struct Codes4;

impl<T: Element> Storage for Full<T> {
    type Cell = T;
    const POSITIONS: usize = 1;
    const AHEAD: usize = 2;
    #[inline(always)]
    fn vector<S: Simd>(simd: S, strip: &[T], vector: usize) -> S::F {
        T::load(simd, &strip[vector * S::LANES..])
    }
}

impl Storage for Codes8 {
    type Cell = u32;
    const POSITIONS: usize = 4;
    const AHEAD: usize = 2;
    #[inline(always)]
    fn vector<S: Simd>(simd: S, strip: &[u32], vector: usize) -> S::F {
        simd.load_u8(&strip[vector * S::LANES / 4..])
    }
}

impl Storage for Codes4 {
    type Cell = u32;
    const POSITIONS: usize = 8;
    const AHEAD: usize = 4;
    #[inline(always)]
    fn vector<S: Simd>(simd: S, strip: &[u32], vector: usize) -> S::F {
        simd.load_u4(strip, vector)
    }
}

/// A key sketch as slices, with the sum of V.
pub(super) struct KeySketch<'a, C: Storage> {
    /// Rows of equal length, [B, H_kv, d].
    pub(super) cells: &'a [C::Cell],
    /// The scales of the codes, [B, H_kv, d].
    pub(super) scales: Option<&'a [f32]>,
    /// The sum of V over the valid positions, [B, H_kv, d].
    pub(super) v_sum: &'a [f32],
}

impl<'a, C: Storage> KeySketch<'a, C> {
    pub(super) fn new(cells: &'a [C::Cell], scales: Option<&'a [f32]>, v_sum: &'a [f32]) -> Self {
        Self {
            cells,
            scales,
            v_sum,
        }
    }
}

/// Maps positions to the slots of their scores.
///
/// The scores of 4-bit codes stay in the order in which the words yield them: sorting them would
/// cost more than reading another component.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slots {
    /// Words of a strip of 4-bit codes, or 0 where slots equal positions.
    words: usize,
}

impl Slots {
    /// Returns the slots of a storage's scores.
    pub(super) fn of<C: Storage>(level: Level) -> Self {
        let words = if C::POSITIONS == VECTORS {
            level.lanes()
        } else {
            0
        };
        Self { words }
    }

    pub(super) fn slot(self, position: usize) -> usize {
        self.transpose(position, VECTORS, self.words)
    }

    pub(super) fn position(self, slot: usize) -> usize {
        self.transpose(slot, self.words, VECTORS)
    }

    /// Transposes an index within its strip of `rows` x `columns`, stored column by column.
    fn transpose(self, index: usize, rows: usize, columns: usize) -> usize {
        if self.words == 0 {
            return index;
        }
        let within = index % (rows * columns);
        index - within + within % rows * columns + within / rows
    }
}

/// The positions that are scored together, so that their scores stay in the L1 cache.
/// A multiple of every strip.
pub(super) const BLOCK: usize = 1024;

const _: () = assert!(BLOCK.is_multiple_of(VECTORS * MAX_LANES));
