//! The cost model: the bytes of a decode step, and the time it takes on a device.
//!
//! A decode step does little arithmetic on many bytes, so its time is close to a line: a fixed
//! part, and the bytes of [`Transfers`] over the memory bandwidth. SparQ has a second slope, since
//! the processor computes one score per query head and position, and selects among them.
//!
//! ```text
//! dense(S) = dense_us + bytes_dense(S) / bandwidth
//! sparq(S) = sparq_us + bytes_sparq(S) / bandwidth + B H S / scores_per_us      for S > k
//! ```
//!
//! Rows in codes of 8 bits count as 16-bit floats here: see [`StepCosts::dense_rows_us`].
//!
//! Both are lines in S, so there is at most one length from which SparQ is faster:
//! [`StepCosts::break_even`].

mod gpu;
mod transfers;

pub use crate::cache::CacheMemory;
pub use gpu::{Gpu, REACHED};
pub use transfers::{CacheShape, Transfers};

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use crate::methods::{Components, GroupScore};
use crate::{Method, RowFormat, SparqConfig, SparqError};

/// The sizes of one decode step apart from S: q [B, H, 1, d] on a cache [B, H_kv, S, d].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StepShape {
    /// B: sequences.
    pub batch: usize,
    /// H: query heads.
    pub heads: usize,
    /// H_kv: KV heads, a divisor of H.
    pub kv_heads: usize,
    /// d: elements of one key or value.
    pub head_dim: usize,
    /// Bytes of one element of K and V.
    pub element_bytes: usize,
}

impl StepShape {
    /// The sizes that determine the bytes, with heads summed over the batch.
    pub fn cache(&self) -> CacheShape {
        CacheShape {
            head_dim: self.head_dim,
            kv_heads: self.batch * self.kv_heads,
            layers: 1,
            element_bytes: self.element_bytes,
        }
    }

    /// The scores that SparQ computes per position: one per query head, or one per group that
    /// scores as one query.
    pub fn scores_per_position(&self, config: &SparqConfig) -> usize {
        let as_one =
            config.group_score == GroupScore::Logits && config.components == Components::AbsSum;
        self.batch * if as_one { self.kv_heads } else { self.heads }
    }
}

/// The figures that determine a step's time on a device. The [module](mod@crate::cost) has the
/// equations.
///
/// The defaults fit steps measured on an H100 and on two cores of a server. For other GPUs they
/// follow from the bandwidth alone. `sparq-bench fit` computes the figures of a device from its
/// result files. Any field can be set:
///
/// ```
/// use sparq::cost::{StepCosts, StepShape};
/// use sparq::SparqConfig;
///
/// let costs = StepCosts { dense_us: 5.0, sparq_us: 15.0, gb_per_s: 3000.0, scores_per_us: 1e6 };
/// let step = StepShape { batch: 1, heads: 32, kv_heads: 32, head_dim: 128, element_bytes: 2 };
/// let config = SparqConfig::new(32, 128);
/// // Dense attention over 8192 positions moves 134 MB, so 45 us. SparQ moves an eighth of that.
/// assert!((costs.dense_us(&step, 8192) - 50.0).abs() < 1.0);
/// assert!(costs.sparq_us(&step, 8192, &config) < 25.0);
/// assert!(costs.break_even(&step, &config).is_some_and(|s| (1024..4096).contains(&s)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepCosts {
    /// The fixed part of a dense step in microseconds: launches and latencies.
    pub dense_us: f64,
    /// The fixed part of a SparQ step in microseconds. It is larger: three stages run one after
    /// another.
    pub sparq_us: f64,
    /// The bandwidth at which the cache is read, in 10^9 bytes per second.
    pub gb_per_s: f64,
    /// Scores computed and selected from per microsecond, one per query head and position.
    pub scores_per_us: f64,
}

/// The bandwidth assumed for an unknown GPU, in 10^9 bytes per second.
const UNKNOWN_GPU: f64 = 500.0;

