//! The operations as CubeCL kernels, for every GPU that burn runs on.
//!
//! A SparQ decode step is two launches:
//! 1. [`score_tiles`](kernels::score_tiles): each tile of positions selects its candidates, without
//!    writing scores;
//! 2. [`select_attend`](kernels::select_attend): top-k of the candidates and exact attention.
//!
//! A layer that takes the positions of another one runs
//! [`attend_positions`](kernels::attend_positions) instead of both, and a merge if few batch heads
//! have long lists.
//!
//! With many tiles, [`choose_components`](kernels::choose_components) goes first. With group scores
//! summed as probabilities, whose tiles cannot wait for each other,
//! [`softmax_heads`](kernels::softmax_heads) does too. [Dense](kernels::dense) attention is one
//! launch, and a merge if sequences are split. So is causal attention of many queries, [with matrix
//! units](kernels::prefill), those of [Hopper](kernels::prefill_wgmma), or
//! [without](kernels::prefill_plain). [`blueprint`] and [`prefill`] decide which kernels run and
//! how, and [`launch`] launches them.
//!
//! Before attention, [one token](kernels::append_rope) of every sequence is rotated and appended in
//! one launch, and [more](kernels::append_rows) in two. Two more set the
//! [ranges](kernels::sketch_ranges) of a sketch and write its codes.
//!
//! [Linear](linear) layers of few rows are one launch. Those of [packed] weights multiply codes:
//! the blocks of a file are laid out anew for matrix units when they are stored.
//!
//! The kernels read lengths from the device. A launch depends on the host's [`Spans`] only for
//! the size of its grid. It reads nothing back and allocates the same buffers each time, so that a
//! step can be captured once and replayed while the sequences grow.
//!
//! Rows in codes of 8 bits are read by the kernels of decode steps. For causal attention
//! [they become floats](kernels::dequantize_rows) first.
//!
//! The [`reference`](mod@crate::ops::reference) covers the other cases: f64, a head dimension that
//! is no multiple of 4, logits with a softcap, and a k that does not fit in a cube's shared memory.

#![allow(
    clippy::eq_op,
    clippy::manual_is_multiple_of,
    clippy::collapsible_if,
    reason = "a kernel's operators and branches are expanded to device code: NaN is found by comparison, and a \
              comptime branch stands alone"
)]

mod append;
mod argmax;
mod blueprint;
mod kernels;
mod launch;
mod linear;
mod packed;
mod parts;
mod prefill;
mod products;
mod rows;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{ExecutionError, StreamId, TensorMetadata};
use burn::tensor::{DType, FloatDType, IntDType, Tensor, TensorData};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::future::block_on;

use self::append::Tokens;
#[cfg(feature = "stages")]
pub use self::blueprint::Until;
#[cfg(not(feature = "stages"))]
use self::blueprint::Until;
use self::blueprint::{PositionsStep, SparqProblem, SparqStep};
use self::launch::{Launcher, SparqLaunch};
use self::prefill::{PrefillBuffers, PrefillProblem, PrefillStep};
use self::rows::Rows;
use crate::SparqConfig;
use crate::ops::fallback;
#[cfg(feature = "stages")]
use crate::ops::primitive::Primitive;
use crate::ops::primitive::lower;
use crate::ops::{
    BlockFormat, CacheBuffers, CacheTensors, NormBuffers, PreparedBuffers, ProjectionBuffers,
    ResidualBuffers, RolledBackBuffers, RotaryBuffers, RowBuffers, SketchBuffers, Spans,
    SparqBackend, SparqOutputBuffers,
};

impl SparqBackend for CubeBackend {
    fn append(
        cache: CacheBuffers<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spans: Spans,
        counts: Vec<usize>,
        encode: bool,
    ) -> CacheBuffers<Self> {
        let len = k.shape()[2];
        let equal = len > 0 && counts.iter().all(|&count| count == len);
        if equal && k.dtype == v.dtype && covers(&cache, &k) {
            let cache = owned(cache);
            let tokens = Tokens {
                queries: None,
                k: &k,
                v: &v,
                table: None,
            };
            Launcher::new(&cache.v_sum).append(&tokens, &cache, encode);
            return cache;
        }
        // If burn had to copy a buffer, the copy may have gaps between rows.
        contiguous(fallback::append(cache, k, v, spans, counts, encode))
    }

