//! The operations that a backend can implement natively, and their buffers.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, ExtensionType, backend_extension};
use burn::tensor::{FloatDType, IntDType};

use super::blocks::BlockFormat;
use super::fallback;
use super::primitive::Primitive;
use crate::SparqConfig;
use crate::ops::{NormBuffers, ProjectionBuffers, ResidualBuffers, Spans};

/// The buffers of a cache as primitives of a backend; [`CacheTensors`](super::CacheTensors) has the
/// shapes.
#[derive(ExtensionType)]
pub struct CacheBuffers<B: Backend> {
    /// Keys.
    #[extension_type]
    pub k: RowBuffers<B>,
    /// Values.
    #[extension_type]
    pub v: RowBuffers<B>,
    /// Sum of the valid values, in fp32.
    pub v_sum: FloatTensor<B>,
    /// The span of valid positions of each sequence.
    pub spans: IntTensor<B>,
    /// The key sketch.
    #[extension_type]
    pub sketch: SketchBuffers<B>,
    /// The bound of exact logits.
    pub softcap: Option<f64>,
}

impl<B: Backend> CacheBuffers<B> {
    /// Applies `float` or `int` to every buffer.
    #[cfg(any(feature = "flex", feature = "cube"))]
    pub(crate) fn map(
        self,
        float: impl Fn(FloatTensor<B>) -> FloatTensor<B>,
        int: impl Fn(IntTensor<B>) -> IntTensor<B>,
    ) -> Self {
        Self {
            k: self.k.map(&float, &int),
            v: self.v.map(&float, &int),
            v_sum: float(self.v_sum),
            spans: int(self.spans),
            softcap: self.softcap,
            sketch: match self.sketch {
                SketchBuffers::None => SketchBuffers::None,
                SketchBuffers::Full(kt) => SketchBuffers::Full(float(kt)),
                SketchBuffers::Codes {
                    bits,
                    codes,
                    zero_point,
                    scale,
                } => SketchBuffers::Codes {
                    bits,
                    codes: int(codes),
                    zero_point: float(zero_point),
                    scale: float(scale),
                },
            },
        }
    }
}

/// K or V as primitives of a backend; [`RowTensors`](super::RowTensors) has the shapes.
#[derive(ExtensionType)]
pub enum RowBuffers<B: Backend> {
    /// Floats.
    Float(FloatTensor<B>),
    /// Codes of 8 bits.
    Int8 {
        /// Packed codes.
        codes: IntTensor<B>,
        /// The scale of each row.
        scale: FloatTensor<B>,
    },
}

impl<B: Backend> RowBuffers<B> {
    /// Applies `float` or `int` to every buffer.
    #[cfg(any(feature = "flex", feature = "cube"))]
    pub(crate) fn map(
        self,
        float: impl Fn(FloatTensor<B>) -> FloatTensor<B>,
        int: impl Fn(IntTensor<B>) -> IntTensor<B>,
    ) -> Self {
        match self {
            RowBuffers::Float(rows) => RowBuffers::Float(float(rows)),
            RowBuffers::Int8 { codes, scale } => RowBuffers::Int8 {
                codes: int(codes),
                scale: float(scale),
            },
        }
    }
}

/// A key sketch as primitives of a backend; [`SketchTensors`](super::SketchTensors) has the shapes.
#[derive(ExtensionType)]
pub enum SketchBuffers<B: Backend> {
    /// The cache has no sketch.
    None,
    /// K transposed, in the cache's type.
    Full(FloatTensor<B>),
    /// Codes of 8 or 4 bits.
    Codes {
        /// Bits of a code.
        bits: usize,
        /// Packed codes.
        codes: IntTensor<B>,
        /// The zero point of each channel.
        zero_point: FloatTensor<B>,
        /// The scale of each channel.
        scale: FloatTensor<B>,
    },
}

/// A rotary embedding as a table in a primitive of a backend.
#[derive(ExtensionType)]
pub enum RotaryBuffers<B: Backend> {
    /// No rotation.
    None,
    /// The angles of every position up to the cache's capacity;
    /// [`Rotary::table`](super::Rotary::table) has the shape.
    Table(FloatTensor<B>),
}

/// The result of [`SparqBackend::prepare`], as primitives of a backend.
#[derive(ExtensionType)]
pub struct PreparedBuffers<B: Backend> {
    /// The rotated queries.
    pub q: FloatTensor<B>,
    /// The cache with the token's key and value.
    #[extension_type]
    pub cache: CacheBuffers<B>,
}

/// The result of [`SparqBackend::roll_back`], as primitives of a backend.
#[derive(ExtensionType)]
pub struct RolledBackBuffers<B: Backend> {
    /// The cache.
    #[extension_type]
    pub cache: CacheBuffers<B>,
    /// The sum of V.
    pub sum: FloatTensor<B>,
}

