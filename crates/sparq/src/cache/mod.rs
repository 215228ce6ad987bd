//! The KV cache: keys, values, the key sketch and the sum of V, written in place.

mod append;
pub(crate) mod buffers;
mod capture;
mod checks;
mod config;
mod memory;
mod ranges;
mod reuse;
pub(crate) mod rows;
mod sequences;
mod spans;

pub use buffers::{CacheTensors, SketchTensors};
pub use capture::CacheMark;
pub use config::KvCacheConfig;
pub(crate) use config::check_softcap;
pub use memory::CacheMemory;
pub use rows::{RowFormat, RowTensors};
pub use spans::Spans;
pub(crate) use spans::{indices, per_sequence};

use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::{Device, Int, Tensor};

use self::reuse::Reused;

use crate::methods::MethodStates;
use crate::ops::reference::append as write;
use crate::{Method, SparqError};

/// The keys and values of a batch of sequences, and what SparQ needs beside them.
///
/// The buffers are allocated ahead and written in place. An append copies only the new positions,
/// unless a clone of the cache, which shares its buffers, still exists. Sequences may differ in
/// length, by left padding ([`KvCache::set_left_padding`]) or by [`KvCache::append_ragged`]. They
/// may join and leave: a sequence that has left is idle ([`KvCache::set_idle`]), and another takes
/// its place ([`KvCache::write_sequence`]).
///
/// # Ranges
/// A sketch in codes sets its ranges at its first use after the prefill, however many appends that
/// took, or at an earlier [`KvCache::refresh_sketch`]. It sets them again whenever the length has
/// doubled since, and after a truncation to less than half. In between, keys outside the range of
/// their channel are clamped to its ends.
///
/// # Rows in 8 bits
/// With [`RowFormat::Int8`] each K row and V row is rounded to codes of 8 bits when it is appended.
/// Everything else is computed from the rounded rows: attention of prompts and of decode steps, the
/// key sketch, and the sum of V.
///
/// # Sliding window
/// With a window of W positions ([`KvCacheConfig::window`]), the valid span of a sequence in a
/// decode step is max(start, end - W) .. end. A method takes everything from this span: scores and
/// their softmax, the selected positions, the mean of V, and the ranges of the sketch. A step gives
/// the result of a cache that holds only these positions. With W <= k it is dense attention.
///
/// Ranges are then set again after as many appends as positions determined them, at most W. Values
/// that leave the window are subtracted from the sum of V. The sum is computed again whenever
/// ranges are set, which bounds its rounding error and removes a NaN. Positions that have left the
/// window stay in the buffers: a rollback may need them, and memory grows with the length.
///
/// # Autodiff
/// The cache is outside autodiff, also on an autodiff device: its tensors are detached.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use sparq::{KvCacheConfig, Method, Sketch, SparqConfig};
///
/// let device = Device::default();
/// let method = Method::from(SparqConfig::new(8, 16).with_sketch(Sketch::Bits4));
/// let mut cache = KvCacheConfig::new(1, 2, 32).with_sketch(method.sketch()).init(&device)?;
/// let random = |shape: [usize; 4]| Tensor::<4>::random(shape, Distribution::Default, &device);
/// cache.append(random([1, 2, 100, 32]), random([1, 2, 100, 32]))?; // grows to 128 positions
/// let y = method.decode(random([1, 4, 1, 32]), &mut cache)?;
/// assert_eq!((y.dims(), cache.len(), cache.capacity()), ([1, 4, 1, 32], 100, 128));
/// # Ok::<(), sparq::SparqError>(())
/// ```
#[derive(Clone, Debug)]
pub struct KvCache {
    config: KvCacheConfig,
    /// `None` only inside an operation, which must own the buffers alone to write in place.
    tensors: Option<CacheTensors>,
    spans: Spans,
    /// The number of positions of each sequence, without padding, when its ranges were set.
    ///
    /// 0 where they have to be set before the next use.
    ranged_at: Vec<usize>,
    /// Whether launches are being captured; see [`CapturedStep`](crate::CapturedStep).
    capturing: bool,
    buffers: BufferId,
    keeps_query: bool,
    query: Option<Tensor<4>>,
    keeps_selection: bool,
    selection: Option<Tensor<3, Int>>,
    /// The positions that the next step attends to.
    reused: Option<Reused>,
    /// The state that methods keep with the cache.
    states: MethodStates,
}

impl KvCache {
    /// An empty cache of a valid configuration.
    fn empty(config: KvCacheConfig, device: &Device) -> Self {
        let (batch, capacity) = (config.batch, round_up(config.capacity.max(1)));
        let shape = [batch, config.kv_heads, capacity, config.head_dim];
        let tensors = CacheTensors {
            softcap: config.softcap,
            ..CacheTensors::zeros(shape, config.dtype, config.rows, config.sketch, device)
        };
        Self {
            config,
            tensors: Some(tensors),
            spans: Spans::empty(batch),
            ranged_at: vec![0; batch],
            capturing: false,
            buffers: BufferId::new(),
            keeps_query: false,
            query: None,
            keeps_selection: false,
            selection: None,
            reused: None,
            states: MethodStates::default(),
        }
    }

    /// The configuration. Its `capacity` is the initial one; see [`KvCache::capacity`].
    pub fn config(&self) -> &KvCacheConfig {
        &self.config
    }

    /// The buffers. While a clone of them exists, the next append copies the cache.
    pub fn tensors(&self) -> &CacheTensors {
        self.tensors.as_ref().expect(BUFFERS)
    }

