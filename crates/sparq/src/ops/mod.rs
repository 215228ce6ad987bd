//! The operations of prefill and decode steps: append, prepare a token, set ranges, causal
//! attention of many queries, dense and SparQ decode, and linear layers with a norm, an activation
//! and the residual stream.
//!
//! The functions of this module run an operation on the backend that holds the tensors.
//! [`SparqBackend`] extends burn's backend trait with native implementations. The
//! [reference](mod@reference) is the implementation of every other case.

// burn deprecates `NdArray`, which the extension names.
#[cfg_attr(feature = "ndarray", allow(deprecated))]
mod backend;
pub mod blocks;
pub(crate) mod fallback;
mod linear;
pub(crate) mod primitive;
pub mod reference;

/// Rows in codes of 8 bits.
#[doc(hidden)]
pub mod rows {
    pub use crate::cache::rows::{dequantize, quantize};
}

/// The codes of key sketches: ranges, encoding and packing.
#[doc(hidden)]
pub mod sketch {
    pub use crate::sketch::{encode, pack, range, unpack};
}

pub use crate::attention::rotary::{Rotary, RotaryAngles, RotaryScaling};
#[cfg(feature = "stages")]
#[doc(hidden)]
pub use crate::backends::cube::{Until, sparq_decode_until};
pub use crate::cache::{CacheTensors, RowTensors, SketchTensors, Spans};
pub use crate::graph::StepTensors;
pub use blocks::{BlockFormat, PackedWeight};

pub use backend::{
    CacheBuffers, PreparedBuffers, RolledBackBuffers, RotaryBuffers, RowBuffers, SketchBuffers,
    SparqBackend, SparqOutputBuffers,
};

pub use linear::{
    Activation, BiasBuffers, LinearBuffers, Norm, NormBuffers, Projection, ProjectionBuffers,
    Projections, ResidualBuffers, Weight, WeightBuffers, decode_linear, is_output_major, normalize,
    widen,
};

use burn::backend::{Dispatch, ExecutionError};
use burn::tensor::{Device, Int, Tensor, TensorData};

use self::primitive::{lift, lower, lower_rows};
use crate::SparqConfig;

/// The result of a SparQ decode step.
#[derive(Clone, Debug)]
pub struct SparqOutput {
    /// The attention output, [B, H, 1, d] in the query's type.
    pub output: Tensor<4>,
    /// The selected positions i2, [B, H_kv, k], in no particular order.
    ///
    /// -1 fills up the list of a sequence with fewer than k valid positions.
    pub positions: Tensor<3, Int>,
    /// alpha: the sum of the approximate scores of the selected positions, [B, H].
    pub alpha: Tensor<2>,
}

/// Appends keys and values; see [`SparqBackend::append`].
pub fn append(
    cache: CacheTensors,
    k: Tensor<4>,
    v: Tensor<4>,
    spans: &Spans,
    counts: &[usize],
    encode: bool,
) -> CacheTensors {
    let cache = Dispatch::append(
        lower(cache),
        k.into_dispatch(),
        v.into_dispatch(),
        spans.clone(),
        counts.to_vec(),
        encode,
    );
    lift(cache)
}

/// Rotates and appends tokens to every sequence; see [`SparqBackend::prepare`].
///
/// `table` is a rotary embedding's [`table`](Rotary::table) with a row for every position up to the
/// cache's capacity. Without one nothing is rotated.
pub fn prepare(
    [q, k, v]: [Tensor<4>; 3],
    table: Option<Tensor<2>>,
    cache: CacheTensors,
    spans: &Spans,
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
        spans.clone(),
        encode,
    );
    (Tensor::from_dispatch(prepared.q), lift(prepared.cache))
}

/// Takes back appends; see [`SparqBackend::roll_back`]. Returns the cache and the sum of V.
pub(crate) fn roll_back(
    cache: CacheTensors,
    sum: Tensor<3>,
    moves: Tensor<2, Int>,
    mark: &Spans,
    spans: &Spans,
) -> (CacheTensors, Tensor<3>) {
    let back = Dispatch::roll_back(
        lower(cache),
        sum.into_dispatch(),
        moves.into_dispatch(),
        mark.clone(),
        spans.clone(),
    );
    (lift(back.cache), Tensor::from_dispatch(back.sum))
}

/// Sets the ranges of one sequence's codes; see [`SparqBackend::range_sketch`].
pub fn range_sketch(cache: CacheTensors, spans: &Spans, sequence: usize) -> CacheTensors {
    lift(Dispatch::range_sketch(
        lower(cache),
        spans.clone(),
        sequence,
    ))
}

