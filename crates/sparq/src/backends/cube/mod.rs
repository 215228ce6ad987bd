//! The operations as CubeCL kernels, for every GPU that burn runs on.
//!
//! A SparQ step is two launches: [`tile`], where every tile of positions names its candidates and no score is written, and [`finish`]. One more goes before
//! them where tiles are many, for the components of the [`query`], and another for the softmax of [`heads`] that are summed as probabilities and whose tiles
//! cannot wait for each other. A [`dense`] step is one launch, and a merge where rows are split. The kernels read lengths from the device: a launch depends on the host's [`Spans`] only for the size of its grid, reads
//! nothing back and allocates the same buffers each time, so a step can be captured once and replayed while the sequences grow.
//!
//! What the kernels don't cover (f64, a head_dim that is no multiple of 4, a k that does not fit in a cube's shared memory) runs through the
//! [`reference`](mod@crate::ops::reference).

#![allow(
    clippy::eq_op,
    clippy::manual_is_multiple_of,
    clippy::collapsible_if,
    reason = "inside a kernel, operators and branches are recorded and not run: NaN is found by comparison, and a comptime branch stands alone"
)]

mod append;
mod attend;
mod best;
mod common;
mod dense;
mod finish;
mod heads;
mod launch;
mod logits;
mod many;
mod matrix;
mod query;
mod sparq;
mod stage;
mod tile;

use burn::backend::tensor::FloatTensor;
use burn::backend::{StreamId, TensorMetadata};
use burn::tensor::{DType, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use self::launch::{Launcher, Sizes};
use self::sparq::{SparqPlan, SparqStep};
use crate::SparqConfig;
#[cfg(feature = "stages")]
use crate::ops::CacheTensors;
use crate::ops::Spans;
use crate::ops::fallback;
#[cfg(feature = "stages")]
use crate::ops::primitive::{Primitive, lower};
use crate::ops::{CacheBuffers, PreparedBuffers, RotaryBuffers, SparqBackend, SparqOutputBuffers};

impl SparqBackend for CubeBackend {
    fn append(
        cache: CacheBuffers<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        rows: Spans,
        counts: Vec<usize>,
        encode: bool,
    ) -> CacheBuffers<Self> {
        let one = k.shape()[2] == 1 && counts.iter().all(|&count| count == 1);
        if one && supported(&cache, &k) {
            let cache = owned(cache);
            Launcher::new(&cache.k).append(&cache, &k, &v, encode);
            return cache;
        }
        // Where burn had to copy a buffer, the copy may have gaps between rows.
        contiguous(fallback::append(cache, k, v, rows, counts, encode))
    }

    fn prepare(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        rotary: RotaryBuffers<Self>,
        cache: CacheBuffers<Self>,
        rows: Spans,
        encode: bool,
    ) -> PreparedBuffers<Self> {
        if q.dtype == k.dtype && q.dtype == v.dtype && supported(&cache, &q) {
            let cache = owned(cache);
            let launcher = Launcher::new(&cache.k);
            let table = match &rotary {
                RotaryBuffers::None => None,
                RotaryBuffers::Table(table) => Some(table),
            };
            let q = launcher.prepare(&q, &k, &v, table, &cache, encode);
            return PreparedBuffers { q, cache };
        }
        let prepared = fallback::prepare([q, k, v], rotary, cache, rows, encode);
        PreparedBuffers {
            cache: contiguous(prepared.cache),
            ..prepared
        }
    }

    fn range_sketch(cache: CacheBuffers<Self>, rows: Spans, row: usize) -> CacheBuffers<Self> {
        contiguous(fallback::range_sketch(cache, rows, row))
    }

    fn dense_decode(
        q: FloatTensor<Self>,
        cache: CacheBuffers<Self>,
        rows: Spans,
    ) -> FloatTensor<Self> {
        if !supported(&cache, &q) {
            return fallback::dense_decode(q, cache, rows);
        }
        Launcher::new(&cache.k).dense(&q, &contiguous(cache), rows.longest())
    }

    fn sparq_decode(
        q: FloatTensor<Self>,
        cache: CacheBuffers<Self>,
        rows: Spans,
        config: SparqConfig,
        trace: bool,
    ) -> SparqOutputBuffers<Self> {
        let until = if trace { Until::Trace } else { Until::Output };
        decode_until(q, cache, rows, config, until)
    }
}

/// The part of a SparQ step to run. Benchmarks time a stage as the difference of two parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "stages"), allow(dead_code))]
pub enum Until {
    /// Up to the approximate scores. The output is undefined.
    Scores,
    /// Up to the selected positions. The output is undefined.
    Selection,
    /// Up to the output.
    Output,
    /// Up to the output, with the selected positions and alpha.
    Trace,
}

/// Runs a part of a SparQ step, to be timed. Only [`Until::Output`] gives a result.
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
    CubeBackend::float(decode_until(q, cache, spans.clone(), *config, until).output)
}

