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
//! units](kernels::prefill) or [without](kernels::prefill_plain). [`blueprint`] and [`prefill`]
//! decide which kernels run and how, and [`launch`] launches them.
//!
//! The kernels read lengths from the device. A launch depends on the host's [`Spans`] only for
//! the size of its grid. It reads nothing back and allocates the same buffers each time, so that a
//! step can be captured once and replayed while the sequences grow.
//!
//! The [`reference`](mod@crate::ops::reference) covers the other cases: f64, a head dimension that
//! is no multiple of 4, and a k that does not fit in a cube's shared memory.

#![allow(
    clippy::eq_op,
    clippy::manual_is_multiple_of,
    clippy::collapsible_if,
    reason = "a kernel's operators and branches are expanded to device code: NaN is found by comparison, and a \
              comptime branch stands alone"
)]

mod blueprint;
mod kernels;
mod launch;
mod linear;
mod parts;
mod prefill;
mod products;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{StreamId, TensorMetadata};
use burn::tensor::{DType, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

#[cfg(feature = "stages")]
pub use self::blueprint::Until;
#[cfg(not(feature = "stages"))]
use self::blueprint::Until;
use self::blueprint::{Sizes, SparqProblem, SparqStep};
use self::launch::{Launcher, SparqLaunch, Token};
use self::prefill::{PrefillBuffers, PrefillProblem, PrefillStep};
use crate::SparqConfig;
use crate::ops::fallback;
use crate::ops::{
    CacheBuffers, NormBuffers, PreparedBuffers, ProjectionBuffers, ResidualBuffers, RotaryBuffers,
    Spans, SparqBackend, SparqOutputBuffers,
};
#[cfg(feature = "stages")]
use crate::ops::{
    CacheTensors,
    primitive::{Primitive, lower},
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
        let one = k.shape()[2] == 1 && counts.iter().all(|&count| count == 1);
        if one && supported(&cache, &k) {
            let cache = owned(cache);
            let (queries, table) = (None, None);
            let (k, v) = (&k, &v);
            let token = Token {
                queries,
                k,
                v,
                table,
            };
            Launcher::new(&cache.k).append(&token, &cache, encode);
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
        let one = q.shape()[2] == 1;
        if one && q.dtype == k.dtype && q.dtype == v.dtype && supported(&cache, &q) {
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
        contiguous(fallback::range_sketch(cache, spans, sequence))
    }

    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        device_spans: IntTensor<Self>,
        spans: Spans,
        window: Option<usize>,
    ) -> FloatTensor<Self> {
        let problem = PrefillProblem {
            sizes: Sizes::new(q.shape()[1], &k),
            dtype: k.dtype,
            len: q.shape()[2],
            bound: spans.longest(),
            window,
        };
        let launcher = Launcher::new(&k);
        let covered = known(&k, &q) && v.dtype == k.dtype && device_spans.dtype == DType::U32;
        let step = (covered && problem.len > 0).then(|| PrefillStep::new(&problem, &launcher.info));
        let Some(step) = step.flatten() else {
            return fallback::causal_attention::<Self>(q, k, v, spans, window);
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
        if !supported(&cache, &q) {
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
    if !supported(&cache, &q) {
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
    k: &Tensor<4>,
    config: Option<&SparqConfig>,
) -> bool {
    let primitive = |tensor: &Tensor<4>| tensor.clone().try_into_primitive::<CubeBackend>().ok();
    let (Some(q), Some(k)) = (primitive(q), primitive(k)) else {
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
    known(&k, &q) && config.is_none_or(fits)
}

fn supported(cache: &CacheBuffers<CubeBackend>, other: &CubeTensor) -> bool {
    known(&cache.k, other)
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