/// Causal attention of the last T positions of every sequence, q [B, H, T, d] -> [B, H, T, d] in
/// q's type; see [`SparqBackend::causal_attention`].
///
/// k and v, the rows of a cache or tensors [B, H_kv, S_max, d], already hold the T positions, and
/// both kinds of spans count them. On an autodiff device the
/// [reference](reference::causal_attention) computes it, differentiable in the tensors that are
/// tracked.
///
/// # Panics
/// If the shapes do not fit each other or the spans, on some backends.
pub fn causal_attention(
    q: Tensor<4>,
    [k, v]: [RowTensors; 2],
    device_spans: Tensor<2, Int>,
    spans: &Spans,
    window: Option<usize>,
    softcap: Option<f64>,
) -> Tensor<4> {
    if q.is_autodiff() {
        let [k, v] = [k, v].map(|rows| rows.floats());
        return reference::causal_attention(q, k, v, spans, window, softcap);
    }
    Tensor::from_dispatch(Dispatch::causal_attention(
        q.into_dispatch(),
        lower_rows(k),
        lower_rows(v),
        device_spans.into_dispatch(),
        spans.clone(),
        window,
        softcap,
    ))
}

/// Dense attention of one query per sequence; see [`SparqBackend::dense_decode`].
pub fn dense_decode(q: Tensor<4>, cache: CacheTensors, spans: &Spans) -> Tensor<4> {
    let cache = lower(cache);
    Tensor::from_dispatch(Dispatch::dense_decode(
        q.into_dispatch(),
        cache,
        spans.clone(),
    ))
}

/// SparQ attention of one query per sequence, q [B, H, 1, d] -> [B, H, 1, d].
///
/// # Panics
/// If the cache does not hold the sketch that `config` names.
/// [`Method::decode`](crate::Method::decode) checks it.
pub fn sparq_decode(
    q: Tensor<4>,
    cache: CacheTensors,
    spans: &Spans,
    config: &SparqConfig,
) -> Tensor<4> {
    let (q, cache) = (q.into_dispatch(), lower(cache));
    let found = Dispatch::sparq_decode(q, cache, spans.clone(), *config, false);
    Tensor::from_dispatch(found.output)
}

/// [`sparq_decode`] that also returns the selected positions, [B, H_kv, k] as in [`SparqOutput`].
/// Takes no longer.
///
/// # Panics
/// As [`sparq_decode`].
pub fn sparq_decode_with_positions(
    q: Tensor<4>,
    cache: CacheTensors,
    spans: &Spans,
    config: &SparqConfig,
) -> (Tensor<4>, Tensor<3, Int>) {
    let (q, cache) = (q.into_dispatch(), lower(cache));
    let found = Dispatch::sparq_decode(q, cache, spans.clone(), *config, false);
    (
        Tensor::from_dispatch(found.output),
        Tensor::from_dispatch(found.positions),
    )
}

/// [`sparq_decode`] that also returns the selected positions and alpha.
///
/// # Panics
/// As [`sparq_decode`].
pub fn sparq_decode_traced(
    q: Tensor<4>,
    cache: CacheTensors,
    spans: &Spans,
    config: &SparqConfig,
) -> SparqOutput {
    let (q, cache) = (q.into_dispatch(), lower(cache));
    let found = Dispatch::sparq_decode(q, cache, spans.clone(), *config, true);
    SparqOutput {
        output: Tensor::from_dispatch(found.output),
        positions: Tensor::from_dispatch(found.positions),
        alpha: Tensor::from_dispatch(found.alpha),
    }
}

/// Exact attention of one query per sequence over positions that [`sparq_decode_with_positions`]
/// selected for the KV heads of another layer, q [B, H, 1, d] -> [B, H, 1, d].
///
/// `positions` [B, N, k] are those of N KV heads, and `heads` `[H_kv]` in u32 names the one whose
/// positions each KV head takes. See [`SparqBackend::attend_positions`].
pub fn attend_positions(
    q: Tensor<4>,
    cache: CacheTensors,
    positions: Tensor<3, Int>,
    heads: Tensor<1, Int>,
    spans: &Spans,
) -> Tensor<4> {
    let cache = lower(cache);
    Tensor::from_dispatch(Dispatch::attend_positions(
        q.into_dispatch(),
        cache,
        positions.into_dispatch(),
        heads.into_dispatch(),
        spans.clone(),
    ))
}

/// Finds the largest element of each row of x [rows, width] in fp32, width at least 1.
///
/// Returns [2, rows]. First the index of the largest element, the lowest of equal ones. Then 1, or
/// 0 if the row has a NaN, a positive infinity or no element above negative infinity; the index is
/// then any of the row. The result stays on the device, so that a decode step can take a token
/// that the host does not know yet.
pub fn argmax(x: Tensor<2>) -> Tensor<2, Int> {
    let dtype = x.device().settings().int_dtype;
    Tensor::from_dispatch(Dispatch::argmax(x.into_dispatch(), dtype))
}

