//! The state of a cache around captured steps, and its view for a launch.

use burn::tensor::{Int, Tensor};

use super::buffers::{duplicate, overwrite};
use super::{BufferId, CacheTensors, KvCache, Spans};
use crate::ops::reference::append as write;
use crate::{SparqConfig, SparqError, ops};

/// A length of a cache to roll back to; see [`KvCache::mark`].
#[derive(Debug)]
pub struct CacheMark {
    host_spans: Spans,
    spans: Tensor<2, Int>,
    v_sum: Tensor<3>,
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
        let spans = if !self.capturing {
            self.attended()
        } else if ops::takes_lengths_from_device(q, self.tensors(), config) {
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
        let tensors = self.tensors();
        CacheMark {
            host_spans: self.spans.clone(),
            spans: duplicate(&tensors.spans),
            v_sum: duplicate(&tensors.v_sum),
        }
    }

    /// Takes back all appends since a mark, in place. Data after the end of a sequence does not
    /// matter.
    pub(crate) fn return_to(&mut self, mark: &CacheMark) {
        self.update(|mut tensors, _| {
            tensors.spans = overwrite(tensors.spans, mark.spans.clone());
            tensors.v_sum = overwrite(tensors.v_sum, mark.v_sum.clone());
            tensors
        });
        self.spans = mark.host_spans.clone();
    }

    /// Takes back the appends since a mark, except the first `kept[b]` positions of sequence b.
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
    /// let mark = cache.mark();
    /// cache.append(random(4), random(4))?;
    /// cache.roll_back(&mark, &[1, 3])?;
    /// assert_eq!(cache.spans().end, [11, 13]);
    /// # Ok::<(), sparq::SparqError>(())
    /// ```
    ///
    /// # Errors
    /// [`SparqError::Value`] if `kept` does not have one entry per sequence, or if fewer positions
    /// have been appended since the mark.
    pub fn roll_back(&mut self, mark: &CacheMark, kept: &[usize]) -> Result<(), SparqError> {
        self.check_batch("kept", kept)?;
        self.check_batch("mark", &mark.host_spans.end)?;
        let spans = mark.host_spans.grown(kept);
        for (&kept, ends) in kept.iter().zip(std::iter::zip(&spans.end, &self.spans.end)) {
            if ends.0 > ends.1 {
                let appended = (ends.1 + kept).saturating_sub(*ends.0);
                let expected = format!("at most {appended} (the positions since the mark)");
                return Err(SparqError::value("kept", expected, kept));
            }
        }
        if spans == self.spans {
            return Ok(());
        }
        let start = std::iter::zip(&mark.host_spans.end, &spans.start);
        let new = Spans {
            start: start.map(|(&from, &start)| from.max(start)).collect(),
            end: spans.end.clone(),
        };
        self.spans = spans;
        self.drop_ranges();
        let slides = self.config.window.is_some() && self.config.sketch.is_some();
        let attended = self.attended();
        self.update(|mut tensors, spans| {
            let sum = match (slides, new.end == new.start) {
                (true, _) => write::sum_values(&tensors.v, &attended),
                (false, true) => mark.v_sum.clone(),
                (false, false) => mark.v_sum.clone() + write::sum_values(&tensors.v, &new),
            };
            let new = match spans == &mark.host_spans {
                true => mark.spans.clone(),
                false => spans.to_tensor(&tensors.spans.device()),
            };
            tensors.spans = overwrite(tensors.spans, new);
            tensors.v_sum = overwrite(tensors.v_sum, sum);
            tensors
        });
        let len = self.len();
        self.states.truncate(len);
        Ok(())
    }

    /// Returns whether every sequence has grown by as many positions since a mark, as far as the
    /// host knows.
    pub(crate) fn is_past(&self, mark: &CacheMark, positions: usize) -> bool {
        self.spans == mark.host_spans.grown(&vec![positions; self.batch()])
    }

    /// Updates the host's spans after a replay has appended positions to every sequence.
    pub(crate) fn advance(&mut self, positions: usize) {
        self.spans = self.spans.grown(&vec![positions; self.batch()]);
    }
}
