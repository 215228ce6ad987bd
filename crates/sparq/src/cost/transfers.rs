//! The number of elements and bytes that a decode step moves.

use serde::{Deserialize, Serialize};

use crate::methods::Anchors;
use crate::{RowFormat, SparqConfig};

/// The sizes of a cache that determine the bytes of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheShape {
    /// d: elements of one key or value.
    pub head_dim: usize,
    /// H_kv: KV heads, summed over all layers and sequences to be counted.
    pub kv_heads: usize,
    /// The number of layers of the model, of which [`Anchors`] select positions. 1 for a layer by
    /// itself.
    pub layers: usize,
    /// Bytes of one element of K and V.
    pub element_bytes: usize,
}

/// Elements and bytes that one decode step moves between memory and processor for one sequence.
///
/// Elements are counted as in the paper (Section 3 and Appendix F): the reads of the cache and the
/// written K and V rows of the current token, for each KV head. Bytes weigh each element with its
/// width: the codes of a sketch are narrower than the elements of the cache. The baselines count
/// theirs in [`Strategy::transfers`](crate::methods::Strategy::transfers).
///
/// ```
/// use sparq::cost::CacheShape;
/// use sparq::{SparqConfig, Transfers};
///
/// let shape = CacheShape { head_dim: 128, kv_heads: 32, layers: 1, element_bytes: 2 };
/// let dense = Transfers::dense(&shape, 4096);
/// let sparq = Transfers::sparq(&shape, 4096, &SparqConfig::new(32, 128));
/// assert_eq!(dense.elements, 32 * (2 * 4096 * 128 + 2 * 128));
/// assert_eq!(sparq.elements, 32 * (4096 * 32 + 2 * 128 * 128 + 4 * 128));
/// assert!((sparq.bytes() / dense.bytes() - 0.157).abs() < 1e-3);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfers {
    /// Elements moved, codes of the sketch included.
    pub elements: usize,
    /// Bits moved: the sum of the widths of all elements.
    pub bits: usize,
}

impl Transfers {
    /// This number of elements per KV head, in the cache's type.
    pub(crate) fn of_head(shape: &CacheShape, elements: usize) -> Self {
        let elements = shape.kv_heads * elements;
        Self {
            elements,
            bits: elements * shape.element_bytes * 8,
        }
    }

    /// The same with this number of codes per KV head, of `bits` or as wide as the cache's
    /// elements.
    pub(crate) fn and_codes(self, shape: &CacheShape, codes: usize, bits: Option<usize>) -> Self {
        let (codes, width) = (
            shape.kv_heads * codes,
            bits.unwrap_or(shape.element_bytes * 8),
        );
        Self {
            elements: self.elements + codes,
            bits: self.bits + codes * width,
        }
    }

    /// This number of K rows or V rows per KV head, with their scales.
    fn of_rows(shape: &CacheShape, count: usize, rows: RowFormat) -> Self {
        let count = shape.kv_heads * count;
        Self {
            elements: count * shape.head_dim,
            bits: count * rows.row_bits(shape.head_dim, shape.element_bytes),
        }
    }

    /// Dense attention over `seq_len` (S) positions in floats: 2 S d + 2 d elements per head.
    pub fn dense(shape: &CacheShape, seq_len: usize) -> Self {
        Self::dense_rows(shape, seq_len, RowFormat::Float)
    }

    /// [`Transfers::dense`] of a cache that stores K and V as `rows`.
    pub fn dense_rows(shape: &CacheShape, seq_len: usize, rows: RowFormat) -> Self {
        Self::of_rows(shape, 2 * seq_len + 2, rows)
    }

    /// SparQ: S r + 2 k d + 4 d elements per head, where the S r are codes if the sketch has codes.
    ///
    /// K and V are stored as the settings say. A cache of up to top_k positions is read densely, as
    /// by [`Transfers::dense_rows`]. If only some layers of the model select, the heads of the
    /// others count as [`Transfers::reuse`].
    pub fn sparq(shape: &CacheShape, seq_len: usize, config: &SparqConfig) -> Self {
        if seq_len <= config.top_k {
            return Self::dense_rows(shape, seq_len, config.rows);
        }
        let anchors = config.anchors.of(shape.layers);
        if anchors < shape.layers {
            let heads = shape.kv_heads * anchors / shape.layers;
            let of = |kv_heads| CacheShape { kv_heads, ..*shape };
            let own = config.with_anchors(Anchors::All);
            let selecting = Self::sparq(&of(heads), seq_len, &own);
            return selecting.and(Self::reuse(&of(shape.kv_heads - heads), seq_len, config));
        }
        let rows = Self::of_rows(shape, 2 * config.top_k + 2, config.rows);
        let sum = Self::of_head(shape, 2 * shape.head_dim);
        rows.and(sum)
            .and_codes(shape, seq_len * config.rank, config.sketch.bits())
    }

    /// A layer that reuses positions: k numbers and 2 k d + 2 d elements per head.
    ///
    /// A cache of up to top_k positions is read densely.
    pub fn reuse(shape: &CacheShape, seq_len: usize, config: &SparqConfig) -> Self {
        if seq_len <= config.top_k {
            return Self::dense_rows(shape, seq_len, config.rows);
        }
        let rows = Self::of_rows(shape, 2 * config.top_k + 2, config.rows);
        rows.and_codes(shape, config.top_k, Some(32))
    }

    /// The sum of both.
    fn and(self, other: Self) -> Self {
        Self {
            elements: self.elements + other.elements,
            bits: self.bits + other.bits,
        }
    }

    /// Bytes moved.
    pub fn bytes(&self) -> f64 {
        self.bits as f64 / 8.0
    }
}
