//! The KV cache: keys, values, the key sketch and the running sum of V, written in place.

mod basis;
pub(crate) mod buffers;
mod received;
pub(crate) mod spans;

use burn::tensor::{DType, Device, FloatDType, Int, Tensor};
use serde::{Deserialize, Serialize};

use self::basis::Basis;
use self::received::Received;
use crate::cache::buffers::{duplicate, overwrite};
use crate::ops::reference::write;
use crate::{CacheTensors, Rotary, RowSpans, Sketch, SketchTensors, SparqConfig, SparqError, ops};

/// What a [`KvCache`] is made for.
#[derive(Clone, Copy, Debug)]
pub struct KvCacheConfig {
    /// B: number of sequences.
    pub batch: usize,
    /// H_kv: key/value heads.
    pub kv_heads: usize,
    /// d: elements of a key or value.
    pub head_dim: usize,
    /// Positions to allocate at first; the cache grows by doubling.
    pub capacity: usize,
    /// The type of K, V and a full sketch.
    pub dtype: FloatDType,
    /// The key sketch that the method reads; see [`Method::sketch`](crate::Method::sketch).
    pub sketch: Option<Sketch>,
    /// W: a query attends to the last W positions only, its own included (sliding window); to all of them if `None`.
    pub window: Option<usize>,
}

impl KvCacheConfig {
    /// How many of `seq_len` positions a step attends to: all that are inside the window.
    pub fn attended(&self, seq_len: usize) -> usize {
        self.window.map_or(seq_len, |window| seq_len.min(window))
    }
}

/// Bytes allocated by a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheMemory {
    /// K.
    pub keys: usize,
    /// V.
    pub values: usize,
    /// The key sketch with its ranges.
    pub sketch: usize,
    /// The running sum of V, and of the attention received where that is recorded.
    pub sums: usize,
}

impl CacheMemory {
    /// Everything together.
    pub fn total(&self) -> usize {
        self.keys + self.values + self.sketch + self.sums
    }
}

impl std::iter::Sum for CacheMemory {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), |all, part| Self {
            keys: all.keys + part.keys,
            values: all.values + part.values,
            sketch: all.sketch + part.sketch,
            sums: all.sums + part.sums,
        })
    }
}

/// The keys and values of a batch of sequences, with what SparQ needs beside them.
///
/// The buffers are allocated ahead and written in place: an append copies what is new and nothing else, unless a clone of the cache (which shares
/// its buffers) is still alive. Sequences may be ragged: by left padding ([`KvCache::set_left_padding`]) or by a length for each row
/// ([`KvCache::append_rows`]).
///
/// A sketch in bits takes its ranges at its first use after the prefill, however many appends that took, again whenever the length has doubled
/// since, and after a truncation to below half. Between these, codes of keys outside their range clamp to its ends.
///
/// # Sliding window
/// With a window of W positions ([`KvCacheConfig::window`]), the valid span of a sequence in a decode step is max(start, end - W) .. end. Everything that a
/// method takes from the valid positions it takes from this span: scores and their softmax, the positions kept, the mean of V, the ranges of the sketch. A step is what it would be on a
/// cache that held only these positions, and one with W <= k keeps them all, so that it is dense attention. Ranges are then set again after as many
/// appends as they were set from, at most W. The sum of V follows the window by subtracting what leaves it, and is summed anew whenever ranges
/// would be set, which bounds its rounding error and ends a NaN in it. What has left the window stays in the buffers: a rollback may bring it back, and
/// memory grows with the length.
///
/// The cache lives outside autodiff, also on an autodiff device: what it stores is detached.
///
/// ```
/// use burn::tensor::{Device, Distribution, FloatDType, Tensor};
/// use sparq::{KvCache, KvCacheConfig, Method, Sketch, SparqConfig};
///
/// let device = Device::default();
/// let method = Method::from(SparqConfig::new(8, 16).with_sketch(Sketch::Bits4));
/// let mut cache = KvCache::new(
///     &KvCacheConfig { batch: 1, kv_heads: 2, head_dim: 32, capacity: 64, dtype: FloatDType::F32, sketch: method.sketch(), window: None },
///     &device,
/// )?;
/// let random = |shape: [usize; 4]| Tensor::<4>::random(shape, Distribution::Default, &device);
/// cache.append(random([1, 2, 100, 32]), random([1, 2, 100, 32]))?; // grows to 128 positions
/// let y = method.decode(random([1, 4, 1, 32]), &mut cache)?;
/// assert_eq!((y.dims(), cache.len(), cache.capacity()), ([1, 4, 1, 32], 100, 128));
/// # Ok::<(), sparq::SparqError>(())
/// ```
#[derive(Clone, Debug)]
pub struct KvCache {
    config: KvCacheConfig,
    /// `None` only while an operation holds the buffers, so that it alone owns them.
    tensors: Option<CacheTensors>,
    rows: RowSpans,
    /// Positions of each row, without padding, when its ranges were set; 0 where they have to be set before the next use.
    ranged_at: Vec<usize>,
    /// Whether what is launched now will be replayed while the sequences grow; see [`CapturedStep`](crate::CapturedStep).
    recorded: bool,
    /// Whether `query` is wanted.
    keeps_query: bool,
    query: Option<Tensor<4>>,
    /// The attention that positions have received, where it is recorded.
    received: Option<Received>,
    /// The directions of the last projection.
    basis: Option<Basis>,
}

