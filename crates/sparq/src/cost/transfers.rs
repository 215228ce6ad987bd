//! The cost model: how much of the cache each method reads and writes in one decode step.

use serde::{Deserialize, Serialize};

use crate::{Hybrid, Projection, Quest, Sketch, SparqConfig, SparqVariant};

/// What of a cache decides how many bytes a step moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheShape {
    /// d: elements of one key or value.
    pub head_dim: usize,
    /// H_kv: key/value heads, summed over everything that is counted (layers, sequences).
    pub kv_heads: usize,
    /// Bytes of one element of K and V.
    pub element_bytes: usize,
}

/// Elements and bytes that one decode step moves between memory and processor for one sequence.
///
/// Elements are counted as in the paper (Section 3 and Appendix F): per key/value head, the reads of the cache and the new rows of K and V, multiplied
/// by the number of heads. Bytes weigh each with its width: codes of a sketch are narrower than elements of the cache.
///
/// ```
/// use sparq::{CacheShape, SparqConfig, Transfers};
///
/// let shape = CacheShape { head_dim: 128, kv_heads: 32, element_bytes: 2 };
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
    /// Bits moved: the sum of each element's width.
    pub bits: usize,
}

impl Transfers {
    fn new(shape: &CacheShape, elements: usize) -> Self {
        let elements = shape.kv_heads * elements;
        Self {
            elements,
            bits: elements * shape.element_bytes * 8,
        }
    }

    /// Dense attention over `seq_len` (S) positions: 2 S d + 2 d elements per head.
    pub fn dense(shape: &CacheShape, seq_len: usize) -> Self {
        Self::new(shape, 2 * seq_len * shape.head_dim + 2 * shape.head_dim)
    }

    /// SparQ with K stored twice: S r + 2 k d + 4 d elements per head, where S r are codes if the sketch is in bits.
    ///
    /// A cache of at most top_k positions is read densely and costs what [`Transfers::dense`] costs.
    pub fn sparq(shape: &CacheShape, seq_len: usize, config: &SparqConfig) -> Self {
        if seq_len <= config.top_k {
            return Self::dense(shape, seq_len);
        }
        let scores = seq_len * config.rank;
        let rest = Self::new(
            shape,
            2 * config.top_k * shape.head_dim + 4 * shape.head_dim,
        );
        let width = match config.sketch {
            Sketch::Full => shape.element_bytes * 8,
            Sketch::Bits8 => 8,
            Sketch::Bits4 => 4,
        };
        Self {
            elements: rest.elements + shape.kv_heads * scores,
            bits: rest.bits + shape.kv_heads * scores * width,
        }
    }

    /// H2O with k kept positions: 2 k d + 2 d + 2 S elements per head (the running scores are read and written).
    pub fn h2o(shape: &CacheShape, seq_len: usize, top_k: usize) -> Self {
        let kept = top_k.min(seq_len);
        Self::new(
            shape,
            2 * kept * shape.head_dim + 2 * shape.head_dim + 2 * seq_len,
        )
    }

    /// LM-Infinite with k kept positions: 2 k d + 2 d elements per head.
    pub fn lm_infinite(shape: &CacheShape, seq_len: usize, top_k: usize) -> Self {
        let kept = top_k.min(seq_len);
        Self::new(shape, 2 * kept * shape.head_dim + 2 * shape.head_dim)
    }

    /// The oracle with k kept positions: 2 k d + 2 d elements per head, as if the choice cost nothing.
    pub fn oracle(shape: &CacheShape, seq_len: usize, top_k: usize) -> Self {
        let kept = top_k.min(seq_len);
        Self::new(shape, 2 * kept * shape.head_dim + 2 * shape.head_dim)
    }

    /// FlexGen, exact top-k on V only: S d + k d + 2 d elements per head.
    pub fn flexgen(shape: &CacheShape, seq_len: usize, top_k: usize) -> Self {
        let kept = top_k.min(seq_len);
        Self::new(shape, (seq_len + kept + 2) * shape.head_dim)
    }

    /// Quest: 2 N d + 2 k d + 4 d elements per head for N = S / p pages of p positions, rounded up, of which k/p are kept. Read are the bounds of every page, and
    /// written those of the current one.
    ///
    /// At most top_k positions are read densely.
    pub fn quest(shape: &CacheShape, seq_len: usize, method: &Quest) -> Self {
        if seq_len <= method.top_k {
            return Self::dense(shape, seq_len);
        }
        let pages = seq_len.div_ceil(method.page_size);
        let kept = method.top_k / method.page_size * method.page_size;
        Self::new(shape, (2 * pages + 2 * kept + 4) * shape.head_dim)
    }

    /// The hybrid: 2 N r + m r + 2 k d + 5 d elements per head for N = S / p pages, rounded up, and m candidates. Written are the key twice, once with its components
    /// apart, the value, and the bounds of the current page.
    ///
    /// At most top_k positions are read densely.
    pub fn hybrid(shape: &CacheShape, seq_len: usize, method: &Hybrid) -> Self {
        if seq_len <= method.top_k {
            return Self::dense(shape, seq_len);
        }
        let pages = seq_len.div_ceil(method.page_size);
        let scored = 2 * pages + method.candidates.min(seq_len);
        let rows = (2 * method.top_k + 5) * shape.head_dim;
        Self::new(shape, scored * method.rank + rows)
    }

    /// A projection to r directions, projected keys beside the keys: S r + 2 k d + 3 d + r + d r elements per head, of which the last is the projection itself.
    ///
    /// At most top_k positions are read densely.
    pub fn projection(shape: &CacheShape, seq_len: usize, method: &Projection) -> Self {
        if seq_len <= method.top_k {
            return Self::dense(shape, seq_len);
        }
        let (d, r) = (shape.head_dim, method.rank);
        Self::new(shape, (seq_len + 1 + d) * r + (2 * method.top_k + 3) * d)
    }

    /// A variant of SparQ: as [`Transfers::sparq`], with S r + (S/4) (r_2 - r) elements or codes for scores in two stages.
    pub fn sparq_variant(shape: &CacheShape, seq_len: usize, method: &SparqVariant) -> Self {
        if seq_len <= method.top_k {
            return Self::dense(shape, seq_len);
        }
        let scores = shape.kv_heads * method.scored(seq_len);
        let rest = Self::new(shape, (2 * method.top_k + 4) * shape.head_dim);
        let width = method.keys.bits().unwrap_or(shape.element_bytes * 8);
        Self {
            elements: rest.elements + scores,
            bits: rest.bits + scores * width,
        }
    }

    /// Bytes moved.
    pub fn bytes(&self) -> f64 {
        self.bits as f64 / 8.0
    }
}
