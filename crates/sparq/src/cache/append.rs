//! Appending to a cache, growing it and rolling it back.

use burn::tensor::Tensor;

use super::buffers::overwrite;
use super::{BufferId, KvCache, Spans, round_up};
use crate::ops::Rotary;
use crate::ops::reference::append as write;
use crate::{SparqError, ops};

impl KvCache {
    /// Declares the first `padding[b]` positions of sequence b as left padding.
    ///
    /// They are appended like others, but never attended to.
    ///
    /// # Errors
    /// [`SparqError::Value`] if the cache is not empty or the batch differs.
    pub fn set_left_padding(&mut self, padding: &[usize]) -> Result<(), SparqError> {
        if !self.is_empty() {
            let found = format!("{} positions", self.len());
            return Err(SparqError::value("left padding", "an empty cache", found));
        }
        self.check_batch("left padding", padding)?;
        self.spans.start = padding.to_vec();
        self.renew_spans();
        Ok(())
    }

    /// Appends keys (after RoPE) and values, [B, H_kv, T, d] each, to every sequence that is not
    /// [idle](Self::set_idle).
    ///
    /// # Errors
    /// [`SparqError::Shape`] if they do not fit the cache.
    pub fn append(&mut self, k: Tensor<4>, v: Tensor<4>) -> Result<(), SparqError> {
        let counts = self.spans.each(k.dims()[2]);
        self.append_ragged(k, v, &counts)
    }

    /// Appends the first `counts[b]` of T keys and values, [B, H_kv, T, d] each, to sequence b.
    ///
    /// # Errors
    /// [`SparqError::Shape`] or [`SparqError::Value`] if they do not fit the cache or each other.
    pub fn append_ragged(
        &mut self,
        k: Tensor<4>,
        v: Tensor<4>,
        counts: &[usize],
    ) -> Result<(), SparqError> {
        let len = k.dims()[2];
        self.check_new(&k, &v, len)?;
        self.check_batch("counts", counts)?;
        if let Some(&count) = counts.iter().find(|&&count| count > len) {
            let expected = format!("at most the {len} positions given");
            return Err(SparqError::value("counts", expected, count));
        }
        let most = counts.iter().copied().max().unwrap_or(0);
        if most == 0 {
            return Ok(());
        }
        let one_each = len == 1 && *counts == self.spans.each(1);
        if self.capturing && !one_each {
            return Err(SparqError::NotCapturable {
                what: "an append of anything but one position to every sequence",
            });
        }
        self.make_room(counts)?;
        let encode = self.encodes();
        self.update(|tensors, spans| {
            ops::append(tensors, k.inner(), v.inner(), spans, counts, encode)
        });
        self.spans = self.spans.grown(counts);
        self.slide(one_each);
        Ok(())
    }

    /// Prepares attention: rotates and appends T tokens to every sequence that is not
    /// [idle](Self::set_idle), and returns the rotated queries.
    ///
    /// Rotates q [B, H, T, d] and k [B, H_kv, T, d] to the positions after the cached ones, and
    /// appends k and v [B, H_kv, T, d]. Without `rotary` nothing is rotated. The returned queries
    /// are outside autodiff. The device reads the positions, so a
    /// [`CapturedStep`](crate::CapturedStep) can contain this.
    ///
    /// # Errors
    /// [`SparqError::Shape`] if q, k and v do not fit the cache or each other.
    pub fn prepare(
        &mut self,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
        rotary: Option<&Rotary>,
    ) -> Result<Tensor<4>, SparqError> {
        let len = q.dims()[2];
        self.check_query(&q, len)?;
        self.check_new(&k, &v, len)?;
        let head_dim = self.config.head_dim;
        if let Some(rotary) = rotary.filter(|rotary| rotary.dim() > head_dim) {
            let expected = format!("at most {head_dim} (the head_dim)");
            return Err(SparqError::value("rotary_dim", expected, rotary.dim()));
        }
        if len == 0 {
            return Ok(q.inner());
        }
        if len > 1 && self.config.window.is_some() && self.config.sketch.is_some() {
            self.check_not_capturing("several tokens that push values out of a sliding window")?;
        }
        let counts = self.spans.each(len);
        self.make_room(&counts)?;
        let table = rotary.map(|rotary| rotary.table(self.capacity()));
        let encode = self.encodes();
        let tensors = self.take();
        let heads = [q.inner(), k.inner(), v.inner()];
        let (q, tensors) = ops::prepare(heads, table, tensors, &self.spans, encode);
        self.tensors = Some(tensors);
        self.spans = self.spans.grown(&counts);
        self.slide(len == 1);
        Ok(q)
    }

    /// Makes room for `capacity` positions. Allocates at least twice the current capacity.
    pub fn reserve(&mut self, capacity: usize) {
        let now = self.capacity();
        if capacity > now {
            let device = self.tensors().k.device();
            self.buffers = BufferId::new();
            self.update(|tensors, _| tensors.grown(round_up(capacity.max(2 * now))));
            // A GPU's allocator would keep the smaller buffers for other caches of their size.
            device.memory_cleanup();
        }
    }

    /// Makes room for `counts[b]` more positions in sequence b.
    fn make_room(&mut self, counts: &[usize]) -> Result<(), SparqError> {
        let needed = self.spans.grown(counts).longest();
        if self.capturing && needed > self.capacity() {
            return Err(SparqError::NotCapturable {
                what: "a step that appends more positions than announced",
            });
        }
        self.reserve(needed);
        Ok(())
    }

    /// Rolls every sequence back to its first `len` positions, left padding included.
    ///
    /// Shorter sequences stay as they are.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len() {
            return;
        }
        for sequence in 0..self.batch() {
            self.spans.end[sequence] = self.spans.end[sequence].min(len);
        }
        self.drop_ranges();
        let attended = self.attended();
        self.update(|mut tensors, _| {
            // Subtracting the removed values would leave their rounding error, or their NaN, in the
            // sum.
            let sum = match len {
                0 => tensors.v_sum.zeros_like(),
                _ => write::sum_values(&tensors.v, &attended),
            };
            tensors.v_sum = overwrite(tensors.v_sum, sum);
            tensors
        });
        self.renew_spans();
        self.states.truncate(len);
    }

    /// Forgets every position and the padding. No sequence is idle then. The buffers stay
    /// allocated.
    pub fn clear(&mut self) {
        self.truncate(0);
        self.spans = Spans::empty(self.batch());
        self.renew_spans();
        self.ranged_at.fill(0);
    }

    /// Copies the host's spans to the device after a change other than an append.
    pub(super) fn renew_spans(&mut self) {
        self.update(|mut tensors, spans| {
            let new = spans.to_tensor(&tensors.spans.device());
            tensors.spans = overwrite(tensors.spans, new);
            tensors
        });
    }
}
