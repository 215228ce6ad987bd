//! The size of a batch of slots: [`Extent`], and how it follows the demand.

use super::{BLOCK, CacheSize};

/// A number of slots, and the positions of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extent {
    pub slots: usize,
    pub positions: usize,
}

/// The limits of an extent.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExtentLimits {
    /// The bytes of a slot.
    pub size: CacheSize,
    /// The most slots.
    pub max_batch: usize,
    /// The most positions of a request.
    pub context: usize,
}

impl ExtentLimits {
    /// Returns the bytes of the slots.
    pub fn bytes(&self, extent: Extent) -> usize {
        match extent.slots {
            0 => 0,
            slots => slots.saturating_mul(self.size.bytes(extent.positions)),
        }
    }

    /// Returns an extent that holds the `demand` in `bytes`, or `None` if there is none.
    ///
    /// It is `now` or larger if that fits: other sizes need another graph and a copy. Slots and
    /// positions grow in steps, so that they do not grow for every request. If memory is short,
    /// idle slots go first, then the steps.
    pub fn plan(&self, now: Extent, demand: Extent, bytes: usize) -> Option<Extent> {
        let stepped = Extent {
            slots: demand.slots.next_power_of_two().min(self.max_batch),
            positions: self.stepped(demand.positions),
        };
        let larger = Extent {
            slots: now.slots.max(stepped.slots),
            positions: now.positions.max(stepped.positions),
        };
        let fits = |extent: &Extent| self.bytes(*extent) <= bytes;
        if demand.slots == 0 {
            return [now, Extent::default()].into_iter().find(fits);
        }
        let positions = demand.positions.next_multiple_of(BLOCK);
        let most = bytes / self.size.bytes(positions).max(1);
        let least = Extent {
            slots: most.clamp(demand.slots, stepped.slots.max(demand.slots)),
            positions,
        };
        let unchanged =
            (now.slots >= demand.slots && now.positions >= demand.positions).then_some(now);
        let plans = [larger, stepped, least];
        unchanged.into_iter().chain(plans).find(fits)
    }

    /// Returns a smaller extent if the demand takes at most a quarter of the slots or positions.
    pub fn shrunk(&self, now: Extent, demand: Extent) -> Option<Extent> {
        let twice = Extent {
            slots: (2 * demand.slots.max(1)).next_power_of_two().min(now.slots),
            positions: self.stepped(2 * demand.positions).min(now.positions),
        };
        let idle = 4 * demand.slots <= now.slots && twice.slots < now.slots;
        let unused = 4 * demand.positions <= now.positions && twice.positions < now.positions;
        (idle || unused).then_some(Extent {
            slots: if idle { twice.slots } else { now.slots },
            positions: if unused {
                twice.positions
            } else {
                now.positions
            },
        })
    }

    /// Rounds positions up by at most an eighth, to one of eight steps between powers of two.
    pub fn stepped(&self, positions: usize) -> usize {
        let step = (positions.next_power_of_two() / 16).max(BLOCK);
        let most = self.context.next_multiple_of(BLOCK);
        positions.max(1).next_multiple_of(step).min(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ExtentLimits = ExtentLimits {
        size: CacheSize {
            fixed: 0,
            per_block: 1,
        },
        max_batch: 12,
        context: 1 << 20,
    };

    fn extent(slots: usize, positions: usize) -> Extent {
        Extent { slots, positions }
    }

    #[test]
    fn extent_grows_in_steps_while_memory_lasts() {
        let plan = |now, demand, bytes| LIMITS.plan(now, demand, bytes);
        let none = Extent::default();
        assert_eq!(plan(none, extent(1, 100), 99), Some(extent(1, 128)));
        // 1300 positions are 21 blocks, and 22 in steps of 128 positions.
        assert_eq!(plan(none, extent(3, 1300), 88), Some(extent(4, 1408)));
        assert_eq!(
            plan(extent(8, 640), extent(3, 600), 80),
            Some(extent(8, 640))
        );
        assert_eq!(
            plan(extent(8, 640), extent(9, 600), 120),
            Some(extent(12, 640))
        );
        // Short of memory: no idle slots, then no steps, then as many slots as fit.
        assert_eq!(
            plan(extent(8, 640), extent(3, 1300), 88),
            Some(extent(4, 1408))
        );
        assert_eq!(plan(none, extent(3, 1300), 87), Some(extent(4, 1344)));
        assert_eq!(plan(none, extent(9, 1300), 231), Some(extent(11, 1344)));
        assert_eq!(plan(none, extent(9, 1300), 188), None);
        // Nothing runs: the slots stay, if no one needs their memory.
        assert_eq!(plan(extent(8, 640), none, 80), Some(extent(8, 640)));
        assert_eq!(plan(extent(8, 640), none, 79), Some(none));
    }

    #[test]
    fn extent_shrinks_to_twice_the_demand() {
        let shrunk = |now, demand| LIMITS.shrunk(now, demand);
        assert_eq!(shrunk(extent(8, 640), extent(3, 300)), None);
        assert_eq!(shrunk(extent(8, 640), extent(2, 300)), Some(extent(4, 640)));
        assert_eq!(shrunk(extent(8, 640), extent(1, 160)), Some(extent(2, 320)));
        assert_eq!(shrunk(extent(2, 640), extent(1, 600)), None);
        assert_eq!(shrunk(extent(1, 64), extent(1, 10)), None);
    }
}