    /// The span of valid positions of each sequence.
    pub fn spans(&self) -> &Spans {
        &self.spans
    }

    /// S: the length of the longest sequence, left padding included.
    pub fn len(&self) -> usize {
        self.spans.longest()
    }

    /// Returns whether no sequence holds a position.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of sequences.
    pub fn batch(&self) -> usize {
        self.config.batch
    }

    /// The number of positions that fit before the next growth.
    pub fn capacity(&self) -> usize {
        self.tensors().k.dims()[2]
    }

    /// Sets whether to keep the query of each step, for analysis. False at first.
    pub fn keep_query(&mut self, keep: bool) {
        self.keeps_query = keep;
        self.query = None;
    }

    /// The query of the last step, [B, H, 1, d], if it was to be [kept](Self::keep_query).
    pub fn query(&self) -> Option<&Tensor<4>> {
        self.query.as_ref()
    }

    pub(crate) fn note_query(&mut self, q: &Tensor<4>) {
        if self.keeps_query {
            self.query = Some(q.clone());
        }
    }

    pub(crate) fn states(&self) -> &MethodStates {
        &self.states
    }

    pub(crate) fn states_mut(&mut self) -> &mut MethodStates {
        &mut self.states
    }

    /// Returns a cache with the same positions that holds what `method` reads and no more.
    ///
    /// One prefill then serves several methods. Keys and values are shared until one of the caches
    /// appends, or are rounded if the method wants them in 8 bits. The key sketch is made from the
    /// keys, whatever sketch this cache has. If the method reads received attention, this cache
    /// must have [recorded](Self::record_attention) it.
    ///
    /// ```
    /// use burn::tensor::{Device, Distribution, Tensor};
    /// use sparq::{KvCacheConfig, Method, Sketch, SparqConfig};
    ///
    /// let device = Device::default();
    /// let mut prefilled = KvCacheConfig::new(1, 2, 32).init(&device)?;
    /// let random = |shape: [usize; 4]| Tensor::<4>::random(shape, Distribution::Default, &device);
    /// prefilled.append(random([1, 2, 100, 32]), random([1, 2, 100, 32]))?;
    /// for sketch in [Sketch::Full, Sketch::Bits4] {
    ///     let method = Method::from(SparqConfig::new(8, 16).with_sketch(sketch));
    ///     let mut cache = prefilled.for_method(&method)?;
    ///     assert_eq!(method.decode(random([1, 4, 1, 32]), &mut cache)?.dims(), [1, 4, 1, 32]);
    /// }
    /// # Ok::<(), sparq::SparqError>(())
    /// ```
    ///
    /// # Errors
    /// [`SparqError::MissingAttention`] if the method reads received attention and this cache has
    /// not recorded it, [`SparqError::Value`] if positions have been evicted that the method reads,
    /// if this cache has rounded the rows that the method wants in floats, or if the head_dim is no
    /// multiple of 4 and it wants them in 8 bits.
    pub fn for_method(&self, method: &Method) -> Result<Self, SparqError> {
        let mut copy = self.clone();
        if method.reads_attention() {
            copy.check_records_attention(method.name())?;
        } else {
            copy.check_whole(method.name())?;
            copy.states.stop_observing();
        }
        copy.config.rows = method.rows();
        copy.config.rows.check(self.config.head_dim)?;
        let rounds = method.rows() != self.config.rows;
        if rounds && self.config.rows != RowFormat::Float {
            let (expected, found) = (method.rows().to_string(), self.config.rows);
            return Err(SparqError::value("rows of the cache", expected, found));
        }
        if rounds || method.sketch() != self.config.sketch {
            copy.config.sketch = method.sketch();
            copy.buffers = BufferId::new();
            copy.ranged_at.fill(0);
            // Without a sketch, the sum of V does not follow the window. Rounded values have
            // another sum.
            let sums = (rounds || self.config.window.is_some()) && !self.is_empty();
            let attended = copy.attended();
            let dtype = self.config.dtype;
            copy.update(|mut tensors, _| {
                if rounds {
                    tensors.k = tensors.k.to_int8();
                    tensors.v = tensors.v.to_int8();
                }
                tensors.sketch = SketchTensors::of_keys(&tensors.k, dtype, method.sketch());
                if sums {
                    tensors.v_sum = write::sum_values(&tensors.v, &attended);
                }
                tensors
            });
        }
        Ok(copy)
    }

    /// Replaces the buffers by the result of an operation that owns them alone.
    ///
    /// The operation writes in place, unless another tensor shares a buffer.
    fn update(&mut self, operation: impl FnOnce(CacheTensors, &Spans) -> CacheTensors) {
        let tensors = self.take();
        self.tensors = Some(operation(tensors, &self.spans));
    }

    /// Takes the buffers for an operation that writes in place where it can.
    fn take(&mut self) -> CacheTensors {
        if !self.owns_buffers() {
            self.buffers = BufferId::new();
        }
        self.tensors.take().expect(BUFFERS)
    }
}

/// The identity of the buffers of a cache. It changes with every operation that may replace one.
///
/// A clone of a cache has the same buffers and the same identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BufferId(u64);

impl BufferId {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The reason why a cache always has its buffers between operations.
const BUFFERS: &str = "every operation returns the buffers";

/// Rounds a capacity up to a multiple of 64 positions.
///
/// The codes of a channel then end with a word, and vector loads stay aligned.
fn round_up(capacity: usize) -> usize {
    capacity.next_multiple_of(64)
}
