//! Sequences that join and leave a cache of several.

use std::ops::Range;

use super::{BufferId, CacheTensors, KvCache, MethodStates, Spans, round_up};
use crate::SparqError;

impl KvCache {
    /// Makes a sequence idle: it holds no positions, appends to every sequence pass over it, and a
    /// decode step gives zeros for it.
    ///
    /// Writes in place, and a [`CapturedStep`](crate::CapturedStep) stays captured. Its graph
    /// passes over the sequence too, and reads nothing of it. [`KvCache::write_sequence`] ends the
    /// state, and so does [`KvCache::clear`]. A prefill refuses a cache with an idle sequence.
    ///
    /// ```
    /// use burn::tensor::{Device, Distribution, Tensor};
    /// use sparq::KvCacheConfig;
    ///
    /// let device = Device::default();
    /// let random = |batch, len| {
    ///     Tensor::<4>::random([batch, 2, len, 32], Distribution::Default, &device)
    /// };
    /// let mut batch = KvCacheConfig::new(2, 2, 32).init(&device)?;
    /// batch.append(random(2, 10), random(2, 10))?;
    /// batch.set_idle(0)?;
    /// batch.append(random(2, 1), random(2, 1))?;
    /// assert_eq!(batch.spans().end, [0, 11]);
    ///
    /// let mut alone = KvCacheConfig::new(1, 2, 32).init(&device)?;
    /// alone.append(random(1, 40), random(1, 40))?;
    /// batch.write_sequence(0, &alone)?;
    /// batch.append(random(2, 1), random(2, 1))?;
    /// assert_eq!(batch.spans().end, [41, 12]);
    /// # Ok::<(), sparq::SparqError>(())
    /// ```
    ///
    /// # Errors
    /// [`SparqError::Value`] if there is no such sequence, or if a method keeps state with the
    /// cache.
    pub fn set_idle(&mut self, sequence: usize) -> Result<(), SparqError> {
        self.check_sequence(sequence)?;
        self.spans.start[sequence] = Spans::IDLE;
        self.spans.end[sequence] = 0;
        self.ranged_at[sequence] = 0;
        self.renew_spans();
        Ok(())
    }

    /// Returns whether a sequence is idle.
    pub fn is_idle(&self, sequence: usize) -> bool {
        self.spans.is_idle(sequence)
    }

    /// Replaces a sequence by the only one of another cache, with its keys and values, its sketch
    /// and its left padding. A sketch that this cache does not hold is left out.
    ///
    /// Writes in place, unless the cache has to grow for it, and a
    /// [`CapturedStep`](crate::CapturedStep) stays captured.
    ///
    /// # Errors
    /// [`SparqError::Value`] if there is no such sequence, if the caches differ in more than batch
    /// and capacity, or if a method keeps state with one of them.
    pub fn write_sequence(&mut self, sequence: usize, from: &KvCache) -> Result<(), SparqError> {
        self.check_sequence(sequence)?;
        from.check_sequence(0)?;
        let sketched = self.config.sketch.is_some();
        let like = |cache: &KvCache| {
            let mut config = *cache.config();
            (config.batch, config.capacity) = (0, 0);
            config.sketch = config.sketch.filter(|_| sketched);
            config
        };
        if from.batch() != 1 || like(self) != like(from) {
            let expected = format!("a batch of 1 and otherwise {:?}", self.config);
            let found = format!("{:?}", from.config);
            return Err(SparqError::value("cache of a sequence", expected, found));
        }
        let end = from.spans.end[0];
        self.reserve(end);
        let other = from.tensors();
        self.update(|tensors, _| tensors.copy(sequence, other, &(0..1), end));
        self.spans.start[sequence] = from.spans.start[0];
        self.spans.end[sequence] = end;
        self.ranged_at[sequence] = if sketched { from.ranged_at[0] } else { 0 };
        self.renew_spans();
        Ok(())
    }

    /// Returns a cache of some of the sequences, in new buffers for `capacity` positions, or for
    /// all that they hold. `None` stands for an idle sequence.
    ///
    /// # Errors
    /// [`SparqError::Value`] if there is no sequence in the order, if this cache has not one of
    /// them, or if a method keeps state with it.
    pub fn select(&self, order: &[Option<usize>], capacity: usize) -> Result<Self, SparqError> {
        if order.is_empty() {
            return Err(SparqError::value("order", "at least one sequence", "none"));
        }
        for &from in order.iter().flatten() {
            self.check_sequence(from)?;
        }
        let part = |values: &[usize], idle: usize| -> Vec<usize> {
            let of = |from: &Option<usize>| from.map_or(idle, |from| values[from]);
            order.iter().map(of).collect()
        };
        let spans = Spans {
            start: part(&self.spans.start, Spans::IDLE),
            end: part(&self.spans.end, 0),
        };
        let mut config = self.config;
        config.batch = order.len();
        let old = self.tensors();
        let device = old.k.device();
        let capacity = round_up(capacity.max(spans.longest()).max(1));
        let shape = [order.len(), config.kv_heads, capacity, config.head_dim];
        let mut tensors = CacheTensors {
            softcap: config.softcap,
            spans: spans.to_tensor(&device),
            ..CacheTensors::zeros(shape, config.dtype, config.rows, config.sketch, &device)
        };
        for (to, from) in runs(order) {
            let len = self.spans.select(from.clone()).longest();
            tensors = tensors.copy(to, old, &from, len);
        }
        Ok(Self {
            config,
            tensors: Some(tensors),
            spans,
            ranged_at: part(&self.ranged_at, 0),
            capturing: false,
            buffers: BufferId::new(),
            keeps_query: false,
            query: None,
            keeps_selection: self.keeps_selection,
            selection: None,
            reused: None,
            states: MethodStates::default(),
        })
    }

    /// Checks that there is such a sequence, and nothing of it outside the buffers.
    fn check_sequence(&self, sequence: usize) -> Result<(), SparqError> {
        if sequence >= self.batch() {
            let expected = format!("below {} (the batch)", self.batch());
            return Err(SparqError::value("sequence", expected, sequence));
        }
        match self.states.is_empty() {
            true => Ok(()),
            false => {
                let expected = "no state of a method, which is that of all sequences";
                Err(SparqError::value("cache", expected, "one"))
            }
        }
    }
}

/// Divides an order into runs that follow each other in the old one too: the first new place, and
/// the old places.
fn runs(order: &[Option<usize>]) -> Vec<(usize, Range<usize>)> {
    let mut runs: Vec<(usize, Range<usize>)> = Vec::new();
    for (to, from) in order.iter().enumerate() {
        let Some(from) = *from else { continue };
        match runs.last_mut() {
            Some((first, old)) if *first + old.len() == to && old.end == from => old.end += 1,
            _ => runs.push((to, from..from + 1)),
        }
    }
    runs
}
