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
//! launch, and a merge if sequences are split. [`blueprint`] decides which kernels run and how, and
//! [`launch`] launches them.
//!
//! The kernels read lengths from the device. A launch depends on the host's [`RowSpans`] only for
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
mod parts;

use burn::backend::tensor::FloatTensor;
use burn::backend::{StreamId, TensorMetadata};
use burn::tensor::{DType, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use self::blueprint::{Sizes, SparqProblem, SparqStep, Until};
use self::launch::{Launcher, SparqLaunch, Token};
use crate::ops::primitive::{Primitive, lift, lower};
use crate::ops::reference;
use crate::ops::reference::write;
use crate::ops::{
    CacheBuffers, Extent, PreparedBuffers, RotaryBuffers, SparqBackend, SparqOutputBuffers,
};
use crate::{RowSpans, SparqConfig};

impl SparqBackend for CubeBackend {
    fn append(
        cache: CacheBuffers<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        rows: RowSpans,
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
        let (k, v) = (Self::float(k), Self::float(v));
        let cache = write::append(lift(cache), k, v, &rows, &counts, encode);
        // If burn had to copy a buffer, the copy may have gaps between rows.
        contiguous(lower(cache))
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
            RotaryBuffers::Table(table) => Some(table),
        };
        if q.dtype == k.dtype && q.dtype == v.dtype && supported(&cache, &q) {
            let cache = owned(cache);
            let launcher = Launcher::new(&cache.k);
            let q = launcher.prepare([&q, &k, &v], table.as_ref(), &cache, encode);
            return PreparedBuffers { q, cache };
        }
        let [q, k, v] = [q, k, v].map(Self::float);
        let table = table.map(Self::float);
        let (q, cache) = write::prepare(lift(cache), [q, k, v], table.as_ref(), &rows, encode);
        PreparedBuffers {
            q: Self::float_primitive(q),
            cache: contiguous(lower(cache)),
        }
    }

    fn range_sketch(cache: CacheBuffers<Self>, rows: RowSpans, row: usize) -> CacheBuffers<Self> {
        contiguous(lower(write::range_sketch(lift(cache), &rows, row)))
    }

    fn dense_decode(
        q: FloatTensor<Self>,
        cache: CacheBuffers<Self>,
        rows: RowSpans,
    ) -> FloatTensor<Self> {
        if !supported(&cache, &q) {
            let y = reference::dense_decode(Self::float(q), &lift(cache), &rows);
            return Self::float_primitive(y);
        }
        Launcher::new(&cache.k).dense(&q, &contiguous(cache), rows.longest())
    }

    fn sparq_decode(
        q: FloatTensor<Self>,
        cache: CacheBuffers<Self>,
        rows: RowSpans,
        config: SparqConfig,
        extent: Extent,
    ) -> SparqOutputBuffers<Self> {
        if supported(&cache, &q) {
            let cache = contiguous(cache);
            let launcher = Launcher::new(&cache.k);
            let problem = SparqProblem {
                config: &config,
                sizes: Sizes::new(q.shape()[1], &cache.k),
                dtype: cache.k.dtype,
                bound: rows.longest(),
                trace: extent == Extent::Trace,
                until: match extent {
                    Extent::Scores => Until::Scores,
                    Extent::Choice => Until::Selection,
                    Extent::Output | Extent::Trace => Until::Output,
                },
            };
            if let Some(step) = SparqStep::new(&problem, &launcher.info) {
                let launch = SparqLaunch {
                    launcher: &launcher,
                    step,
                    sizes: problem.sizes,
                    q: &q,
                    cache: &cache,
                };
                return launch.run();
            }
            return by_reference(q, cache, &rows, &config);
        }
        by_reference(q, cache, &rows, &config)
    }
}

/// Runs a SparQ step that the kernels don't cover.
fn by_reference(
    q: CubeTensor,
    cache: CacheBuffers<CubeBackend>,
    rows: &RowSpans,
    config: &SparqConfig,
) -> SparqOutputBuffers<CubeBackend> {
    let trace = reference::sparq_decode(CubeBackend::float(q), &lift(cache), rows, config);
    SparqOutputBuffers {
        output: CubeBackend::float_primitive(trace.output),
        positions: CubeBackend::int_primitive(trace.positions),
        alpha: CubeBackend::float_primitive(trace.alpha),
    }
}

/// See [`can_be_recorded`](crate::ops::can_be_recorded).
pub(crate) fn can_be_recorded(tensor: &CubeTensor) -> bool {
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
/// [`CacheTensors`](crate::CacheTensors) are created that way: this copies only buffers that a
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