fn decode_until(
    q: CubeTensor,
    cache: CacheBuffers<CubeBackend>,
    spans: Spans,
    config: SparqConfig,
    until: Until,
) -> SparqOutputBuffers<CubeBackend> {
    if !supported(&cache, &q) {
        return fallback::sparq_decode(q, cache, spans, config);
    }
    let cache = contiguous(cache);
    let launcher = Launcher::new(&cache.k);
    let plan = SparqPlan {
        launcher: &launcher,
        until,
        bound: spans.longest(),
        config: &config,
        sizes: Sizes::new(q.shape()[1], &cache.k),
        dtype: cache.k.dtype,
    };
    if !plan.fits() {
        return fallback::sparq_decode(q, cache, spans, config);
    }
    let (q, cache) = (&q, &cache);
    SparqStep { plan, q, cache }.run()
}

/// See [`can_be_captured`](crate::ops::can_be_captured).
pub(crate) fn can_be_captured(tensor: &CubeTensor) -> bool {
    let waits = matches!(tensor.client.name(), "cuda" | "hip");
    !waits || tensor.handle.stream == StreamId::current()
}

/// Whether the kernels attend to a cache with these keys, densely or with the settings of a SparQ step: they take lengths from the device, so that a launch
/// serves every length.
pub(crate) fn takes_lengths_from_device(
    q: &Tensor<4>,
    k: &Tensor<4>,
    config: Option<&SparqConfig>,
) -> bool {
    let primitive = |tensor: &Tensor<4>| tensor.clone().try_into_primitive::<CubeBackend>().ok();
    let (Some(q), Some(k)) = (primitive(q), primitive(k)) else {
        return false;
    };
    let holds = |config| {
        let plan = SparqPlan {
            launcher: &Launcher::new(&k),
            until: Until::Trace,
            bound: k.shape()[2],
            config,
            sizes: Sizes::new(q.shape()[1], &k),
            dtype: k.dtype,
        };
        plan.fits()
    };
    known(&k, &q) && config.is_none_or(holds)
}

fn supported(cache: &CacheBuffers<CubeBackend>, other: &CubeTensor) -> bool {
    known(&cache.k, other)
}

/// Whether the kernels know the types and the head_dim.
fn known(k: &CubeTensor, other: &CubeTensor) -> bool {
    let known = |dtype| matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
    known(k.dtype) && known(other.dtype) && k.meta.shape()[3].is_multiple_of(4)
}

/// The buffers in the plain layout that the kernels index. [`CacheTensors`](crate::ops::CacheTensors) are made that way: this moves handles, and copies only what
/// somebody else laid out.
fn contiguous(cache: CacheBuffers<CubeBackend>) -> CacheBuffers<CubeBackend> {
    cache.map(into_contiguous, into_contiguous)
}

/// The buffers in the plain layout and in nobody else's hands, so that they can be written in place; copies what is shared, as burn's own operations do.
fn owned(cache: CacheBuffers<CubeBackend>) -> CacheBuffers<CubeBackend> {
    fn own(tensor: CubeTensor) -> CubeTensor {
        match tensor.can_mut() {
            true => tensor,
            // The copy may be laid out with gaps between rows.
            false => into_contiguous(tensor.copy()),
        }
    }
    contiguous(cache).map(own, own)
}

#[cfg(test)]
mod tests;
