//! The state of a cache around captured steps, and its view for a launch.

use burn::tensor::{DType, Device, Int, Tensor};

use super::buffers::{duplicate, overwrite};
use super::{BufferId, CacheTensors, KvCache, Spans};
use crate::ops::reference::append as write;
use crate::{SparqConfig, SparqError, ops};

/// A length of a cache to roll back to; see [`KvCache::mark`].
#[derive(Debug)]
pub struct CacheMark {
    spans: Spans,
    v_sum: Tensor<3>,
}

/// A change of the spans of caches with the same lengths, on the host and on the device.
struct Moves {
    /// The spans at the mark.
    mark: Spans,
    /// The spans afterwards.
    spans: Spans,
    /// The starts, the ends at the mark and the ends afterwards, [3, B].
    tensor: Tensor<2, Int>,
}

impl Moves {
    fn new(mark: &Spans, spans: Spans, device: &Device) -> Self {
        let starts = mark.start.iter().copied();
        let rows = starts.chain(mark.device_ends()).chain(spans.device_ends());
        let rows: Vec<u32> = rows.map(|position| position as u32).collect();
        let tensor = Tensor::<1, Int>::from_data(rows.as_slice(), (device, DType::U32));
        Self {
            tensor: tensor.reshape([3, mark.batch()]),
            mark: mark.clone(),
            spans,
        }
    }
}

impl KvCache {
    /// Sets whether launches are being captured, to be replayed while the sequences grow.
    pub(crate) fn set_capturing(&mut self, capturing: bool) {
        self.capturing = capturing;
    }

    /// Refuses an operation that cannot be replayed, during a capture.
    pub(crate) fn check_not_capturing(&self, what: &'static str) -> Result<(), SparqError> {
        match self.capturing {
            true => Err(SparqError::NotCapturable { what }),
            false => Ok(()),
        }
    }

    /// Returns the buffers and spans for a launch that attends with q: the spans inside the window.
    ///
    /// `config` is SparQ's, or `None` for dense attention. During a capture, the host's spans are
    /// the capacity, which bounds the size of the launch at every later length.
    ///
    /// # Errors
    /// [`SparqError::NotCapturable`] during a capture, if the launch does not read its lengths from
    /// the device.
    pub(crate) fn view(
        &self,
        q: &Tensor<4>,
        config: Option<&SparqConfig>,
    ) -> Result<(CacheTensors, Spans), SparqError> {
        self.view_if(|| ops::takes_lengths_from_device(q, self.tensors(), config))
    }

    /// [`KvCache::view`] for a launch that attends to `k` given positions with q.
    ///
    /// # Errors
    /// As [`KvCache::view`].
    pub(crate) fn reused_view(
        &self,
        q: &Tensor<4>,
        k: usize,
    ) -> Result<(CacheTensors, Spans), SparqError> {
        self.view_if(|| ops::positions_take_lengths_from_device(q, self.tensors(), k))
    }

    /// Returns the view for a launch. `covers` tells during a capture whether the launch reads its
    /// lengths from the device.
    fn view_if(&self, covers: impl Fn() -> bool) -> Result<(CacheTensors, Spans), SparqError> {
        let spans = if !self.capturing {
            self.attended()
        } else if covers() {
            Spans::full(self.batch(), self.capacity())
        } else {
            return Err(SparqError::NotCapturable {
                what: "attention of sizes or types that the device's kernels do not cover",
            });
        };
        let mut tensors = self.tensors().clone();
        if let Some(window) = self.config.window
            && (self.capturing || spans != self.spans)
        {
            tensors.spans = write::last_spans(tensors.spans, window);
        }
        Ok((tensors, spans))
    }

    /// Returns the spans for a launch of causal attention with the last queries q [B, H, T, d].
    ///
    /// During a capture they are the capacity; see [`KvCache::view`].
    ///
    /// # Errors
    /// [`SparqError::NotCapturable`] during a capture, if the launch does not read its lengths from
    /// the device.
    pub(crate) fn causal_spans(&self, q: &Tensor<4>) -> Result<Spans, SparqError> {
        let (window, softcap) = (self.config.window, self.config.softcap);
        if !self.capturing {
            return Ok(self.spans.clone());
        }
        match ops::causal_takes_lengths_from_device(q, self.tensors(), window, softcap) {
            true => Ok(Spans::full(self.batch(), self.capacity())),
            false => Err(SparqError::NotCapturable {
                what: "causal attention of sizes or types that the device's kernels do not cover",
            }),
        }
    }

    /// Returns the identity of the buffers.
    pub(crate) fn buffer_id(&self) -> BufferId {
        self.buffers
    }

    /// Marks the current length, for [`KvCache::roll_back`].
    pub fn mark(&self) -> CacheMark {
        CacheMark {
            spans: self.spans.clone(),
            v_sum: duplicate(&self.tensors().v_sum),
        }
    }

