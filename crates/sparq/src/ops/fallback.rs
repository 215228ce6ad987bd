//! The operations by the [reference](mod@crate::ops::reference), for any backend.
//!
//! `ndarray` runs all of them. The native backends run them for types and sizes that they do not
//! cover. Primitives become plain tensors and back again, which moves handles and copies no data.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{DType, Device, FloatDType, IntDType, Tensor, TensorData};

use super::blocks::BlockFormat;
use super::primitive::{Primitive, lift, lift_rows, lower};
use super::reference::{self, append as write};
use super::{
    CacheBuffers, Norm, NormBuffers, PreparedBuffers, ProjectionBuffers, Projections,
    ResidualBuffers, RolledBackBuffers, RotaryBuffers, RowBuffers, Spans, SparqBackend,
    SparqOutputBuffers,
};
use crate::SparqConfig;

/// See [`SparqBackend::append`](super::SparqBackend::append).
pub(crate) fn append<B: Primitive>(
    cache: CacheBuffers<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    spans: Spans,
    counts: Vec<usize>,
    encode: bool,
) -> CacheBuffers<B> {
    let (k, v) = (B::float(k), B::float(v));
    lower(write::append(lift(cache), k, v, &spans, &counts, encode))
}

/// See [`SparqBackend::prepare`](super::SparqBackend::prepare).
pub(crate) fn prepare<B: Primitive>(
    heads: [FloatTensor<B>; 3],
    rotary: RotaryBuffers<B>,
    cache: CacheBuffers<B>,
    spans: Spans,
    encode: bool,
) -> PreparedBuffers<B> {
    let table = match rotary {
        RotaryBuffers::None => None,
        RotaryBuffers::Table(table) => Some(B::float(table)),
    };
    let heads = heads.map(B::float);
    let (q, cache) = write::prepare(lift(cache), heads, table.as_ref(), &spans, encode);
    PreparedBuffers {
        q: B::float_primitive(q),
        cache: lower(cache),
    }
}

/// See [`SparqBackend::roll_back`](super::SparqBackend::roll_back).
pub(crate) fn roll_back<B: Primitive>(
    cache: CacheBuffers<B>,
    sum: FloatTensor<B>,
    mark: Spans,
    spans: Spans,
) -> RolledBackBuffers<B> {
    let (cache, sum) = write::roll_back(lift(cache), B::float(sum), &mark, &spans);
    RolledBackBuffers {
        cache: lower(cache),
        sum: B::float_primitive(sum),
    }
}

/// See [`SparqBackend::argmax`](super::SparqBackend::argmax).
pub(crate) fn argmax<B: Primitive>(x: FloatTensor<B>, dtype: IntDType) -> IntTensor<B> {
    B::int_primitive(reference::argmax(B::float(x)).cast(dtype))
}

/// See [`SparqBackend::range_sketch`](super::SparqBackend::range_sketch).
pub(crate) fn range_sketch<B: Primitive>(
    cache: CacheBuffers<B>,
    spans: Spans,
    sequence: usize,
) -> CacheBuffers<B> {
    lower(write::range_sketch(lift(cache), &spans, sequence))
}

/// See [`SparqBackend::causal_attention`](super::SparqBackend::causal_attention).
pub(crate) fn causal_attention<B: Primitive>(
    q: FloatTensor<B>,
    k: RowBuffers<B>,
    v: RowBuffers<B>,
    spans: Spans,
    window: Option<usize>,
    softcap: Option<f64>,
) -> FloatTensor<B> {
    let q = B::float::<4>(q);
    let longest = spans.longest();
    let [k, v] = [k, v].map(|rows| lift_rows(rows).at(0..longest));
    let dtype = FloatDType::from(q.dtype());
    let q = match dtype {
        FloatDType::F64 => q,
        // A product of 16-bit tensors may be rounded after every element.
        _ => q.cast(FloatDType::F32),
    };
    let y = reference::causal_attention(q, k, v, &spans, window, softcap);
    B::float_primitive(y.cast(dtype))
}

/// See [`SparqBackend::dense_decode`](super::SparqBackend::dense_decode).
pub(crate) fn dense_decode<B: Primitive>(
    q: FloatTensor<B>,
    cache: CacheBuffers<B>,
    spans: Spans,
) -> FloatTensor<B> {
    B::float_primitive(reference::dense_decode(B::float(q), &lift(cache), &spans))
}