/// The result of [`SparqBackend::sparq_decode`]; [`SparqOutput`](super::SparqOutput) has the
/// shapes.
#[derive(ExtensionType)]
pub struct SparqOutputBuffers<B: Backend> {
    /// The attention output.
    pub output: FloatTensor<B>,
    /// The selected positions.
    pub positions: IntTensor<B>,
    /// The sum of the approximate scores of the selected positions.
    pub alpha: FloatTensor<B>,
}

/// The operations of SparQ that a backend can implement natively.
///
/// Every operation runs the [reference](mod@crate::ops::reference) unless the backend overrides it.
/// Caches are passed by value and returned, since a backend writes in place only what it owns
/// alone.
#[backend_extension(
    NdArray: cfg(feature = "ndarray"),
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cube"),
)]
pub trait SparqBackend: Backend + Primitive {
    /// Appends keys and values [B, H_kv, T, d], the first `counts[b]` of them to sequence b.
    ///
    /// `spans` are those before the append. Updates the sum of V and a full sketch. Writes codes if
    /// `encode` is set, which needs ranges; otherwise [`SparqBackend::range_sketch`] writes them
    /// later.
    fn append(
        #[extension_type] cache: CacheBuffers<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spans: Spans,
        counts: Vec<usize>,
        encode: bool,
    ) -> CacheBuffers<Self> {
        fallback::append(cache, k, v, spans, counts, encode)
    }

    /// Prepares attention: rotates and appends T tokens to every sequence, and returns the rotated
    /// queries.
    ///
    /// Rotates q [B, H, T, d] and k [B, H_kv, T, d] to the positions after `spans`, and appends k
    /// and v [B, H_kv, T, d]. `encode` as in [`SparqBackend::append`].
    fn prepare(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        #[extension_type] rotary: RotaryBuffers<Self>,
        #[extension_type] cache: CacheBuffers<Self>,
        spans: Spans,
        encode: bool,
    ) -> PreparedBuffers<Self> {
        fallback::prepare([q, k, v], rotary, cache, spans, encode)
    }

    /// Takes back appends since a mark, and keeps the first of them.
    ///
    /// `sum` [B, H_kv, d] is the sum of V at the mark, `mark` are the spans then, and `spans` those
    /// afterwards. `moves` [3, B] in u32 holds the starts, the ends of `mark` and those of `spans`.
    /// Sets the spans of the cache. The sum of V becomes that at the mark plus the values kept,
    /// without left padding, in the order of their positions; `sum` becomes the same.
    fn roll_back(
        #[extension_type] cache: CacheBuffers<Self>,
        sum: FloatTensor<Self>,
        moves: IntTensor<Self>,
        mark: Spans,
        spans: Spans,
    ) -> RolledBackBuffers<Self> {
        let _ = moves;
        fallback::roll_back(cache, sum, mark, spans)
    }

    /// Sets the ranges of one sequence from its valid positions, and writes all its codes.
    fn range_sketch(
        #[extension_type] cache: CacheBuffers<Self>,
        spans: Spans,
        sequence: usize,
    ) -> CacheBuffers<Self> {
        fallback::range_sketch(cache, spans, sequence)
    }

    /// Causal attention of the last T positions of every sequence, q [B, H, T, d] -> [B, H, T, d],
    /// in q's type.
    ///
    /// k and v are the K rows and V rows of a cache to which the T positions have been
    /// appended. `device_spans` [3, B] in u32 are those of
    /// [`CacheTensors`](super::CacheTensors) after the append, `spans` the same on the host. If the
    /// device's spans are shorter than the host's, the host's only bound them.
    ///
    /// Query t of sequence b is at position p = end\[b\] - T + t. It attends to the positions
    /// start\[b\] ..= p, or to the last `window` of these. A query at p < start\[b\] is left
    /// padding: it attends to p alone, and its result is finite but has no other meaning.
    ///
    /// Logits are divided by sqrt(d), and bounded by `softcap` as in
    /// [`KvCacheConfig::softcap`](crate::KvCacheConfig::softcap). Sums are kept in fp32 at least.
    /// The types of q and of k and v may differ. Positions from end\[b\] on may hold NaN and have
    /// no effect.
    fn causal_attention(
        q: FloatTensor<Self>,
        #[extension_type] k: RowBuffers<Self>,
        #[extension_type] v: RowBuffers<Self>,
        device_spans: IntTensor<Self>,
        spans: Spans,
        window: Option<usize>,
        softcap: Option<f64>,
    ) -> FloatTensor<Self> {
        let _ = device_spans;
        fallback::causal_attention::<Self>(q, k, v, spans, window, softcap)
    }

    /// Dense attention of one query per sequence, q [B, H, 1, d] -> [B, H, 1, d].
    fn dense_decode(
        q: FloatTensor<Self>,
        #[extension_type] cache: CacheBuffers<Self>,
        spans: Spans,
    ) -> FloatTensor<Self> {
        fallback::dense_decode(q, cache, spans)
    }

