//! Goals for the time of a decode step on one H100, with fp16, r = 32 and k = 128, captured.

use sparq::Sketch;
use sparq_measure::shape::Shape;

/// The goal of a shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Goal {
    pub shape: Shape,
    /// Microseconds with the full sketch.
    pub full_us: f64,
    /// Microseconds with the 4-bit sketch.
    pub bits4_us: f64,
}

impl Goal {
    const fn new(
        (batch, kv_heads, seq_len): (usize, usize, usize),
        full_us: f64,
        bits4_us: f64,
    ) -> Self {
        Self {
            shape: Shape::new(batch, 32, kv_heads, 128, seq_len),
            full_us,
            bits4_us,
        }
    }

    /// The goal for this sketch in microseconds, if there is one.
    pub fn us(&self, sketch: Sketch) -> Option<f64> {
        match sketch {
            Sketch::Full => Some(self.full_us),
            Sketch::Bits8 => None,
            Sketch::Bits4 => Some(self.bits4_us),
        }
    }
}

/// The goals, set from PyTorch's fastest dense attention and from the floors at the copy bandwidth
/// of the GPU.
pub const GOALS: [Goal; 9] = [
    Goal::new((64, 32, 4096), 260.0, 125.0),
    Goal::new((16, 32, 16_384), 220.0, 80.0),
    Goal::new((8, 8, 131_072), 210.0, 70.0),
    Goal::new((32, 8, 16_384), 120.0, 42.0),
    Goal::new((64, 8, 4096), 85.0, 40.0),
    Goal::new((1, 32, 16_384), 24.0, 18.0),
    Goal::new((1, 8, 131_072), 36.0, 22.0),
    Goal::new((1, 8, 16_384), 17.0, 15.0),
    Goal::new((1, 8, 4096), 19.0, 17.0),
];

#[cfg(test)]
mod tests {
    use sparq::{SparqConfig, Transfers};
    use sparq_measure::shape::CacheType;

    use super::*;

    #[test]
    fn goals_are_above_the_floor() {
        // The copy bandwidth in GB/s of the GPU that the goals are for.
        let us = |bytes: f64| bytes / 3020.0 / 1e3;
        for goal in GOALS {
            let shape = goal.shape;
            let cache = shape.cache(CacheType::F16);
            for sketch in [Sketch::Full, Sketch::Bits4] {
                let config = SparqConfig::new(32, 128).with_sketch(sketch);
                let floor = us(Transfers::sparq(&cache, shape.seq_len, &config).bytes());
                let found = goal.us(sketch).unwrap();
                assert!(found > floor, "{shape} {sketch:?}: {found} and {floor}");
            }
            assert!(goal.bits4_us <= goal.full_us);
        }
    }
}
