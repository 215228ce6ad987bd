//! The operations as CubeCL kernels, for every GPU that burn runs on.
//!
//! A SparQ decode step is two launches:
//! 1. [`score_tiles`](kernels::score_tiles): each tile of positions selects its candidates, without
//!    writing scores;
//! 2. [`select_attend`](kernels::select_attend): top-k of the candidates and exact attention.
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
mod blueprint;
mod kernels;
mod launch;
mod linear;
mod packed;
mod parts;
mod prefill;
mod products;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{StreamId, TensorMetadata};
use burn::tensor::{DType, FloatDType, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use self::append::Tokens;
#[cfg(feature = "stages")]
pub use self::blueprint::Until;
#[cfg(not(feature = "stages"))]
use self::blueprint::Until;
use self::blueprint::{Sizes, SparqProblem, SparqStep};
use self::launch::{Launcher, SparqLaunch};
use self::prefill::{PrefillBuffers, PrefillProblem, PrefillStep};
use crate::SparqConfig;
use crate::ops::fallback;
#[cfg(feature = "stages")]
use crate::ops::primitive::{Primitive, lower};
use crate::ops::{
    BlockFormat, CacheBuffers, CacheTensors, NormBuffers, PreparedBuffers, ProjectionBuffers,
    ResidualBuffers, RotaryBuffers, Spans, SparqBackend, SparqOutputBuffers,
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
        if equal && k.dtype == v.dtype && known(&cache.k, &k) {
            let cache = owned(cache);
            let tokens = Tokens {
                queries: None,
                k: &k,
                v: &v,
                table: None,
            };
            Launcher::new(&cache.k).append(&tokens, &cache, encode);
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
        if q.dtype == k.dtype && q.dtype == v.dtype && known(&cache.k, &q) {
            let cache = owned(cache);
            let launcher = Launcher::new(&cache.k);
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

    fn range_sketch(
        cache: CacheBuffers<Self>,
        spans: Spans,
        sequence: usize,
    ) -> CacheBuffers<Self> {
        if !known(&cache.k, &cache.k) || spans.end[sequence] == 0 {
            return contiguous(fallback::range_sketch(cache, spans, sequence));
        }
        let cache = owned(cache);
        Launcher::new(&cache.k).range_sketch(&cache, &spans, sequence);
        cache
    }

    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        device_spans: IntTensor<Self>,
        spans: Spans,
        window: Option<usize>,
        softcap: Option<f64>,
    ) -> FloatTensor<Self> {
        let launcher = Launcher::new(&k);
        let types = v.dtype == k.dtype && device_spans.dtype == DType::U32;
        let bound = spans.longest();
        let planned = types.then(|| causal_step(&launcher, [&q, &k], bound, window, softcap));
        let Some((problem, step)) = planned.flatten() else {
            return fallback::causal_attention::<Self>(q, k, v, spans, window, softcap);
        };
        let [k, v, device_spans] = [k, v, device_spans].map(into_contiguous);
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
        Launcher::new(&cache.k).dense(&q, &contiguous(cache), spans.longest())
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
    let launcher = Launcher::new(&cache.k);
    let problem = SparqProblem {
        config: &config,
        sizes: Sizes::new(q.shape()[1], &cache.k),
        dtype: cache.k.dtype,
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

/// Returns whether the kernels cover a decode step over these keys, dense or with the settings of
/// SparQ. They read lengths from the device, so that a launch serves every length.
pub(crate) fn takes_lengths_from_device(
    q: &Tensor<4>,
    cache: &CacheTensors,
    config: Option<&SparqConfig>,
) -> bool {
    let primitive = |tensor: &Tensor<4>| tensor.clone().try_into_primitive::<CubeBackend>().ok();
    let (Some(q), Some(k)) = (primitive(q), primitive(&cache.k)) else {
        return false;
    };
    let fits = |config| {
        let problem = SparqProblem {
            config,
            sizes: Sizes::new(q.shape()[1], &k),
            dtype: k.dtype,
            bound: k.shape()[2],
            trace: true,
            until: Until::Output,
        };
        SparqStep::new(&problem, &Launcher::new(&k).info).is_some()
    };
    known(&k, &q) && cache.softcap.is_none() && config.is_none_or(fits)
}

/// As [`takes_lengths_from_device`], for causal attention.
pub(crate) fn causal_takes_lengths_from_device(
    q: &Tensor<4>,
    cache: &CacheTensors,
    window: Option<usize>,
    softcap: Option<f64>,
) -> bool {
    let primitive = |tensor: &Tensor<4>| tensor.clone().try_into_primitive::<CubeBackend>().ok();
    let (Some(q), Some(k)) = (primitive(q), primitive(&cache.k)) else {
        return false;
    };
    let bound = k.shape()[2];
    causal_step(&Launcher::new(&k), [&q, &k], bound, window, softcap).is_some()
}

/// Plans causal attention of queries [B, H, T, d] over at most `bound` positions; `None` if the
/// kernels do not cover it.
fn causal_step(
    launcher: &Launcher,
    [q, k]: [&CubeTensor; 2],
    bound: usize,
    window: Option<usize>,
    softcap: Option<f64>,
) -> Option<(PrefillProblem, PrefillStep)> {
    let problem = PrefillProblem {
        sizes: Sizes::new(q.shape()[1], k),
        dtype: k.dtype,
        len: q.shape()[2],
        bound,
        window,
    };
    let covered = known(k, q) && softcap.is_none() && problem.len > 0;
    let step = covered.then(|| PrefillStep::new(&problem, &launcher.info))?;
    Some((problem, step?))
}

/// Returns whether the kernels cover attention over these buffers.
fn attends(cache: &CacheBuffers<CubeBackend>, q: &CubeTensor) -> bool {
    known(&cache.k, q) && cache.softcap.is_none()
}

/// Returns whether the kernels cover the types and the head dimension.
fn known(k: &CubeTensor, other: &CubeTensor) -> bool {
    let known = |dtype| matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
    known(k.dtype) && known(other.dtype) && k.meta.shape()[3].is_multiple_of(4)
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
    fn own(tensor: CubeTensor) -> CubeTensor {
        match tensor.can_mut() {
            true => tensor,
            // The copy may have gaps between rows.
            false => into_contiguous(tensor.copy()),
        }
    }
    contiguous(cache).map(own, own)
}

#[cfg(test)]
mod tests;
