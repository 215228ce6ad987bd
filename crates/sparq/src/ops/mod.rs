//! The operations that a backend may implement natively: append, prepare a token, range the sketch, dense and SparQ decode.
//!
//! [`SparqBackend`] extends burn's backend trait. Caches are passed by value and handed back, since a backend writes in place only what it alone
//! owns. The `ndarray` backend runs the [reference](mod@crate::ops::reference): its primitives are lifted to plain tensors and back, which moves
//! handles and no data. The functions of this module call the operation of the backend that holds the tensors.

pub(crate) mod primitive;
pub mod reference;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, ExtensionType, backend_extension};
use burn::tensor::{Device, Int, Tensor};

use crate::ops::primitive::{lift, lower};
use crate::{CacheTensors, RowSpans, SparqConfig};

/// A cache's buffers as primitives of one backend; [`CacheTensors`] has the shapes.
#[derive(ExtensionType)]
pub struct CacheBuffers<B: Backend> {
    /// Keys.
    pub k: FloatTensor<B>,
    /// Values.
    pub v: FloatTensor<B>,
    /// Sum of the valid values, in fp32.
    pub v_sum: FloatTensor<B>,
    /// The span of valid positions of each sequence.
    pub spans: IntTensor<B>,
    /// The key sketch.
    #[extension_type]
    pub sketch: SketchBuffers<B>,
}

impl<B: Backend> CacheBuffers<B> {
    /// Every buffer after `float` or `int`.
    #[cfg(any(feature = "flex", feature = "cube"))]
    pub(crate) fn map(
        self,
        float: impl Fn(FloatTensor<B>) -> FloatTensor<B>,
        int: impl Fn(IntTensor<B>) -> IntTensor<B>,
    ) -> Self {
        Self {
            k: float(self.k),
            v: float(self.v),
            v_sum: float(self.v_sum),
            spans: int(self.spans),
            sketch: match self.sketch {
                SketchBuffers::None => SketchBuffers::None,
                SketchBuffers::Full(kt) => SketchBuffers::Full(float(kt)),
                SketchBuffers::Codes {
                    bits,
                    codes,
                    lo,
                    step,
                } => SketchBuffers::Codes {
                    bits,
                    codes: int(codes),
                    lo: float(lo),
                    step: float(step),
                },
            },
        }
    }
}

/// A key sketch as primitives of one backend; [`SketchTensors`](crate::SketchTensors) has the shapes.
#[derive(ExtensionType)]
pub enum SketchBuffers<B: Backend> {
    /// The cache has no sketch.
    None,
    /// K transposed, in the cache's type.
    Full(FloatTensor<B>),
    /// Codes of 4 or 8 bits.
    Codes {
        /// Bits of a code.
        bits: usize,
        /// Packed codes.
        codes: IntTensor<B>,
        /// Lower end of each channel's range.
        lo: FloatTensor<B>,
        /// Step of each channel's codes.
        step: FloatTensor<B>,
    },
}

/// A rotary embedding as a table, as primitives of one backend.
#[derive(ExtensionType)]
pub enum RotaryBuffers<B: Backend> {
    /// Nothing turns.
    None,
    /// The angles of each position that a cache has room for; [`Rotary::table`](crate::Rotary::table) has the shape.
    Table(FloatTensor<B>),
}

/// What preparing a token returns, as primitives of one backend.
#[derive(ExtensionType)]
pub struct PreparedBuffers<B: Backend> {
    /// The queries, turned.
    pub q: FloatTensor<B>,
    /// The cache with the token's key and value.
    #[extension_type]
    pub cache: CacheBuffers<B>,
}

/// What a SparQ decode step returns, as primitives of one backend; [`SparqOutput`] has the shapes.
#[derive(ExtensionType)]
pub struct SparqOutputBuffers<B: Backend> {
    /// Attention output.
    pub output: FloatTensor<B>,
    /// Kept positions.
    pub positions: IntTensor<B>,
    /// Approximate probability of what was kept.
    pub alpha: FloatTensor<B>,
}

/// How far a SparQ decode step goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// To the approximate scores, step 3: to be timed, since nothing comes of it. A backend that does not work in stages may go on.
    Scores,
    /// To the kept positions, step 4; likewise to be timed.
    Choice,
    /// To the output.
    Output,
    /// To the output, with the kept positions and alpha.
    Trace,
}

/// What a SparQ decode step returns.
#[derive(Clone, Debug)]
pub struct SparqOutput {
    /// The attention output, [B, H, 1, d] in the query's type.
    pub output: Tensor<4>,
    /// The kept positions i2, [B, H_kv, k], in no particular order; -1 fills up where a sequence has fewer than k valid positions.
    pub positions: Tensor<3, Int>,
    /// Step 5: the approximate probability that the kept positions hold, [B, H].
    pub alpha: Tensor<2>,
}