    fn prepare(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        rotary: RotaryBuffers<Self>,
        cache: CacheBuffers<Self>,
        spans: Spans,
        encode: bool,
    ) -> PreparedBuffers<Self> {
        if q.dtype == k.dtype && q.dtype == v.dtype && covers(&cache, &q) {
            let cache = owned(cache);
            let launcher = Launcher::new(&cache.v_sum);
            let table = match &rotary {
                RotaryBuffers::None => None,
                RotaryBuffers::Table(table) => Some(table),
            };
            let q = launcher.prepare([&q, &k, &v], table, &cache, encode);
            return PreparedBuffers { q, cache };
        }
        let prepared = fallback::prepare([q, k, v], rotary, cache, spans, encode);
        PreparedBuffers {
            cache: contiguous(prepared.cache),
            ..prepared
        }
    }

    fn roll_back(
        cache: CacheBuffers<Self>,
        sum: FloatTensor<Self>,
        moves: IntTensor<Self>,
        mark: Spans,
        spans: Spans,
    ) -> RolledBackBuffers<Self> {
        if !covers(&cache, &sum) || moves.dtype != DType::U32 {
            let back = fallback::roll_back(cache, sum, mark, spans);
            return RolledBackBuffers {
                cache: contiguous(back.cache),
                ..back
            };
        }
        let (cache, sum) = (owned(cache), own(sum));
        Launcher::new(cache.k.elements()).roll_back(&cache, &sum, &moves);
        RolledBackBuffers { cache, sum }
    }

    fn range_sketch(
        cache: CacheBuffers<Self>,
        spans: Spans,
        sequence: usize,
    ) -> CacheBuffers<Self> {
        if !covers(&cache, &cache.v_sum) || spans.end[sequence] == 0 {
            return contiguous(fallback::range_sketch(cache, spans, sequence));
        }
        let cache = owned(cache);
        Launcher::new(&cache.v_sum).range_sketch(&cache, &spans, sequence);
        cache
    }

    fn causal_attention(
        q: FloatTensor<Self>,
        k: RowBuffers<Self>,
        v: RowBuffers<Self>,
        device_spans: IntTensor<Self>,
        spans: Spans,
        window: Option<usize>,
        softcap: Option<f64>,
    ) -> FloatTensor<Self> {
        let launcher = Launcher::new(&q);
        let types = v.elements().dtype == k.elements().dtype && device_spans.dtype == DType::U32;
        let bound = spans.longest();
        let planned = types.then(|| causal_step(&launcher, &q, &k, bound, window, softcap));
        let Some((mut problem, step)) = planned.flatten() else {
            return fallback::causal_attention::<Self>(q, k, v, spans, window, softcap);
        };
        let len = bound.next_multiple_of(64).min(problem.sizes.capacity);
        if k.is_coded() {
            problem.sizes.capacity = len;
        }
        let [k, v] = [k, v].map(|rows| {
            let rows = rows.map(into_contiguous, into_contiguous);
            launcher.in_floats(rows, len, problem.dtype)
        });
        let device_spans = into_contiguous(device_spans);
        let buffers = PrefillBuffers {
            q: &q,
            k: &k,
            v: &v,
            spans: &device_spans,
        };
        launcher.prefill(&buffers, &step, &problem)
    }

    fn dense_decode(
        q: FloatTensor<Self>,
        cache: CacheBuffers<Self>,
        spans: Spans,
    ) -> FloatTensor<Self> {
        if !attends(&cache, &q) {
            return fallback::dense_decode(q, cache, spans);
        }
        Launcher::new(&cache.v_sum).dense(&q, &contiguous(cache), spans.longest())
    }