/// See [`SparqBackend::sparq_decode`](super::SparqBackend::sparq_decode).
pub(crate) fn sparq_decode<B: Primitive>(
    q: FloatTensor<B>,
    cache: CacheBuffers<B>,
    spans: Spans,
    config: SparqConfig,
) -> SparqOutputBuffers<B> {
    let trace = reference::sparq_decode(B::float(q), &lift(cache), &spans, &config);
    SparqOutputBuffers {
        output: B::float_primitive(trace.output),
        positions: B::int_primitive(trace.positions),
        alpha: B::float_primitive(trace.alpha),
    }
}

/// See [`SparqBackend::attend_positions`](super::SparqBackend::attend_positions).
pub(crate) fn attend_positions<B: Primitive>(
    q: FloatTensor<B>,
    cache: CacheBuffers<B>,
    positions: IntTensor<B>,
    heads: IntTensor<B>,
    spans: Spans,
) -> FloatTensor<B> {
    let (positions, heads) = (B::int(positions), B::int(heads));
    let y = reference::attend_positions(B::float(q), &lift(cache), positions, heads, &spans);
    B::float_primitive(y)
}

/// See [`SparqBackend::decode_linear`](super::SparqBackend::decode_linear).
pub(crate) fn decode_linear<B: Primitive>(
    x: FloatTensor<B>,
    norm: NormBuffers<B>,
    projections: ProjectionBuffers<B>,
    residual: ResidualBuffers<B>,
) -> FloatTensor<B> {
    let residual = match residual {
        ResidualBuffers::None => None,
        ResidualBuffers::Add(residual) => Some(B::float(residual)),
    };
    let (norm, projections) = (Norm::lift(norm), Projections::lift(projections));
    let y = reference::decode_linear(B::float(x), &norm, &projections, residual);
    B::float_primitive(y)
}

/// See [`SparqBackend::normalize`](super::SparqBackend::normalize).
pub(crate) fn normalize<B: Primitive>(x: FloatTensor<B>, norm: NormBuffers<B>) -> FloatTensor<B> {
    B::float_primitive(reference::normalize(B::float(x), &Norm::lift(norm)))
}

/// See [`SparqBackend::widen`].
pub(crate) fn widen<B: Primitive>(x: FloatTensor<B>) -> FloatTensor<B> {
    B::float_primitive(B::float::<2>(x).cast(FloatDType::F32))
}

/// See [`SparqBackend::dequantize_blocks`].
pub(crate) fn dequantize_blocks<B: SparqBackend>(
    blocks: IntTensor<B>,
    format: BlockFormat,
    dims: [usize; 2],
    dtype: FloatDType,
) -> FloatTensor<B> {
    let bytes = B::int::<1>(B::restore_blocks(blocks, format, dims));
    let device = bytes.device();
    let bytes = bytes.into_data();
    floats::<B>(bytes.bytes(), 0..dims[0], format, dims[1], dtype, &device)
}

/// See [`SparqBackend::dequantize_rows`].
pub(crate) fn dequantize_rows<B: SparqBackend>(
    blocks: IntTensor<B>,
    indices: IntTensor<B>,
    format: BlockFormat,
    dims: [usize; 2],
    dtype: FloatDType,
) -> FloatTensor<B> {
    let bytes = B::int::<1>(B::restore_blocks(blocks, format, dims));
    let device = bytes.device();
    let (bytes, rows) = (bytes.into_data(), row_indices::<B>(indices));
    floats::<B>(bytes.bytes(), rows, format, dims[1], dtype, &device)
}

/// Reads the indices of rows.
///
/// # Panics
/// If one is negative.
pub(crate) fn row_indices<B: Primitive>(indices: IntTensor<B>) -> Vec<usize> {
    let indices = B::int::<1>(indices).into_data();
    let index = |index: i64| usize::try_from(index).expect("an index of a row");
    indices.iter::<i64>().map(index).collect()
}

/// Returns rows of a matrix with `inputs` columns as floats.
///
/// # Panics
/// If there is no such row.
pub(crate) fn floats<B: Primitive>(
    bytes: &[u8],
    rows: impl IntoIterator<Item = usize>,
    format: BlockFormat,
    inputs: usize,
    dtype: FloatDType,
    device: &Device,
) -> FloatTensor<B> {
    let row_bytes = format.row_bytes(inputs);
    let mut weights = Vec::new();
    let mut count = 0;
    for row in rows {
        weights.resize(weights.len() + inputs, 0.0);
        let to = &mut weights[count * inputs..];
        format.dequantize(&bytes[row * row_bytes..][..row_bytes], to);
        count += 1;
    }
    let data = TensorData::new(weights, [count, inputs]);
    let weights = Tensor::<2>::from_data(data, (device, DType::F32));
    B::float_primitive(weights.cast(dtype))
}