/// The operations of SparQ that a backend can implement natively.
#[backend_extension(
    NdArray: cfg(feature = "ndarray"),
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cube"),
)]
pub trait SparqBackend: Backend {
    /// Writes keys and values [B, H_kv, T, d] behind `rows`, the first `counts[b]` of them for sequence b, and updates the sum of V and a full sketch.
    ///
    /// Codes are written where `encode` asks for it, which needs ranges; otherwise [`SparqBackend::range_sketch`] writes them later.
    fn append(
        #[extension_type] cache: CacheBuffers<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        rows: RowSpans,
        counts: Vec<usize>,
        encode: bool,
    ) -> CacheBuffers<Self>;

    /// What comes before attention in a decode step: turns the query and the key of one token per sequence, q [B, H, 1, d] and k [B, H_kv, 1, d], to the
    /// position behind `rows`, appends the key and the value v [B, H_kv, 1, d], and returns the turned query.
    ///
    /// `encode` as in [`SparqBackend::append`].
    fn prepare(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        #[extension_type] rotary: RotaryBuffers<Self>,
        #[extension_type] cache: CacheBuffers<Self>,
        rows: RowSpans,
        encode: bool,
    ) -> PreparedBuffers<Self>;

    /// Sets the ranges of sequence `row` from its valid positions and writes its codes anew.
    fn range_sketch(
        #[extension_type] cache: CacheBuffers<Self>,
        rows: RowSpans,
        row: usize,
    ) -> CacheBuffers<Self>;

    /// Dense attention of one query per sequence, q [B, H, 1, d] -> [B, H, 1, d].
    fn dense_decode(
        q: FloatTensor<Self>,
        #[extension_type] cache: CacheBuffers<Self>,
        rows: RowSpans,
    ) -> FloatTensor<Self>;

    /// SparQ attention of one query per sequence, q [B, H, 1, d].
    ///
    /// What `extent` does not ask for may be anything.
    fn sparq_decode(
        q: FloatTensor<Self>,
        #[extension_type] cache: CacheBuffers<Self>,
        rows: RowSpans,
        config: SparqConfig,
        extent: Extent,
    ) -> SparqOutputBuffers<Self>;
}

/// Writes keys and values behind `rows`; see [`SparqBackend::append`].
pub fn append(
    cache: CacheTensors,
    k: Tensor<4>,
    v: Tensor<4>,
    rows: &RowSpans,
    counts: &[usize],
    encode: bool,
) -> CacheTensors {
    let cache = Dispatch::append(
        lower(cache),
        k.into_dispatch(),
        v.into_dispatch(),
        rows.clone(),
        counts.to_vec(),
        encode,
    );
    lift(cache)
}

/// Turns and appends one token per sequence; see [`SparqBackend::prepare`]. `table` is a rotary embedding's [`table`](crate::Rotary::table) with a row for every
/// position that the cache has room for.
pub fn prepare(
    [q, k, v]: [Tensor<4>; 3],
    table: Option<Tensor<2>>,
    cache: CacheTensors,
    rows: &RowSpans,
    encode: bool,
) -> (Tensor<4>, CacheTensors) {
    let rotary = match table {
        Some(table) => RotaryBuffers::Table(table.into_dispatch()),
        None => RotaryBuffers::None,
    };
    let prepared = Dispatch::prepare(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
        rotary,
        lower(cache),
        rows.clone(),
        encode,
    );
    (Tensor::from_dispatch(prepared.q), lift(prepared.cache))
}

/// Whether the device runs kernels that CubeCL compiles: a GPU, or a driver that plays one.
pub fn has_kernels(device: &Device) -> bool {
    #[cfg(feature = "cube")]
    return device.identity().is_some();
    #[cfg(not(feature = "cube"))]
    {
        let _ = device;
        false
    }
}

/// Whether the tensor's device may be able to record launches; trying tells.
pub(crate) fn may_have_graphs(tensor: &Tensor<4>) -> bool {
    #[cfg(feature = "cube")]
    return tensor
        .clone()
        .try_into_primitive::<burn_cubecl::CubeBackend>()
        .is_ok();
    #[cfg(not(feature = "cube"))]
    {
        let _ = tensor;
        false
    }
}

/// Whether a step that reads the tensor can be recorded by this thread, as far as the tensor is concerned.
///
/// Each thread has a stream of launches of its own. On CUDA and ROCm a launch that reads what another thread has made, weights for one, is followed by a wait on the host, which
/// breaks a recording off: there the tensor has to be of this thread.
pub fn can_be_recorded<const D: usize>(tensor: &Tensor<D>) -> bool {
    #[cfg(feature = "cube")]
    return tensor
        .clone()
        .try_into_primitive::<burn_cubecl::CubeBackend>()
        .map_or(true, |tensor| {
            crate::backends::cube::can_be_recorded(&tensor)
        });
    #[cfg(not(feature = "cube"))]
    {
        let _ = tensor;
        true
    }
}

/// Whether a step of these queries with the cache takes all lengths from the device's [`spans`](CacheTensors::spans), and the host's [`RowSpans`] only as a
/// bound on them: then a recording of it serves every length. `config` is SparQ's; `None` stands for dense attention.
pub(crate) fn takes_lengths_from_device(
    q: &Tensor<4>,
    cache: &CacheTensors,
    config: Option<&SparqConfig>,
) -> bool {
    #[cfg(feature = "cube")]
    return crate::backends::cube::takes_lengths_from_device(q, &cache.k, config);
    #[cfg(not(feature = "cube"))]
    {
        let _ = (q, cache, config);
        false
    }
}