/// What an append of one token changes and an earlier state can't be told from, to take it back exactly.
#[derive(Debug)]
pub(crate) struct CacheMark {
    rows: RowSpans,
    spans: Tensor<2, Int>,
    v_sum: Tensor<3>,
}

impl KvCache {
    /// An empty cache.
    ///
    /// # Errors
    /// [`SparqError::Shape`] where a size is 0, [`SparqError::Value`] where the window is or has 2^31 positions, [`SparqError::Dtype`] where the device can't hold the type.
    pub fn new(config: &KvCacheConfig, device: &Device) -> Result<Self, SparqError> {
        let sizes = [config.batch, config.kv_heads, config.head_dim];
        if sizes.contains(&0) {
            return Err(SparqError::Shape {
                what: "cache [batch, kv_heads, head_dim], all at least 1",
                expected: vec![0; 3],
                found: sizes.to_vec(),
            });
        }
        // Devices count positions in 32 bits.
        let usable = |window: usize| window > 0 && i32::try_from(window).is_ok();
        if let Some(window) = config.window.filter(|&window| !usable(window)) {
            let expected = format!("1 (the current token) to {}", i32::MAX);
            return Err(lengths("window", expected, window.to_string()));
        }
        let device = &device.clone().inner();
        check_dtype(config.dtype, device)?;
        let capacity = round_up(config.capacity.max(1));
        let shape = [config.batch, config.kv_heads, capacity, config.head_dim];
        Ok(Self {
            config: *config,
            tensors: Some(CacheTensors::zeros(
                shape,
                config.dtype,
                config.sketch,
                device,
            )),
            rows: RowSpans::empty(config.batch),
            ranged_at: vec![0; config.batch],
            recorded: false,
            keeps_query: false,
            query: None,
            received: None,
            basis: None,
        })
    }

    /// What the cache was made for; `capacity` is the first one, see [`KvCache::capacity`].
    pub fn config(&self) -> &KvCacheConfig {
        &self.config
    }

    /// The buffers. A clone of them that is kept makes the next append copy the cache.
    pub fn tensors(&self) -> &CacheTensors {
        self.tensors
            .as_ref()
            .expect("the buffers are handed back by every operation")
    }

    /// The span of valid positions of each sequence.
    pub fn rows(&self) -> &RowSpans {
        &self.rows
    }

    /// S: the length of the longest sequence, left padding included.
    pub fn len(&self) -> usize {
        self.rows.longest()
    }

    /// Whether no sequence holds a position.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sets whether the query of each step stays at hand, for who wants to know what it attends to; false at first.
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

    /// Number of sequences.
    pub fn batch(&self) -> usize {
        self.config.batch
    }

    /// Positions that fit before the next growth.
    pub fn capacity(&self) -> usize {
        self.tensors().k.dims()[2]
    }