    /// SparQ attention of one query per sequence, q [B, H, 1, d].
    ///
    /// alpha is defined only if `trace` is set: on GPUs it can take as long as all the rest.
    fn sparq_decode(
        q: FloatTensor<Self>,
        #[extension_type] cache: CacheBuffers<Self>,
        spans: Spans,
        config: SparqConfig,
        trace: bool,
    ) -> SparqOutputBuffers<Self> {
        let _ = trace;
        fallback::sparq_decode(q, cache, spans, config)
    }

    /// Exact attention of one query per sequence over given positions, q [B, H, 1, d] -> [B, H, 1,
    /// d].
    ///
    /// `positions` [B, N, k] are those that [`SparqBackend::sparq_decode`] selected for the same
    /// sequences with N KV heads, in its type. `heads` `[H_kv]` in u32 names the list that each KV
    /// head reads. The first min(k, count) positions of a list are attended to, where count is the
    /// number of valid positions of its sequence.
    fn attend_positions(
        q: FloatTensor<Self>,
        #[extension_type] cache: CacheBuffers<Self>,
        positions: IntTensor<Self>,
        heads: IntTensor<Self>,
        spans: Spans,
    ) -> FloatTensor<Self> {
        fallback::attend_positions(q, cache, positions, heads, spans)
    }

    /// Linear layers with a norm before them, and an activation and the residual stream after
    /// them, x [rows, in] -> [rows, out]; see [`decode_linear`](super::decode_linear).
    ///
    /// Any number of rows is allowed. The layouts of the tensors are not fixed: a matrix [out, in]
    /// may be the transposed view of one that stores the inputs of an output apart. A backend runs
    /// the reference for layouts and types that it does not cover.
    fn decode_linear(
        x: FloatTensor<Self>,
        #[extension_type] norm: NormBuffers<Self>,
        #[extension_type] projections: ProjectionBuffers<Self>,
        #[extension_type] residual: ResidualBuffers<Self>,
    ) -> FloatTensor<Self> {
        fallback::decode_linear(x, norm, projections, residual)
    }

    /// Normalizes the rows of x [rows, in]; see [`normalize`](super::normalize).
    fn normalize(
        x: FloatTensor<Self>,
        #[extension_type] norm: NormBuffers<Self>,
    ) -> FloatTensor<Self> {
        fallback::normalize(x, norm)
    }

    /// Converts x [rows, width] to fp32.
    fn widen(x: FloatTensor<Self>) -> FloatTensor<Self> {
        fallback::widen::<Self>(x)
    }

    /// Finds the largest element of each row of x [rows, width] in fp32; see
    /// [`argmax`](super::argmax) for the result [2, rows].
    fn argmax(x: FloatTensor<Self>, dtype: IntDType) -> IntTensor<Self> {
        fallback::argmax::<Self>(x, dtype)
    }

    /// Stores the blocks of a matrix [out, in] in the layout that the backend multiplies by.
    ///
    /// `bytes` has the blocks as in [`blocks`](mod@super::blocks), row by row: in u8 on a CPU, and
    /// in little-endian words of u32, padded with zeros, where
    /// [`has_kernels`](super::has_kernels). The default keeps them. All other operations take the
    /// blocks in the layout that this one returns.
    fn store_blocks(
        bytes: IntTensor<Self>,
        format: BlockFormat,
        dims: [usize; 2],
    ) -> IntTensor<Self> {
        let _ = (format, dims);
        bytes
    }

    /// The inverse of [`SparqBackend::store_blocks`].
    fn restore_blocks(
        blocks: IntTensor<Self>,
        format: BlockFormat,
        dims: [usize; 2],
    ) -> IntTensor<Self> {
        let _ = (format, dims);
        blocks
    }

    /// Returns the matrix [out, in] of the blocks in `dtype`.
    fn dequantize_blocks(
        blocks: IntTensor<Self>,
        format: BlockFormat,
        dims: [usize; 2],
        dtype: FloatDType,
    ) -> FloatTensor<Self> {
        fallback::dequantize_blocks::<Self>(blocks, format, dims, dtype)
    }

    /// Returns the rows `indices` `[n]` of the matrix of the blocks in `dtype`, `[n, in]`.
    ///
    /// A backend that captures steps as graphs must not read the indices on the host.
    fn dequantize_rows(
        blocks: IntTensor<Self>,
        indices: IntTensor<Self>,
        format: BlockFormat,
        dims: [usize; 2],
        dtype: FloatDType,
    ) -> FloatTensor<Self> {
        fallback::dequantize_rows::<Self>(blocks, indices, format, dims, dtype)
    }
}

#[cfg(feature = "ndarray")]
#[allow(deprecated)]
impl SparqBackend for burn::backend::NdArray {}