/// Sets the ranges of one sequence's codes; see [`SparqBackend::range_sketch`].
pub fn range_sketch(cache: CacheTensors, rows: &RowSpans, row: usize) -> CacheTensors {
    lift(Dispatch::range_sketch(lower(cache), rows.clone(), row))
}

/// Dense attention of one query per sequence; see [`SparqBackend::dense_decode`].
pub fn dense_decode(q: Tensor<4>, cache: CacheTensors, rows: &RowSpans) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::dense_decode(
        q.into_dispatch(),
        lower(cache),
        rows.clone(),
    ))
}

/// SparQ attention of one query per sequence, q [B, H, 1, d] -> [B, H, 1, d]; see [`SparqBackend::sparq_decode`].
///
/// # Panics
/// If the cache does not hold the sketch that `config` names; [`Method::decode`](crate::Method::decode) checks it.
pub fn sparq_decode(
    q: Tensor<4>,
    cache: CacheTensors,
    rows: &RowSpans,
    config: &SparqConfig,
) -> Tensor<4> {
    sparq_decode_to(q, cache, rows, config, Extent::Output)
}

/// A part of [`sparq_decode`], for benchmarks: the time of a stage is the difference of two of them. Only that of [`Extent::Output`] is a result.
///
/// # Panics
/// As [`sparq_decode`].
#[doc(hidden)]
pub fn sparq_decode_to(
    q: Tensor<4>,
    cache: CacheTensors,
    rows: &RowSpans,
    config: &SparqConfig,
    extent: Extent,
) -> Tensor<4> {
    let found = Dispatch::sparq_decode(
        q.into_dispatch(),
        lower(cache),
        rows.clone(),
        *config,
        extent,
    );
    Tensor::from_dispatch(found.output)
}

/// [`sparq_decode`] that also returns the kept positions and alpha.
///
/// # Panics
/// As [`sparq_decode`].
pub fn sparq_decode_traced(
    q: Tensor<4>,
    cache: CacheTensors,
    rows: &RowSpans,
    config: &SparqConfig,
) -> SparqOutput {
    let found = Dispatch::sparq_decode(
        q.into_dispatch(),
        lower(cache),
        rows.clone(),
        *config,
        Extent::Trace,
    );
    SparqOutput {
        output: Tensor::from_dispatch(found.output),
        positions: Tensor::from_dispatch(found.positions),
        alpha: Tensor::from_dispatch(found.alpha),
    }
}

/// The operations by the reference.
#[cfg(feature = "ndarray")]
#[allow(deprecated)]
mod ndarray {
    use burn::backend::NdArray;

    use super::*;
    use crate::ops::primitive::Primitive;
    use crate::ops::reference::{self, write};

    impl SparqBackend for NdArray {
        fn append(
            cache: CacheBuffers<Self>,
            k: FloatTensor<Self>,
            v: FloatTensor<Self>,
            rows: RowSpans,
            counts: Vec<usize>,
            encode: bool,
        ) -> CacheBuffers<Self> {
            let (k, v) = (Self::float(k), Self::float(v));
            lower(write::append(lift(cache), k, v, &rows, &counts, encode))
        }

        fn prepare(
            q: FloatTensor<Self>,
            k: FloatTensor<Self>,
            v: FloatTensor<Self>,
            rotary: RotaryBuffers<Self>,
            cache: CacheBuffers<Self>,
            rows: RowSpans,
            encode: bool,
        ) -> PreparedBuffers<Self> {
            let table = match rotary {
                RotaryBuffers::None => None,
                RotaryBuffers::Table(table) => Some(Self::float(table)),
            };
            let heads = [q, k, v].map(Self::float);
            let (q, cache) = write::prepare(lift(cache), heads, table.as_ref(), &rows, encode);
            PreparedBuffers {
                q: Self::float_primitive(q),
                cache: lower(cache),
            }
        }

        fn range_sketch(
            cache: CacheBuffers<Self>,
            rows: RowSpans,
            row: usize,
        ) -> CacheBuffers<Self> {
            lower(write::range_sketch(lift(cache), &rows, row))
        }

        fn dense_decode(
            q: FloatTensor<Self>,
            cache: CacheBuffers<Self>,
            rows: RowSpans,
        ) -> FloatTensor<Self> {
            let y = reference::dense_decode(Self::float(q), &lift(cache), &rows);
            Self::float_primitive(y)
        }

        fn sparq_decode(
            q: FloatTensor<Self>,
            cache: CacheBuffers<Self>,
            rows: RowSpans,
            config: SparqConfig,
            _extent: Extent,
        ) -> SparqOutputBuffers<Self> {
            let q = Self::float(q);
            let trace = reference::sparq_decode(q, &lift(cache), &rows, &config);
            SparqOutputBuffers {
                output: Self::float_primitive(trace.output),
                positions: Self::int_primitive(trace.positions),
                alpha: Self::float_primitive(trace.alpha),
            }
        }
    }
}