    fn sparq_decode(
        q: FloatTensor<Self>,
        cache: CacheBuffers<Self>,
        spans: Spans,
        config: SparqConfig,
        trace: bool,
    ) -> SparqOutputBuffers<Self> {
        decode_until(q, cache, spans, config, trace, Until::Output)
    }

    fn attend_positions(
        q: FloatTensor<Self>,
        cache: CacheBuffers<Self>,
        positions: IntTensor<Self>,
        heads: IntTensor<Self>,
        spans: Spans,
    ) -> FloatTensor<Self> {
        let types = positions.dtype == DType::I32 && heads.dtype == DType::U32;
        let k = positions.shape()[2];
        match positions_step(&q, &cache, k).filter(|_| types) {
            Some((launcher, step)) => {
                let lists = [positions, heads].map(into_contiguous);
                launcher.attend_positions(&q, &contiguous(cache), lists, &step)
            }
            None => fallback::attend_positions(q, cache, positions, heads, spans),
        }
    }

    fn decode_linear(
        x: FloatTensor<Self>,
        norm: NormBuffers<Self>,
        projections: ProjectionBuffers<Self>,
        residual: ResidualBuffers<Self>,
    ) -> FloatTensor<Self> {
        match linear::decode_linear(&x, &norm, &projections, &residual) {
            Some(y) => y,
            None => fallback::decode_linear(x, norm, projections, residual),
        }
    }

    fn store_blocks(
        bytes: IntTensor<Self>,
        format: BlockFormat,
        dims: [usize; 2],
    ) -> IntTensor<Self> {
        packed::store(&bytes, format, dims)
    }

    fn restore_blocks(
        blocks: IntTensor<Self>,
        format: BlockFormat,
        dims: [usize; 2],
    ) -> IntTensor<Self> {
        packed::restore(&blocks, format, dims)
    }

    fn dequantize_blocks(
        blocks: IntTensor<Self>,
        format: BlockFormat,
        dims: [usize; 2],
        dtype: FloatDType,
    ) -> FloatTensor<Self> {
        match packed::dequantize(&blocks, None, format, dims, dtype.into()) {
            Some(weights) => weights,
            None => fallback::dequantize_blocks::<Self>(blocks, format, dims, dtype),
        }
    }

    fn dequantize_rows(
        blocks: IntTensor<Self>,
        indices: IntTensor<Self>,
        format: BlockFormat,
        dims: [usize; 2],
        dtype: FloatDType,
    ) -> FloatTensor<Self> {
        match packed::dequantize(&blocks, Some(&indices), format, dims, dtype.into()) {
            Some(weights) => weights,
            None => fallback::dequantize_rows::<Self>(blocks, indices, format, dims, dtype),
        }
    }

    fn argmax(x: FloatTensor<Self>, dtype: IntDType) -> IntTensor<Self> {
        match x.dtype {
            DType::F32 => {
                let x = into_contiguous(x);
                Launcher::new(&x).argmax(&x, dtype.into())
            }
            _ => fallback::argmax::<Self>(x, dtype),
        }
    }

    fn normalize(x: FloatTensor<Self>, norm: NormBuffers<Self>) -> FloatTensor<Self> {
        match linear::normalize(&x, &norm) {
            Some(y) => y,
            None => fallback::normalize(x, norm),
        }
    }
}

/// Runs the first stages of a SparQ step, to be timed. Only [`Until::Output`] gives a result.
///
/// # Panics
/// If the tensors are not on a device with kernels.
#[cfg(feature = "stages")]
pub fn sparq_decode_until(
    q: Tensor<4>,
    cache: CacheTensors,
    spans: &Spans,
    config: &SparqConfig,
    until: Until,
) -> Tensor<4> {
    let (q, cache) = (CubeBackend::float_primitive(q), lower(cache));
    CubeBackend::float(decode_until(q, cache, spans.clone(), *config, false, until).output)
}

