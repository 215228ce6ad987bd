//! The ranges of a sketch in codes, and the sum of V under a sliding window.

use super::buffers::overwrite;
use super::{BufferId, KvCache};
use crate::ops;
use crate::ops::Spans;
use crate::ops::reference::append as write;

impl KvCache {
    /// Sets the ranges of a sketch in codes where they are due, writes the codes, and sums the
    /// values of a window again.
    ///
    /// SparQ calls this before it reads the sketch. Call it at the end of a prompt, after the last
    /// of its prefills, and the first decode step costs as much as every other. Does nothing
    /// without a sketch, or if nothing is due.
    pub fn refresh_sketch(&mut self) {
        if !self.refreshes() {
            return;
        }
        let attended = self.attended();
        let mut slid = false;
        for sequence in 0..self.batch() {
            // A sequence without positions has no range; it stays due.
            if self.range_is_due(sequence, 0) && self.spans.count(sequence) > 0 {
                if !ops::sets_ranges_in_place(self.tensors()) {
                    self.buffers = BufferId::new();
                }
                self.update(|tensors, _| ops::range_sketch(tensors, &attended, sequence));
                self.ranged_at[sequence] = self.spans.count(sequence);
                slid |= attended.start[sequence] > self.spans.start[sequence];
            }
        }
        if slid {
            self.slide(false);
        }
    }

    /// Returns whether ranges are due after `more` appends to every sequence.
    pub(crate) fn refresh_is_due(&self, more: usize) -> bool {
        let due = |sequence| !self.spans.is_idle(sequence) && self.range_is_due(sequence, more);
        self.refreshes() && (0..self.batch()).any(due)
    }

    /// Returns whether the cache has ranges, or a sum of a window, that need updates over time.
    fn refreshes(&self) -> bool {
        let sketch = self.config.sketch;
        sketch.is_some_and(|sketch| sketch.bits().is_some() || self.config.window.is_some())
    }

    fn range_is_due(&self, sequence: usize, more: usize) -> bool {
        let ends = self.spans.end[sequence] + more;
        let count = ends.saturating_sub(self.spans.start[sequence]);
        let at = self.ranged_at[sequence];
        at == 0 || count >= at + self.ranged_from(sequence)
    }

    /// The number of positions that determined the ranges of a sequence.
    pub(super) fn ranged_from(&self, sequence: usize) -> usize {
        self.config.attended(self.ranged_at[sequence])
    }

    /// After a rollback, makes new ranges due where less than half of the positions is left that
    /// determined them.
    pub(super) fn drop_ranges(&mut self) {
        for sequence in 0..self.batch() {
            let (at, from) = (self.ranged_at[sequence], self.ranged_from(sequence));
            if 2 * self.spans.count(sequence) + from < 2 * at {
                self.ranged_at[sequence] = 0;
            }
        }
    }

    /// Returns whether an append writes codes.
    ///
    /// Until some sequence has ranges, the first use of the sketch sets them and writes every code.
    pub(crate) fn encodes(&self) -> bool {
        self.ranged_at.iter().any(|&at| at > 0)
    }

    /// The span of each sequence that a step attends to.
    pub(super) fn attended(&self) -> Spans {
        match self.config.window {
            Some(window) => self.spans.last(window),
            None => self.spans.clone(),
        }
    }

    /// Removes from the sum of V the values that have left the window. Only SparQ reads the sum.
    ///
    /// `one_token`: one token was just appended to every sequence, and the sum is otherwise up to
    /// date.
    pub(super) fn slide(&mut self, one_token: bool) {
        let Some(window) = self.config.window.filter(|_| self.config.sketch.is_some()) else {
            return;
        };
        let slides = (0..self.batch()).any(|sequence| self.spans.count(sequence) > window);
        // A captured step serves later steps, in which values will leave.
        if !slides && !self.capturing {
            return;
        }
        let attended = self.attended();
        self.update(|mut tensors, _| {
            tensors.v_sum = match one_token {
                true => write::slide_sum(tensors.v_sum, &tensors.v, &tensors.spans, window),
                false => overwrite(tensors.v_sum, write::sum_values(&tensors.v, &attended)),
            };
            tensors
        });
    }
}
