//! The memory of caches: where the answers to a request decode, the size of the slots, and what is
//! kept for later prompts.

use std::sync::atomic::Ordering;

use super::extent::Extent;
use super::request::Submitted;
use super::slots::{Lost, Slots};
use super::worker::{Reading, Worker};

/// The steps after which slots that are not needed are given back.
const PATIENCE: usize = 128;

/// Where the answers to a request will decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In slots.
    Slots,
    /// In caches of their own.
    Alone,
}

impl Worker {
    /// Returns where the answers to a request can decode, and the extent of the slots then; `None`
    /// while there is no room.
    ///
    /// A request that memory has no slots for gets caches of its own. It waits if only the prompts
    /// that are being read are in the way, which move to their slots.
    pub(super) fn place(&self, submitted: &Submitted) -> Option<(Place, Extent)> {
        let available = self.shared.config.cache_bytes;
        let (prompts, others): (Vec<&Reading>, Vec<&Reading>) = self
            .reading
            .iter()
            .partition(|reading| reading.place == Place::Slots);
        let bytes = |readings: &[&Reading]| readings.iter().map(|one| one.bytes).sum::<usize>();
        let alone = self.alone.iter().map(|alone| alone.bytes).sum::<usize>() + bytes(&others);
        let Some(slots) = &self.slots else {
            let fits = alone + submitted.all_bytes() <= available;
            return fits.then_some((Place::Alone, Extent::default()));
        };
        let (now, demand) = (slots.extent(), self.demand());
        let plan = |demand, taken| {
            let left = available.checked_sub(taken)?;
            slots.limits().plan(now, demand, left)
        };
        if slots.takes(submitted.request.decoding) {
            let demand = Extent {
                slots: demand.slots + submitted.request.choices,
                positions: demand.positions.max(submitted.positions()),
            };
            let own = alone + self.prompt_bytes(submitted);
            if let Some(extent) = plan(demand, own + bytes(&prompts)) {
                return Some((Place::Slots, extent));
            }
            if !prompts.is_empty() && plan(demand, own).is_some() {
                return None;
            }
        }
        let extent = plan(demand, alone + bytes(&prompts) + submitted.all_bytes())?;
        Some((Place::Alone, extent))
    }

    /// The slots that admitted requests need.
    fn demand(&self) -> Extent {
        let running = self.slots.as_ref().map(Slots::demand);
        let prompts = self
            .reading
            .iter()
            .filter(|reading| reading.place == Place::Slots);
        prompts.fold(running.unwrap_or_default(), |all, reading| Extent {
            slots: all.slots + reading.submitted.request.choices,
            positions: all.positions.max(reading.submitted.positions()),
        })
    }

    /// The bytes of the cache in which a prompt is read that moves to a slot then.
    pub(super) fn prompt_bytes(&self, submitted: &Submitted) -> usize {
        let bytes = |slots: &Slots| {
            let limits = slots.limits();
            limits
                .size
                .bytes(limits.stepped(submitted.request.prompt.len()))
        };
        self.slots.as_ref().map_or(0, bytes)
    }

    /// Sets the extent of the slots.
    pub(super) fn resize(&mut self, extent: Extent) {
        self.finish_queued();
        let resized = self.slots.as_mut().map(|slots| slots.set_target(extent));
        if let Some(Err(lost)) = resized {
            self.lose(lost);
        }
        self.shrink_kept();
    }

    /// Gives slots back that have not been needed for long, or if nothing runs.
    pub(super) fn shrink_slots(&mut self) {
        let demand = self.demand();
        let Some(slots) = &self.slots else { return };
        let target = slots.target();
        if demand.slots == 0 && self.waiting.is_empty() {
            if target.slots > 1 {
                self.resize(Extent { slots: 1, ..target });
            }
            return;
        }
        let shrunk = slots.limits().shrunk(target, demand);
        self.oversized = if shrunk.is_some() {
            self.oversized + 1
        } else {
            0
        };
        if let Some(extent) = shrunk
            && self.oversized > PATIENCE
        {
            self.oversized = 0;
            self.resize(extent);
        }
    }

    /// Keeps as much for later prompts as the memory has room for.
    pub(super) fn shrink_kept(&mut self) {
        self.kept.shrink(self.room());
    }

    /// The bytes that are not reserved.
    pub(super) fn room(&self) -> usize {
        let available = self.shared.config.cache_bytes;
        available.saturating_sub(self.reserved())
    }

    pub(super) fn lose(&self, Lost { sequences, error }: Lost) {
        tracing::error!("the cache of the slots is lost: {error}");
        for sequence in sequences {
            self.shared.metrics.failed.increment(1);
            sequence.fail(error.clone());
        }
    }

    /// Returns whether the next step of the slots is likely to have the same sequences as this one.
    pub(super) fn is_steady(&self) -> bool {
        let queued = self.shared.queued.load(Ordering::SeqCst);
        queued == 0 && self.reading.is_empty() && self.alone.is_empty()
    }

    /// Returns whether no sequence decodes in a slot and no prompt is being read.
    pub(super) fn none_beside(&self) -> bool {
        let in_slots = self.slots.as_ref().map_or(0, |slots| slots.demand().slots);
        in_slots == 0 && self.reading.is_empty()
    }

    /// The sequences that decode, or will when their prompts are read.
    pub(super) fn sequences(&self) -> usize {
        let reading = self.reading.iter();
        let reading = reading.map(|reading| reading.submitted.request.choices);
        let in_slots = self.slots.as_ref().map_or(0, |slots| slots.demand().slots);
        self.alone.len() + in_slots + reading.sum::<usize>()
    }

    /// The bytes reserved for caches, apart from those kept.
    pub(super) fn reserved(&self) -> usize {
        let reading = self.reading.iter().map(|reading| reading.bytes);
        let alone = self.alone.iter().map(|alone| alone.bytes);
        let slots = self.slots.as_ref().map(Slots::bytes);
        reading.chain(alone).chain(slots).sum()
    }

    /// Gives memory back that a GPU's allocator holds for caches of sizes that are gone.
    pub(super) fn give_back_memory(&self) {
        let device = self.shared.model.device();
        let unused = device
            .memory_pool_usage()
            .map(|usage| usage.bytes_reserved.saturating_sub(usage.bytes_in_use));
        let most = (self.shared.config.cache_bytes / 4) as u64;
        if unused.is_some_and(|unused| unused > most) {
            device.memory_cleanup();
        }
    }
}