/// Runs a SparQ step, or the reference where the kernels do not cover it.
fn decode_until(
    q: CubeTensor,
    cache: CacheBuffers<CubeBackend>,
    spans: Spans,
    config: SparqConfig,
    trace: bool,
    until: Until,
) -> SparqOutputBuffers<CubeBackend> {
    if !attends(&cache, &q) {
        return fallback::sparq_decode(q, cache, spans, config);
    }
    let cache = contiguous(cache);
    let launcher = Launcher::new(&cache.v_sum);
    let problem = SparqProblem {
        config: &config,
        sizes: cache.k.sizes(q.shape()[1]),
        dtype: cache.k.elements().dtype,
        sketch: sketch_type(&cache.sketch),
        bound: spans.longest(),
        trace,
        until,
    };
    let Some(step) = SparqStep::new(&problem, &launcher.info) else {
        return fallback::sparq_decode(q, cache, spans, config);
    };
    let launch = SparqLaunch {
        launcher: &launcher,
        step,
        sizes: problem.sizes,
        q: &q,
        cache: &cache,
    };
    launch.run()
}

/// See [`can_be_captured`](crate::ops::can_be_captured).
pub(crate) fn can_be_captured(tensor: &CubeTensor) -> bool {
    let waits = matches!(tensor.client.name(), "cuda" | "hip");
    !waits || tensor.handle.stream == StreamId::current()
}

/// See [`sets_ranges_in_place`](crate::ops::sets_ranges_in_place).
pub(crate) fn sets_ranges_in_place(cache: &CacheTensors) -> bool {
    let v_sum = cache.v_sum.clone().try_into_primitive::<CubeBackend>();
    v_sum.is_ok_and(|v_sum| covers(&lower(cache.clone()), &v_sum))
}

/// Returns whether the kernels cover a decode step over these keys, dense or with the settings of
/// SparQ. They read lengths from the device, so that a launch serves every length.
pub(crate) fn takes_lengths_from_device(
    q: &Tensor<4>,
    cache: &CacheTensors,
    config: Option<&SparqConfig>,
) -> bool {
    let Some((q, cache)) = primitives(q, cache) else {
        return false;
    };
    let sizes = cache.k.sizes(q.shape()[1]);
    let fits = |config| {
        let problem = SparqProblem {
            config,
            sizes,
            dtype: cache.k.elements().dtype,
            sketch: sketch_type(&cache.sketch),
            bound: sizes.capacity,
            trace: true,
            until: Until::Output,
        };
        SparqStep::new(&problem, &Launcher::new(&q).info).is_some()
    };
    attends(&cache, &q) && config.is_none_or(fits)
}

/// As [`takes_lengths_from_device`], for attention to lists of `k` positions.
pub(crate) fn positions_take_lengths_from_device(
    q: &Tensor<4>,
    cache: &CacheTensors,
    k: usize,
) -> bool {
    primitives(q, cache).is_some_and(|(q, cache)| positions_step(&q, &cache, k).is_some())
}

/// Plans attention to lists of `k` positions; `None` if the kernel does not cover it.
fn positions_step(
    q: &CubeTensor,
    cache: &CacheBuffers<CubeBackend>,
    k: usize,
) -> Option<(Launcher, PositionsStep)> {
    if k == 0 || !attends(cache, q) {
        return None;
    }
    let launcher = Launcher::new(q);
    let (sizes, dtype) = (cache.k.sizes(q.shape()[1]), cache.k.elements().dtype);
    let step = PositionsStep::new(&sizes, dtype, k, &launcher.info)?;
    Some((launcher, step))
}

/// Returns a query and a cache as primitives, unless they are on another backend.
fn primitives(
    q: &Tensor<4>,
    cache: &CacheTensors,
) -> Option<(CubeTensor, CacheBuffers<CubeBackend>)> {
    let q = q.clone().try_into_primitive::<CubeBackend>().ok()?;
    Some((q, lower(cache.clone())))
}

/// Returns the type of a full sketch, or of the words of codes.
fn sketch_type(sketch: &SketchBuffers<CubeBackend>) -> DType {
    match sketch {
        SketchBuffers::Full(kt) => kt.dtype,
        _ => DType::U32,
    }
}

