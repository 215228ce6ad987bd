//! The sums of a panel in the order of decode steps: each row has the bits of a decode step.
//!
//! A decode step has the components of a query, and later the positions of a block, along the lanes
//! of vectors, and adds the lanes at the end. Here the rows lie along the lanes. The sum of a lane
//! of a decode step is then a vector of its own, and these are added as a decode step adds lanes.

#![allow(
    clippy::needless_range_loop,
    reason = "a closure or an iterator would not reliably be compiled for the instruction set"
)]

use super::{ELEMENTS, KeyBlock, Panel};
use crate::backends::flex::attend;
use crate::backends::flex::online_softmax::{bound, exp};
use crate::backends::flex::simd::{Kernel, Level, MAX_LANES, Simd};

/// Lanes whose sums are added at once: a part of the tree of all lanes.
const LEAVES: usize = 4;

/// The most parts of a tree.
const PARTS: usize = MAX_LANES / LEAVES;

impl Panel {
    /// Adds a whole block of [`attend::BLOCK`] positions, all of which every row attends to, to the
    /// state. d must be whole vectors.
    pub(in super::super) fn attend_in_order(
        &mut self,
        level: Level,
        block: &KeyBlock,
        weights: &mut [f32],
    ) {
        level.run(InOrder {
            panel: self,
            block,
            weights,
        });
    }
}

/// Adds a block of keys and values to the state of a panel.
struct InOrder<'a> {
    panel: &'a mut Panel,
    block: &'a KeyBlock,
    /// Working memory, [BLOCK, lanes].
    weights: &'a mut [f32],
}

impl Kernel for InOrder<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self {
            panel,
            block,
            weights,
        } = self;
        let weights = &mut weights[..attend::BLOCK * panel.vectors * S::LANES];
        for vector in 0..panel.vectors {
            panel.logits_in_order(simd, vector, block, weights);
        }
        if let Some(softcap) = panel.softcap {
            bound(simd, weights, softcap);
        }
        with_vectors!(S, panel.vectors, VECTORS => {
            let mut kept = [simd.splat(0.0); VECTORS];
            for vector in 0..VECTORS {
                kept[vector] = panel.weights_in_order(simd, vector, weights);
            }
            panel.add_values::<S, VECTORS>(simd, block, weights, kept);
        });
    }
}

/// Returns the sum of the parts of a tree.
#[inline(always)]
fn sum_parts<S: Simd>(simd: S, parts: [S::F; PARTS]) -> S::F {
    let sum = simd.add(parts[0], parts[1]);
    match S::LANES == MAX_LANES {
        true => simd.add(sum, simd.add(parts[2], parts[3])),
        false => sum,
    }
}

/// Returns the sum of the leaves of a part.
#[inline(always)]
fn sum_leaves<S: Simd>(simd: S, leaves: [S::F; LEAVES]) -> S::F {
    simd.add(
        simd.add(leaves[0], leaves[1]),
        simd.add(leaves[2], leaves[3]),
    )
}

impl Panel {
    /// Writes the logits of a vector of rows, [BLOCK, lanes].
    #[inline(always)]
    fn logits_in_order<S: Simd>(
        &self,
        simd: S,
        vector: usize,
        block: &KeyBlock,
        logits: &mut [f32],
    ) {
        let (dim, width, at) = (block.dim, self.vectors * S::LANES, vector * S::LANES);
        for first in (0..attend::BLOCK).step_by(ELEMENTS) {
            let mut keys = [&block.keys[..dim]; ELEMENTS];
            for (i, key) in keys.iter_mut().enumerate() {
                *key = &block.keys[(first + i) * dim..][..dim];
            }
            let mut parts = [[simd.splat(0.0); PARTS]; ELEMENTS];
            for part in 0..S::LANES / LEAVES {
                let mut dots = [[simd.splat(0.0); LEAVES]; ELEMENTS];
                for start in (0..dim).step_by(S::LANES) {
                    for leaf in 0..LEAVES {
                        let component = start + S::SUMS_ORDER[part * LEAVES + leaf];
                        let q = simd.load(&self.q[component * width + at..]);
                        for i in 0..ELEMENTS {
                            let key = simd.splat(keys[i][component]);
                            dots[i][leaf] = simd.mul_add(q, key, dots[i][leaf]);
                        }
                    }
                }
                for i in 0..ELEMENTS {
                    parts[i][part] = sum_leaves(simd, dots[i]);
                }
            }
            for i in 0..ELEMENTS {
                let logits = &mut logits[(first + i) * width + at..];
                simd.store(sum_parts(simd, parts[i]), logits);
            }
        }
    }

    /// Turns the logits of a vector of rows into weights in place, and updates the maxima and the
    /// sums of weights. Returns the factors that the new maxima apply to earlier weights.
    #[inline(always)]
    fn weights_in_order<S: Simd>(&mut self, simd: S, vector: usize, weights: &mut [f32]) -> S::F {
        let (width, at) = (self.vectors * S::LANES, vector * S::LANES);
        let before = simd.load(&self.largest[at..]);
        let mut largest = before;
        for position in 0..attend::BLOCK {
            largest = simd.max(simd.load(&weights[position * width + at..]), largest);
        }
        for position in 0..attend::BLOCK {
            let part = &mut weights[position * width + at..][..S::LANES];
            let weight = exp(simd, simd.sub(simd.load(part), largest));
            simd.store(weight, part);
        }
        let mut parts = [simd.splat(0.0); PARTS];
        for part in 0..S::LANES / LEAVES {
            let mut sums = [simd.splat(0.0); LEAVES];
            for leaf in 0..LEAVES {
                let lane = S::SUM_ORDER[part * LEAVES + leaf];
                for position in (lane..attend::BLOCK).step_by(S::LANES) {
                    let weight = simd.load(&weights[position * width + at..]);
                    sums[leaf] = simd.add(sums[leaf], weight);
                }
            }
            parts[part] = sum_leaves(simd, sums);
        }
        let mut now = [0.0; MAX_LANES];
        simd.store(largest, &mut now);
        let mut kept = [1.0; MAX_LANES];
        for lane in 0..S::LANES {
            let before = self.largest[at + lane];
            if before != now[lane] {
                kept[lane] = (before - now[lane]).exp();
            }
        }
        let kept = simd.load(&kept);
        let weight = simd.mul(simd.load(&self.weight[at..]), kept);
        let weight = simd.add(weight, sum_parts(simd, parts));
        simd.store(weight, &mut self.weight[at..]);
        simd.store(largest, &mut self.largest[at..]);
        kept
    }
}
