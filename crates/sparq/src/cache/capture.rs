//! The state of a cache around captured steps, and its view for a launch.

use burn::tensor::{Int, Tensor};

use super::buffers::{duplicate, overwrite};
use super::{CacheTensors, KvCache, Spans};
use crate::ops::reference::append as write;
use crate::{SparqConfig, SparqError, ops};

/// The state of a cache that an append of one token changes, to take the append back exactly.
#[derive(Debug)]
pub(crate) struct CacheMark {
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

    /// Returns the state for [`KvCache::return_to`].
    pub(crate) fn mark(&self) -> CacheMark {
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

    /// Returns whether every sequence has grown by one position since a mark, as far as the host
    /// knows.
    pub(crate) fn is_one_past(&self, mark: &CacheMark) -> bool {
        self.spans == mark.host_spans.grown(&vec![1; self.batch()])
    }

    /// Updates the host's spans after a replay has appended a token to every sequence.
    pub(crate) fn advance(&mut self) {
        self.spans = self.spans.grown(&vec![1; self.batch()]);
    }
}