/// As [`takes_lengths_from_device`], for causal attention.
pub(crate) fn causal_takes_lengths_from_device(
    q: &Tensor<4>,
    cache: &CacheTensors,
    window: Option<usize>,
    softcap: Option<f64>,
) -> bool {
    let Some((q, cache)) = primitives(q, cache) else {
        return false;
    };
    let (launcher, bound) = (Launcher::new(&q), cache.k.sizes(1).capacity);
    causal_step(&launcher, &q, &cache.k, bound, window, softcap).is_some()
}

/// Plans causal attention of queries [B, H, T, d] over at most `bound` positions; `None` if the
/// kernels do not cover it.
fn causal_step(
    launcher: &Launcher,
    q: &CubeTensor,
    k: &Rows,
    bound: usize,
    window: Option<usize>,
    softcap: Option<f64>,
) -> Option<(PrefillProblem, PrefillStep)> {
    let problem = PrefillProblem {
        sizes: k.sizes(q.shape()[1]),
        // Codes become floats of the queries' type.
        dtype: if k.is_coded() {
            q.dtype
        } else {
            k.elements().dtype
        },
        len: q.shape()[2],
        bound,
        window,
    };
    let covered = known(k, q) && softcap.is_none() && problem.len > 0;
    let step = covered.then(|| PrefillStep::new(&problem, &launcher.info))?;
    Some((problem, step?))
}

/// Copies a tensor to the host while `work` runs; see [`read_while`](crate::ops::read_while). The
/// copy is queued before `work` starts.
pub(crate) fn read_while<T>(
    tensor: CubeTensor,
    work: impl FnOnce() -> T,
) -> (Result<TensorData, ExecutionError>, T) {
    let tensor = into_contiguous(tensor);
    let (shape, dtype) = (tensor.shape(), tensor.dtype);
    let reading = tensor.client.read_async(vec![tensor.handle.clone()]);
    let found = work();
    let read = match block_on(reading) {
        Ok(mut bytes) => Ok(TensorData::from_bytes(bytes.swap_remove(0), shape, dtype)),
        Err(error) => Err(ExecutionError::WithContext {
            reason: error.to_string(),
        }),
    };
    (read, found)
}

/// Returns whether the kernels cover attention over these buffers.
fn attends(cache: &CacheBuffers<CubeBackend>, q: &CubeTensor) -> bool {
    covers(cache, q) && cache.softcap.is_none()
}

/// Returns whether the kernels cover the types and the head dimension of a cache, and the type of
/// another tensor.
fn covers(cache: &CacheBuffers<CubeBackend>, other: &CubeTensor) -> bool {
    let same = cache.k.elements().dtype == cache.v.elements().dtype;
    same && known(&cache.k, other)
}

/// Returns whether the kernels cover the types and the head dimension.
fn known(k: &Rows, other: &CubeTensor) -> bool {
    let known = |dtype| matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
    let rows = k.is_coded() || known(k.elements().dtype);
    rows && known(other.dtype) && k.sizes(1).head_dim.is_multiple_of(4)
}

/// Returns the buffers in the contiguous layout that the kernels index.
///
/// [`CacheTensors`](crate::ops::CacheTensors) are created that way: this copies only buffers that a
/// caller laid out differently.
fn contiguous(cache: CacheBuffers<CubeBackend>) -> CacheBuffers<CubeBackend> {
    cache.map(into_contiguous, into_contiguous)
}

/// Returns contiguous buffers that can be written in place. Copies those that are shared, as burn's
/// own operations do.
fn owned(cache: CacheBuffers<CubeBackend>) -> CacheBuffers<CubeBackend> {
    contiguous(cache).map(own, own)
}

/// See [`owned`].
fn own(tensor: CubeTensor) -> CubeTensor {
    match tensor.can_mut() {
        true => tensor,
        // The copy may have gaps between rows.
        false => into_contiguous(tensor.copy()),
    }
}

#[cfg(test)]
mod tests;