impl StepCosts {
    /// A CPU with the native implementation.
    ///
    /// Fits steps of 4096 to 65536 positions measured on two cores of a server.
    pub const CPU: StepCosts = StepCosts {
        dense_us: 0.0,
        sparq_us: 75.0,
        gb_per_s: 31.0,
        scores_per_us: 1075.0,
    };

    /// A GPU whose memory is read at `gb_per_s`, for captured steps.
    ///
    /// Fits the steps measured on an H100: for every measured pair of a dense and a SparQ step it
    /// predicts the faster one.
    pub fn gpu(gb_per_s: f64) -> Self {
        Self {
            dense_us: 7.8,
            sparq_us: 14.8,
            gb_per_s,
            scores_per_us: 167.0 * gb_per_s,
        }
    }

    /// The figures of a device: of a GPU by its name, else of a CPU.
    pub fn of(device: &Device) -> Self {
        // A software rasterizer reports a name too, but is no GPU.
        #[cfg(feature = "cube")]
        if let Some(identity) = device
            .identity()
            .filter(|identity| identity.physical.is_some())
        {
            return Self::of_gpu(&identity.name);
        }
        let _ = device;
        Self::CPU
    }

    /// The figures of a GPU by the name that it reports. An unknown GPU counts as slow.
    pub fn of_gpu(name: &str) -> Self {
        Self::gpu(Gpu::named(name).map_or(UNKNOWN_GPU, |gpu| REACHED * gpu.gb_per_s))
    }

    /// Checks the figures.
    ///
    /// # Errors
    /// [`SparqError::Value`] for the first figure that no device can have.
    pub fn validate(&self) -> Result<(), SparqError> {
        for (what, value, least) in [
            ("dense_us", self.dense_us, 0.0),
            ("sparq_us", self.sparq_us, 0.0),
            ("gb_per_s", self.gb_per_s, f64::MIN_POSITIVE),
            ("scores_per_us", self.scores_per_us, f64::MIN_POSITIVE),
        ] {
            if !(value.is_finite() && value >= least) {
                let expected = if least > 0.0 {
                    "a number above 0"
                } else {
                    "0 or more"
                };
                return Err(SparqError::value(what, expected, value));
            }
        }
        Ok(())
    }

    /// Microseconds of a dense step at `seq_len` positions in floats.
    pub fn dense_us(&self, step: &StepShape, seq_len: usize) -> f64 {
        self.dense_rows_us(step, seq_len, RowFormat::Float)
    }

    /// [`StepCosts::dense_us`] of a cache that stores K and V as `rows`.
    ///
    /// Codes of 8 bits take the time of floats in 16 bits: they halve the bytes, but the
    /// instructions that turn them into numbers bound the step on every device measured.
    pub fn dense_rows_us(&self, step: &StepShape, seq_len: usize, rows: RowFormat) -> f64 {
        self.dense_us + self.moving(Transfers::dense(&timed_as(step, rows), seq_len))
    }

    /// Microseconds of a SparQ step at `seq_len` positions. Up to top_k positions are read densely.
    pub fn sparq_us(&self, step: &StepShape, seq_len: usize, config: &SparqConfig) -> f64 {
        if seq_len <= config.top_k {
            return self.dense_rows_us(step, seq_len, config.rows);
        }
        let scores = (seq_len * step.scores_per_position(config)) as f64;
        let (cache, floats) = (
            timed_as(step, config.rows),
            config.with_rows(RowFormat::Float),
        );
        self.sparq_us
            + self.moving(Transfers::sparq(&cache, seq_len, &floats))
            + scores / self.scores_per_us
    }

    /// Microseconds of a step of a layer that reuses the positions of another one: the launches of
    /// dense attention, on k positions.
    pub fn reuse_us(&self, step: &StepShape, seq_len: usize, config: &SparqConfig) -> f64 {
        self.dense_us + self.moving(Transfers::reuse(&step.cache(), seq_len, config))
    }