/// Copies a tensor to the host while `work` runs, and returns the result of both.
///
/// On a GPU the copy is queued before `work` starts. It waits for what was queued before it, but
/// not for what `work` queues.
pub fn read_while<const D: usize, T>(
    tensor: Tensor<D, Int>,
    work: impl FnOnce() -> T,
) -> (Result<TensorData, ExecutionError>, T) {
    #[cfg(feature = "cube")]
    if has_kernels(&tensor.device()) {
        return match tensor
            .clone()
            .try_into_primitive::<burn_cubecl::CubeBackend>()
        {
            Ok(primitive) => crate::backends::cube::read_while(primitive, work),
            Err(_) => (tensor.try_into_data(), work()),
        };
    }
    (tensor.try_into_data(), work())
}

/// Returns whether the device runs kernels compiled by CubeCL: a GPU, or a driver that emulates
/// one.
pub fn has_kernels(device: &Device) -> bool {
    #[cfg(feature = "cube")]
    return device.identity().is_some();
    #[cfg(not(feature = "cube"))]
    {
        let _ = device;
        false
    }
}

/// Returns the bytes of memory of a GPU, used or not, if its runtime tells. Those of CUDA and ROCm
/// do. CPU backends have no memory of their own.
pub fn memory_bytes(device: &Device) -> Option<u64> {
    #[cfg(feature = "cube")]
    return Tensor::<1>::zeros([1], device)
        .try_into_primitive::<burn_cubecl::CubeBackend>()
        .ok()
        .and_then(|tensor| tensor.client.properties().memory.max_memory());
    #[cfg(not(feature = "cube"))]
    {
        let _ = device;
        None
    }
}

/// Returns whether the tensor's device may support graphs of launches. Only an attempt can tell.
pub(crate) fn may_have_graphs<const D: usize>(tensor: &Tensor<D>) -> bool {
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

/// Returns whether [`range_sketch`] writes to the buffers that it is given, if nothing shares them.
pub(crate) fn sets_ranges_in_place(cache: &CacheTensors) -> bool {
    #[cfg(feature = "cube")]
    return crate::backends::cube::sets_ranges_in_place(cache);
    #[cfg(not(feature = "cube"))]
    {
        let _ = cache;
        false
    }
}

/// Returns whether this thread can capture a step that reads the tensor, as far as the tensor
/// matters.
///
/// Each thread has its own stream of launches. On CUDA and ROCm a launch that reads a tensor of
/// another thread, for example a weight, is followed by a wait on the host, which aborts a capture.
/// There the tensor must have been created by this thread.
pub fn can_be_captured<const D: usize>(tensor: &Tensor<D>) -> bool {
    #[cfg(feature = "cube")]
    return tensor
        .clone()
        .try_into_primitive::<burn_cubecl::CubeBackend>()
        .map_or(true, |tensor| {
            crate::backends::cube::can_be_captured(&tensor)
        });
    #[cfg(not(feature = "cube"))]
    {
        let _ = tensor;
        true
    }
}

/// Returns whether a step reads all lengths from the device's [`spans`](CacheTensors::spans).
///
/// The host's [`Spans`] then only bound them, and a captured step serves every length. `config` is
/// SparQ's, or `None` for dense attention.
pub(crate) fn takes_lengths_from_device(
    q: &Tensor<4>,
    cache: &CacheTensors,
    config: Option<&SparqConfig>,
) -> bool {
    #[cfg(feature = "cube")]
    return crate::backends::cube::takes_lengths_from_device(q, cache, config);
    #[cfg(not(feature = "cube"))]
    {
        let _ = (q, cache, config);
        false
    }
}

/// Returns whether [`attend_positions`] of lists of `k` positions reads all lengths from the
/// device, so that a captured step serves every length.
#[doc(hidden)]
pub fn positions_take_lengths_from_device(q: &Tensor<4>, cache: &CacheTensors, k: usize) -> bool {
    #[cfg(feature = "cube")]
    return crate::backends::cube::positions_take_lengths_from_device(q, cache, k);
    #[cfg(not(feature = "cube"))]
    {
        let _ = (q, cache, k);
        false
    }
}

/// As [`takes_lengths_from_device`], for causal attention of queries [B, H, T, d].
pub(crate) fn causal_takes_lengths_from_device(
    q: &Tensor<4>,
    cache: &CacheTensors,
    window: Option<usize>,
    softcap: Option<f64>,
) -> bool {
    #[cfg(feature = "cube")]
    return crate::backends::cube::causal_takes_lengths_from_device(q, cache, window, softcap);
    #[cfg(not(feature = "cube"))]
    {
        let _ = (q, cache, window, softcap);
        false
    }
}
