//! A histogram in shared memory that finds the bin of the k-th element.

use cubecl::prelude::*;

use super::reduce::prefix_sum;

/// Bins of a histogram.
pub(crate) const BINS: usize = 1024;

/// A histogram, and the scratch memory of a search in it.
#[derive(CubeType)]
pub(crate) struct Histogram {
    /// The count of each bin.
    pub counts: Shared<[Atomic<u32>]>,
    /// One number for each unit.
    pub partial: Shared<[u32]>,
    /// The bin that the last search found, and the count before it.
    pub found: Shared<[u32]>,
}

#[cube]
impl Histogram {
    /// Adds the scratch memory to `counts`.
    pub fn new(counts: Shared<[Atomic<u32>]>, #[comptime] units: u32) -> Histogram {
        Histogram {
            counts,
            partial: Shared::<[u32]>::new_slice(units as usize),
            found: Shared::<[u32]>::new_slice(2usize),
        }
    }

    /// Counts one element in `bin`.
    pub fn add(&self, bin: u32) {
        self.counts[bin as usize].fetch_add(1u32);
    }

    /// Finds the bin in which the count from bin 0 on reaches `needed`, and the count before that
    /// bin. `found` stays as it is if the count never reaches `needed`.
    pub fn find(&mut self, needed: u32, #[comptime] units: u32, #[comptime] plane: u32) {
        let unit = UNIT_POS as usize;
        let each = comptime!(BINS / units as usize);
        let mut own = 0u32;
        #[unroll]
        for i in 0..each {
            own += self.counts[unit * each + i].load();
        }
        let mut count = prefix_sum(own, &mut self.partial, units, plane).before;
        if count < needed && needed <= count + own {
            for i in 0..each {
                let bin = unit * each + i;
                let here = self.counts[bin].load();
                if count < needed && needed <= count + here {
                    self.found[0] = bin as u32;
                    self.found[1] = count;
                }
                count += here;
            }
        }
        sync_cube();
    }
}

/// Sets the first `bins` bins to 0.
#[cube]
pub(crate) fn clear(
    counts: &Shared<[Atomic<u32>]>,
    #[comptime] bins: usize,
    #[comptime] units: usize,
) {
    #[unroll]
    for i in 0..comptime!(bins / units) {
        counts[i * units + UNIT_POS as usize].store(0u32);
    }
}

/// Returns the bits of a key above the byte at `shift`.
#[cube]
pub(crate) fn known_bits(key: u32, shift: u32) -> u32 {
    // Two shifts, since the first pass of a radix select shifts out all 32 bits.
    (key >> (shift + 7u32)) >> 1u32
}

/// Returns the bin of the byte at `shift` of a key; the largest byte has bin 0.
#[cube]
pub(crate) fn digit_of(key: u32, shift: u32) -> u32 {
    255u32 - ((key >> shift) & 255u32)
}