    /// Microseconds of a step of any method at `seq_len` positions.
    ///
    /// [`Method::Auto`] takes the faster of its two. Methods without kernels count the fixed part
    /// of a dense step and the time of their bytes, which is a lower bound.
    pub fn step_us(&self, step: &StepShape, seq_len: usize, method: &Method) -> f64 {
        match method {
            Method::Dense(dense) => self.dense_rows_us(step, seq_len, dense.rows),
            Method::Sparq(config) => self.sparq_us(step, seq_len, config),
            Method::Auto(auto) => {
                let sparq = self.sparq_us(step, seq_len, &auto.sparq);
                let dense = self.dense_rows_us(step, seq_len, auto.sparq.rows);
                dense.min(sparq)
            }
            other => self.dense_us + self.moving(other.transfers(&step.cache(), seq_len)),
        }
    }

    /// Returns the length from which a SparQ step takes no longer than a dense one, at all longer
    /// lengths.
    ///
    /// `None` if dense attention stays faster. The length is above top_k.
    pub fn break_even(&self, step: &StepShape, config: &SparqConfig) -> Option<usize> {
        let dense = |seq_len| self.dense_rows_us(step, seq_len, config.rows);
        let saved = |seq_len| dense(seq_len) - self.sparq_us(step, seq_len, config);
        let (first, far) = (config.top_k + 1, config.top_k + 1 + FAR);
        let slope = (saved(far) - saved(first)) / FAR as f64;
        if saved(first) >= 0.0 && slope >= 0.0 {
            return Some(first);
        }
        if slope <= 0.0 {
            return None;
        }
        let crossing = first as f64 - saved(first) / slope;
        // A length longer than any cache may not fit in a usize.
        (crossing < LONGEST as f64).then(|| {
            let mut at = (crossing.ceil() as usize).max(first);
            // Rounding of the line through two points may be off by a position.
            while at > first && saved(at - 1) >= 0.0 {
                at -= 1;
            }
            while saved(at) < 0.0 {
                at += 1;
            }
            at
        })
    }

    /// Returns whether a SparQ step at `seq_len` positions is predicted to take no longer than a
    /// dense one.
    ///
    /// False up to top_k positions, where both are dense.
    pub fn sparq_pays(&self, step: &StepShape, seq_len: usize, config: &SparqConfig) -> bool {
        let at = self.break_even(step, config);
        at.is_some_and(|at| seq_len >= at)
    }

    fn moving(&self, transfers: Transfers) -> f64 {
        transfers.bytes() / self.gb_per_s / 1e3
    }
}

/// The cache in floats that takes as long to read as one with these rows.
fn timed_as(step: &StepShape, rows: RowFormat) -> CacheShape {
    let mut cache = step.cache();
    if rows == RowFormat::Int8 {
        cache.element_bytes = 2;
    }
    cache
}

/// The positions between the two lengths that determine a slope.
const FAR: usize = 1 << 20;