    /// Declares the first `padding[b]` positions of sequence b as left padding: they are appended like others, but never attended to.
    ///
    /// # Errors
    /// [`SparqError::Value`] if the cache is not empty or the batch differs.
    pub fn set_left_padding(&mut self, padding: &[usize]) -> Result<(), SparqError> {
        if !self.is_empty() {
            return Err(lengths(
                "left padding",
                "an empty cache".into(),
                format!("{} positions", self.len()),
            ));
        }
        self.check_batch("left padding", padding)?;
        self.rows.start = padding.to_vec();
        self.renew_spans();
        Ok(())
    }

    /// Appends keys (after RoPE) and values, [B, H_kv, T, d] each, to every sequence.
    ///
    /// # Errors
    /// [`SparqError::Shape`] if they don't fit the cache.
    pub fn append(&mut self, k: Tensor<4>, v: Tensor<4>) -> Result<(), SparqError> {
        let counts = vec![k.dims()[2]; self.batch()];
        self.append_rows(k, v, &counts)
    }

    /// Appends the first `counts[b]` of T keys and values, [B, H_kv, T, d] each, to sequence b.
    ///
    /// # Errors
    /// [`SparqError::Shape`] or [`SparqError::Value`] if they don't fit the cache or each other.
    pub fn append_rows(
        &mut self,
        k: Tensor<4>,
        v: Tensor<4>,
        counts: &[usize],
    ) -> Result<(), SparqError> {
        let len = k.dims()[2];
        self.check_new(&k, &v, len)?;
        self.check_batch("counts", counts)?;
        if let Some(&count) = counts.iter().find(|&&count| count > len) {
            return Err(lengths(
                "counts",
                format!("at most the {len} positions given"),
                count.to_string(),
            ));
        }
        let most = counts.iter().copied().max().unwrap_or(0);
        if most == 0 {
            return Ok(());
        }
        if self.recorded && (len != 1 || counts.contains(&0)) {
            return Err(SparqError::NotCapturable {
                what: "an append of anything but one position to every sequence",
            });
        }
        self.make_room(counts)?;
        let encode = self.encodes();
        let tensors = self.take();
        self.tensors = Some(ops::append(
            tensors,
            k.inner(),
            v.inner(),
            &self.rows,
            counts,
            encode,
        ));
        self.rows = self.rows.grown(counts);
        self.slide(len == 1 && !counts.contains(&0));
        Ok(())
    }

    /// What comes before attention in a decode step: turns the query and the key of one token per sequence, q [B, H, 1, d] and k [B, H_kv, 1, d], to the
    /// position behind what the cache holds, appends the key and the value v [B, H_kv, 1, d], and returns the turned query, outside autodiff.
    ///
    /// Without `rotary` nothing turns. The position is read on the device, so that the operation can be part of a [`CapturedStep`](crate::CapturedStep).
    ///
    /// # Errors
    /// [`SparqError::Shape`] if q, k and v don't fit the cache or each other.
    pub fn prepare(
        &mut self,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
        rotary: Option<&Rotary>,
    ) -> Result<Tensor<4>, SparqError> {
        self.check_query(&q)?;
        self.check_new(&k, &v, 1)?;
        if let Some(rotary) = rotary.filter(|rotary| rotary.dim() > self.config.head_dim) {
            return Err(lengths(
                "rotary_dim",
                format!("at most {} (the head_dim)", self.config.head_dim),
                rotary.dim().to_string(),
            ));
        }
        let counts = vec![1; self.batch()];
        self.make_room(&counts)?;
        let table = rotary.map(|rotary| rotary.table(self.capacity()));
        let encode = self.encodes();
        let tensors = self.take();
        let (q, tensors) = ops::prepare(
            [q.inner(), k.inner(), v.inner()],
            table,
            tensors,
            &self.rows,
            encode,
        );
        self.tensors = Some(tensors);
        self.rows = self.rows.grown(&counts);
        self.slide(true);
        Ok(q)
    }

    /// Makes room for `capacity` positions, by doubling.
    pub fn reserve(&mut self, capacity: usize) {
        let now = self.capacity();
        if capacity > now {
            let tensors = self.take();
            let device = tensors.k.device();
            self.tensors = Some(tensors.grown(round_up(capacity.max(2 * now))));
            // Of the smaller buffers, which the allocator of a GPU would keep for caches of that size.
            device.memory_cleanup();
        }
    }

