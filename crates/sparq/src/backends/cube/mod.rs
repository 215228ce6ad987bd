//! The operations as CubeCL kernels, for every GPU that burn runs on.
//!
//! A SparQ step is two launches: [`tile`], where every tile of positions names its candidates and no score is written, and [`finish`]. One more goes before
//! them where tiles are many, for the components of the [`query`], and another for the softmax of [`heads`] that are summed as probabilities and whose tiles
//! cannot wait for each other. A [`dense`] step is one launch, and a merge where rows are split. The kernels read lengths from the device: a launch depends on the host's [`RowSpans`] only for the size of its grid, reads
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
            Launcher::new(&cache.k).append(&cache, &k, &v, encode);
            return cache;
        }
        let (k, v) = (Self::float(k), Self::float(v));
        let cache = write::append(lift(cache), k, v, &rows, &counts, encode);
        // Where burn had to copy a buffer, the copy may be laid out with gaps between rows.
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
            let q = launcher.prepare(&q, &k, &v, table.as_ref(), &cache, encode);
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
            let plan = SparqPlan {
                launcher: &launcher,
                extent,
                bound: rows.longest(),
                config: &config,
                sizes: Sizes::new(q.shape()[1], &cache.k),
                dtype: cache.k.dtype,
            };
            if plan.fits() {
                let (q, cache) = (&q, &cache);
                return SparqStep { plan, q, cache }.run();
            }
            return by_reference(q, cache, &rows, &config);
        }
        by_reference(q, cache, &rows, &config)
    }
}

/// A SparQ step that the kernels don't cover.
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
            extent: Extent::Trace,
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

/// The buffers in the plain layout that the kernels index. [`CacheTensors`](crate::CacheTensors) are made that way: this moves handles, and copies only what
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