/// Longer than any cache.
const LONGEST: usize = 1 << 40;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sketch;

    const H100: fn() -> StepCosts = || StepCosts::of_gpu("NVIDIA H100 80GB HBM3");

    fn step(batch: usize, kv_heads: usize) -> StepShape {
        StepShape {
            batch,
            heads: 32,
            kv_heads,
            head_dim: 128,
            element_bytes: 2,
        }
    }

    fn slow_scores(scores_per_us: f64) -> StepCosts {
        StepCosts {
            scores_per_us,
            ..H100()
        }
    }

    /// A wide range of devices, shapes and settings.
    fn grid() -> Vec<(StepCosts, StepShape, SparqConfig)> {
        let cheap_sparq = StepCosts {
            dense_us: 9.0,
            sparq_us: 1.0,
            ..H100()
        };
        let (cpu, slow) = (StepCosts::CPU, StepCosts::gpu(500.0));
        let mut grid = Vec::new();
        for costs in [H100(), cpu, slow, cheap_sparq, slow_scores(1.0)] {
            for (batch, kv_heads) in [(1, 32), (1, 8), (1, 1), (64, 32), (8, 8)] {
                for (r, k) in [(16, 64), (32, 128), (128, 1024)] {
                    for sketch in [Sketch::Full, Sketch::Bits8, Sketch::Bits4] {
                        let config = SparqConfig::new(r, k).with_sketch(sketch);
                        grid.push((costs, step(batch, kv_heads), config));
                    }
                }
            }
        }
        grid
    }

    #[test]
    fn sparq_pays_from_the_break_even_length_on() {
        let (mut pays, mut never) = (0, 0);
        for (costs, step, config) in grid() {
            let saved = |s: usize| costs.dense_us(&step, s) - costs.sparq_us(&step, s, &config);
            match costs.break_even(&step, &config) {
                Some(at) => {
                    pays += 1;
                    assert!(at > config.top_k);
                    for s in [at, at + 1, 2 * at, 1 << 20, 1 << 24] {
                        assert!(saved(s.max(at)) >= 0.0, "{costs:?} {step:?} {config:?} {s}");
                        assert!(costs.sparq_pays(&step, s.max(at), &config));
                    }
                    assert!(at == config.top_k + 1 || saved(at - 1) < 0.0);
                    assert!(!costs.sparq_pays(&step, at - 1, &config));
                }
                None => {
                    never += 1;
                    assert!(saved(1 << 24) < 0.0, "{costs:?} {step:?} {config:?}");
                    assert!(!costs.sparq_pays(&step, 1 << 24, &config));
                }
            }
        }
        assert!(pays > 50 && never > 20, "{pays} {never}");
    }

    #[test]
    fn up_to_k_positions_are_dense() {
        for (costs, step, config) in grid() {
            for s in [1, config.top_k / 2, config.top_k] {
                assert_eq!(costs.dense_us(&step, s), costs.sparq_us(&step, s, &config));
                assert!(!costs.sparq_pays(&step, s, &config));
            }
        }
    }

    #[test]
    fn more_sequences_break_even_sooner() {
        let config = SparqConfig::new(32, 128);
        let at = |batch| H100().break_even(&step(batch, 8), &config).unwrap();
        let lengths = [1, 4, 64].map(at);
        assert!(lengths.is_sorted_by(|a, b| a > b), "{lengths:?}");
    }

    #[test]
    fn groups_that_score_as_one_cost_less() {
        let config = SparqConfig::new(32, 128);
        let as_one = config
            .with_group_score(GroupScore::Logits)
            .with_components(Components::AbsSum);
        let time = |config| slow_scores(1e3).sparq_us(&step(1, 8), 4096, config);
        assert_eq!(step(2, 8).scores_per_position(&config), 64);
        assert_eq!(step(2, 8).scores_per_position(&as_one), 16);
        assert!((time(&config) - time(&as_one) - 24.0 * 4.096).abs() < 1e-9);
    }

    #[test]
    fn a_gpu_matches_its_most_specific_name() {
        assert_eq!(H100().gb_per_s, 0.9 * 3350.0);
        assert_eq!(StepCosts::of_gpu("NVIDIA H100 PCIe").gb_per_s, 1800.0);
        assert_eq!(StepCosts::of_gpu("an unknown card"), StepCosts::gpu(500.0));
    }

    #[test]
    fn impossible_figures_are_named() {
        assert!(StepCosts::CPU.validate().is_ok() && H100().validate().is_ok());
        let (mut bandwidth, mut fixed) = (H100(), H100());
        bandwidth.gb_per_s = 0.0;
        fixed.sparq_us = f64::NAN;
        for (costs, what) in [
            (bandwidth, "gb_per_s: expected a number above 0, found 0"),
            (fixed, "sparq_us: expected 0 or more, found NaN"),
        ] {
            assert_eq!(costs.validate().unwrap_err().to_string(), what);
        }
    }
}