    /// Takes back all appends since a mark, in place. Data after the end of a sequence does not
    /// matter.
    pub(crate) fn return_to(&mut self, mark: &CacheMark) {
        self.spans = mark.spans.clone();
        self.update(|mut tensors, spans| {
            let new = spans.to_tensor(&tensors.spans.device());
            tensors.spans = overwrite(tensors.spans, new);
            tensors.v_sum = overwrite(tensors.v_sum, mark.v_sum.clone());
            tensors
        });
    }

    /// Takes back the appends since a mark, except the first `kept[b]` positions of sequence b.
    /// The mark is then at the new length.
    ///
    /// Writes in place, and a [`CapturedStep`](crate::CapturedStep) stays captured. Unlike
    /// [`KvCache::truncate`] it reads no more than the positions kept, or one window.
    ///
    /// ```
    /// use burn::tensor::{Device, Distribution, Tensor};
    /// use sparq::KvCacheConfig;
    ///
    /// let mut cache = KvCacheConfig::new(2, 2, 32).init(&Device::default())?;
    /// let random = |len| {
    ///     Tensor::<4>::random([2, 2, len, 32], Distribution::Default, &Device::default())
    /// };
    /// cache.append(random(10), random(10))?;
    /// let mut mark = cache.mark();
    /// cache.append(random(4), random(4))?;
    /// cache.roll_back(&mut mark, &[1, 3])?;
    /// assert_eq!(cache.spans().end, [11, 13]);
    /// # Ok::<(), sparq::SparqError>(())
    /// ```
    ///
    /// # Errors
    /// [`SparqError::Value`] if `kept` does not have one entry per sequence, or if fewer positions
    /// have been appended since the mark.
    pub fn roll_back(&mut self, mark: &mut CacheMark, kept: &[usize]) -> Result<(), SparqError> {
        Self::roll_back_all(std::slice::from_mut(self), std::slice::from_mut(mark), kept)
    }

    /// [`KvCache::roll_back`] of the caches of several layers, each with its mark.
    ///
    /// # Errors
    /// As [`KvCache::roll_back`]. Caches before the one at fault have been rolled back.
    pub fn roll_back_all(
        caches: &mut [Self],
        marks: &mut [CacheMark],
        kept: &[usize],
    ) -> Result<(), SparqError> {
        // The layers of a model have the same lengths: one upload serves all.
        let mut moves: Option<Moves> = None;
        for (cache, mark) in caches.iter_mut().zip(marks) {
            let spans = cache.kept_spans(mark, kept)?;
            let device = mark.v_sum.device();
            let moves = match &mut moves {
                Some(moves) if moves.mark == mark.spans && moves.tensor.device() == device => moves,
                other => other.insert(Moves::new(&mark.spans, spans, &device)),
            };
            cache.move_back(mark, moves);
        }
        Ok(())
    }

    /// Returns the spans after a roll back, if the cache holds the positions to keep.
    fn kept_spans(&self, mark: &CacheMark, kept: &[usize]) -> Result<Spans, SparqError> {
        self.check_batch("kept", kept)?;
        self.check_batch("mark", &mark.spans.end)?;
        let spans = mark.spans.grown(kept);
        for (&kept, ends) in kept.iter().zip(std::iter::zip(&spans.end, &self.spans.end)) {
            if ends.0 > ends.1 {
                let appended = (ends.1 + kept).saturating_sub(*ends.0);
                let expected = format!("at most {appended} (the positions since the mark)");
                return Err(SparqError::value("kept", expected, kept));
            }
        }
        Ok(spans)
    }

    fn move_back(&mut self, mark: &mut CacheMark, moves: &Moves) {
        let tensors = self.take();
        mark.v_sum.inplace(|sum| {
            let moved = moves.tensor.clone();
            let (tensors, sum) = ops::roll_back(tensors, sum, moved, &moves.mark, &moves.spans);
            self.tensors = Some(tensors);
            sum
        });
        mark.spans = moves.spans.clone();
        self.spans = moves.spans.clone();
        self.drop_ranges();
        if self.config.window.is_some() && self.config.sketch.is_some() {
            let attended = self.attended();
            self.update(|mut tensors, _| {
                let sum = write::sum_values(&tensors.v, &attended);
                tensors.v_sum = overwrite(tensors.v_sum, sum);
                tensors
            });
            mark.v_sum = duplicate(&self.tensors().v_sum);
        }
        let len = self.len();
        self.states.truncate(len);
    }

    /// Returns whether every sequence has grown by as many positions since a mark, apart from idle
    /// ones, as far as the host knows.
    pub(crate) fn is_past(&self, mark: &CacheMark, positions: usize) -> bool {
        self.spans == mark.spans.grown(&vec![positions; self.batch()])
    }

    /// Updates the host's spans after a replay has appended positions to every sequence.
    pub(crate) fn advance(&mut self, positions: usize) {
        self.spans = self.spans.grown(&vec![positions; self.batch()]);
    }
}