    /// Rolls every sequence back to its first `len` positions, left padding included; a shorter one stays as it is.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len() {
            return;
        }
        for row in 0..self.batch() {
            self.rows.end[row] = self.rows.end[row].min(len);
            // Less than half is left of what the ranges were set from.
            let (at, from) = (self.ranged_at[row], self.ranged_from(row));
            if 2 * self.rows.count(row) + from < 2 * at {
                self.ranged_at[row] = 0;
            }
        }
        let mut tensors = self.take();
        // Subtracting what is rolled back would leave its rounding error, or its NaN, in the sum.
        tensors.v_sum = match len {
            0 => tensors.v_sum.zeros_like(),
            _ => write::sum_values(&tensors.v, &self.attended()),
        };
        self.tensors = Some(tensors);
        self.renew_spans();
        if let Some(received) = &mut self.received {
            received.truncate(len);
        }
    }

    /// Forgets every position and the padding; the buffers stay allocated.
    pub fn clear(&mut self) {
        self.truncate(0);
        self.rows = RowSpans::empty(self.batch());
        self.renew_spans();
        self.ranged_at.fill(0);
        self.basis = None;
    }

    /// Bytes allocated.
    pub fn memory(&self) -> CacheMemory {
        fn bytes<const D: usize, K: burn::tensor::kind::Basic>(tensor: &Tensor<D, K>) -> usize {
            tensor.shape().num_elements() * tensor.dtype().size()
        }
        let tensors = self.tensors();
        CacheMemory {
            keys: bytes(&tensors.k),
            values: bytes(&tensors.v),
            sketch: match &tensors.sketch {
                SketchTensors::None => 0,
                SketchTensors::Full(kt) => bytes(kt),
                SketchTensors::Codes {
                    codes, lo, step, ..
                } => bytes(codes) + bytes(lo) + bytes(step),
            },
            sums: bytes(&tensors.v_sum) + self.received.as_ref().map_or(0, Received::bytes),
        }
    }

    /// Sets the ranges of a sketch in bits where they are due, and sums the values inside a window anew. SparQ calls this before it reads the sketch.
    pub fn refresh_sketch(&mut self) {
        if !self.refreshes() {
            return;
        }
        let attended = self.attended();
        let mut slid = false;
        for row in 0..self.batch() {
            // A sequence without positions has no range; it stays due.
            if self.range_is_due(row, 0) && self.rows.count(row) > 0 {
                let tensors = self.take();
                self.tensors = Some(ops::range_sketch(tensors, &attended, row));
                self.ranged_at[row] = self.rows.count(row);
                slid |= attended.start[row] > self.rows.start[row];
            }
        }
        if slid {
            self.slide(false);
        }
    }

    /// Whether ranges are due once every sequence holds `more` positions more.
    pub(crate) fn refresh_is_due(&self, more: usize) -> bool {
        self.refreshes() && (0..self.batch()).any(|row| self.range_is_due(row, more))
    }

    /// Whether the cache has anything that is set anew from time to time: ranges, or the sum of a window.
    fn refreshes(&self) -> bool {
        let sketch = self.config.sketch;
        sketch.is_some_and(|sketch| sketch.bits().is_some() || self.config.window.is_some())
    }

    fn range_is_due(&self, row: usize, more: usize) -> bool {
        let ends = self.rows.end[row] + more;
        let count = ends.saturating_sub(self.rows.start[row]);
        let at = self.ranged_at[row];
        at == 0 || count >= at + self.ranged_from(row)
    }

    /// How many positions the ranges of a row were set from.
    fn ranged_from(&self, row: usize) -> usize {
        self.config.attended(self.ranged_at[row])
    }

    /// The span of each sequence that a step attends to.
    fn attended(&self) -> RowSpans {
        match self.config.window {
            Some(window) => self.rows.last(window),
            None => self.rows.clone(),
        }
    }

    /// Takes what has left the window out of the sum of V, after an append of one token to every sequence or of something else. Only SparQ reads the sum.
    fn slide(&mut self, one_token: bool) {
        let Some(window) = self.config.window.filter(|_| self.config.sketch.is_some()) else {
            return;
        };
        let slides = (0..self.batch()).any(|row| self.rows.count(row) > window);
        // What is recorded serves later steps, in which it will.
        if !slides && !self.recorded {
            return;
        }
        let mut tensors = self.take();
        tensors.v_sum = match one_token {
            true => write::slide_sum(tensors.v_sum, &tensors.v, &tensors.spans, window),
            false => write::sum_values(&tensors.v, &self.attended()),
        };
        self.tensors = Some(tensors);
    }

    /// Declares that launches will, or will no longer, be replayed while the sequences grow.
    pub(crate) fn set_recorded(&mut self, recorded: bool) {
        self.recorded = recorded;
    }

    /// What a launch that attends with q sees: the buffers with the spans inside the window, and on the host the same spans, or, where the launch will be replayed
    /// at every length, the capacity, which bounds its size.
    ///
    /// # Errors
    /// [`SparqError::NotCapturable`] where the launch will be replayed and does not take its lengths from the device.
    pub(crate) fn view(
        &self,
        q: &Tensor<4>,
        config: Option<&SparqConfig>,
    ) -> Result<(CacheTensors, RowSpans), SparqError> {
        let rows = self.launch_rows(q, config)?;
        let mut tensors = self.tensors().clone();
        if let Some(window) = self.config.window
            && (self.recorded || rows != self.rows)
        {
            tensors.spans = write::last_spans(tensors.spans, window);
        }
        Ok((tensors, rows))
    }

    fn launch_rows(
        &self,
        q: &Tensor<4>,
        config: Option<&SparqConfig>,
    ) -> Result<RowSpans, SparqError> {
        if !self.recorded {
            return Ok(self.attended());
        }
        if !ops::takes_lengths_from_device(q, self.tensors(), config) {
            return Err(SparqError::NotCapturable {
                what: "attention of sizes or types that the device's kernels do not cover",
            });
        }
        Ok(RowSpans::full(self.batch(), self.capacity()))
    }

    /// What [`KvCache::return_to`] takes back to.
    pub(crate) fn mark(&self) -> CacheMark {
        let tensors = self.tensors();
        CacheMark {
            rows: self.rows.clone(),
            spans: duplicate(&tensors.spans),
            v_sum: duplicate(&tensors.v_sum),
        }
    }

    /// Takes back what was appended since, in place; what lies behind the end of a sequence does not matter.
    pub(crate) fn return_to(&mut self, mark: &CacheMark) {
        let mut tensors = self.take();
        tensors.spans = overwrite(tensors.spans, mark.spans.clone());
        tensors.v_sum = overwrite(tensors.v_sum, mark.v_sum.clone());
        self.tensors = Some(tensors);
        self.rows = mark.rows.clone();
    }

    /// Whether the cache has grown by one position in every sequence since, as far as the host knows.
    pub(crate) fn is_one_past(&self, mark: &CacheMark) -> bool {
        self.rows == mark.rows.grown(&vec![1; self.batch()])
    }

    /// Tells the host of a token that the device has appended to every sequence.
    pub(crate) fn advance(&mut self) {
        self.rows = self.rows.grown(&vec![1; self.batch()]);
    }

    /// Whether no one else holds a buffer, so that the next append writes in place; a backend that doesn't know says no.
    pub(crate) fn owns_buffers(&self) -> bool {
        let tensors = self.tensors();
        let sketch = match &tensors.sketch {
            SketchTensors::None => true,
            SketchTensors::Full(kt) => kt.can_mut(),
            SketchTensors::Codes {
                codes, lo, step, ..
            } => codes.can_mut() && lo.can_mut() && step.can_mut(),
        };
        let rest = tensors.k.can_mut() && tensors.v.can_mut();
        rest && sketch && tensors.v_sum.can_mut() && tensors.spans.can_mut()
    }

    pub(crate) fn check_query(&self, q: &Tensor<4>) -> Result<(), SparqError> {
        let [batch, heads, len, d] = q.dims();
        let KvCacheConfig {
            batch: expected,
            kv_heads,
            head_dim,
            ..
        } = self.config;
        if batch != expected
            || len != 1
            || d != head_dim
            || heads == 0
            || !heads.is_multiple_of(kv_heads)
        {
            let what = "query [batch, heads (a multiple of kv_heads), 1, head_dim]";
            return Err(SparqError::Shape {
                what,
                expected: vec![expected, kv_heads, 1, head_dim],
                found: q.dims().to_vec(),
            });
        }
        Ok(())
    }

    pub(crate) fn check_not_empty(&self) -> Result<(), SparqError> {
        if self.is_empty() {
            return Err(lengths(
                "cache",
                "at least the current token's position".into(),
                "none".into(),
            ));
        }
        Ok(())
    }

    pub(crate) fn check_sketch(
        &self,
        method: &'static str,
        sketch: Sketch,
    ) -> Result<(), SparqError> {
        let describe = |sketch: Option<Sketch>| match sketch {
            None => "nothing".to_owned(),
            Some(Sketch::Full) => "a full copy of K".to_owned(),
            Some(coded) => format!("codes of {} bits", coded.bits().unwrap_or_default()),
        };
        if self.config.sketch == Some(sketch) {
            return Ok(());
        }
        Err(SparqError::MissingSketch {
            method,
            expected: describe(Some(sketch)),
            found: describe(self.config.sketch),
        })
    }

    /// Checks new keys and values, [B, H_kv, `len`, d] each.
    fn check_new(&self, k: &Tensor<4>, v: &Tensor<4>, len: usize) -> Result<(), SparqError> {
        let KvCacheConfig {
            batch,
            kv_heads,
            head_dim,
            ..
        } = self.config;
        let expected = [batch, kv_heads, len, head_dim];
        for (what, found) in [("keys", k.dims()), ("values", v.dims())] {
            if found != expected {
                return Err(SparqError::Shape {
                    what,
                    expected: expected.to_vec(),
                    found: found.to_vec(),
                });
            }
        }
        Ok(())
    }

    /// Makes room for `counts[b]` positions more in sequence b.
    fn make_room(&mut self, counts: &[usize]) -> Result<(), SparqError> {
        let ends = self.rows.end.iter().zip(counts);
        let needed = ends.map(|(end, count)| end + count).max().unwrap_or(0);
        if self.recorded && needed > self.capacity() {
            return Err(SparqError::NotCapturable {
                what: "a step that appends more than one position",
            });
        }
        self.reserve(needed);
        Ok(())
    }

    /// Whether an append writes codes. Where no row has ranges yet, the first use sets them and writes every code.
    fn encodes(&self) -> bool {
        self.ranged_at.iter().any(|&at| at > 0)
    }

    fn check_batch(&self, what: &'static str, values: &[usize]) -> Result<(), SparqError> {
        if values.len() == self.batch() {
            return Ok(());
        }
        Err(lengths(
            what,
            format!("{} entries (the batch)", self.batch()),
            values.len().to_string(),
        ))
    }

    /// Brings the device's spans in line with the host's after a change other than an append.
    fn renew_spans(&mut self) {
        let mut tensors = self.take();
        tensors.spans = self.rows.to_tensor(&tensors.spans.device());
        self.tensors = Some(tensors);
    }

    fn take(&mut self) -> CacheTensors {
        self.tensors
            .take()
            .expect("the buffers are handed back by every operation")
    }
}

/// Capacities are multiples of 64 positions, so that rows of codes end with a word and vector loads stay aligned.
fn round_up(capacity: usize) -> usize {
    capacity.next_multiple_of(64)
}

fn lengths(what: &'static str, expected: String, found: String) -> SparqError {
    SparqError::Value {
        what,
        expected,
        found,
    }
}

fn check_dtype(dtype: FloatDType, device: &Device) -> Result<(), SparqError> {
    let usable = |dtype: FloatDType| device.supports_dtype(DType::from(dtype));
    if usable(dtype) {
        return Ok(());
    }
    let known = [
        FloatDType::F32,
        FloatDType::F16,
        FloatDType::BF16,
        FloatDType::F64,
    ];
    let supported: Vec<String> = known
        .into_iter()
        .filter(|&dtype| usable(dtype))
        .map(|dtype| format!("{dtype:?}"))
        .collect();
    Err(SparqError::Dtype {
        device: format!("{device:?}"),
        dtype: format!("{dtype:?}"),
        supported: supported.join(", "),
    })
}
