//! The cost model: how long a decode step takes, from what it moves and from four figures of the device.
//!
//! A decode step does little arithmetic on many bytes, so its time is close to a line: what every step takes, whatever its size, and the bytes
//! of [`Transfers`] over the bandwidth at which they arrive. SparQ has a second slope, since ranking a position takes the processor's time as well: each
//! query head makes a score of it, which is compared with others.
//!
//! ```text
//! dense(S) = dense_us + bytes_dense(S) / bandwidth
//! sparq(S) = sparq_us + bytes_sparq(S) / bandwidth + B H S / scores_per_us      for S > k
//! ```
//!
//! Both are lines in S, so there is at most one length from which on SparQ is the quicker one for good: [`StepCosts::break_even`].

pub(crate) mod transfers;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use crate::{CacheShape, Components, GroupScore, Method, SparqConfig, SparqError, Transfers};

/// The sizes of one decode step apart from S: q [B, H, 1, d] on a cache [B, H_kv, S, d].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StepShape {
    /// B: sequences.
    pub batch: usize,
    /// H: query heads.
    pub heads: usize,
    /// H_kv: key/value heads, a divisor of H.
    pub kv_heads: usize,
    /// d: elements of one key or value.
    pub head_dim: usize,
    /// Bytes of one element of K and V.
    pub element_bytes: usize,
}

impl StepShape {
    /// What of it decides the bytes, heads summed over the batch.
    pub fn cache(&self) -> CacheShape {
        CacheShape {
            head_dim: self.head_dim,
            kv_heads: self.batch * self.kv_heads,
            element_bytes: self.element_bytes,
        }
    }

    /// Scores that SparQ makes of one position: one for each query head, or one for each group that scores as one query.
    pub fn scores_per_position(&self, config: &SparqConfig) -> usize {
        let as_one =
            config.group_score == GroupScore::Logits && config.components == Components::AbsSum;
        self.batch * if as_one { self.kv_heads } else { self.heads }
    }
}

/// What decides a step's time on a device; the [module](mod@crate::cost) has the equations.
///
/// The defaults fit steps measured on an H100 and on two cores of a server; for other GPUs they follow from the bandwidth alone. `sparq-bench fit` makes those of a
/// device from its result files. Any field can be set to what a device or a mode of
/// running needs:
///
/// ```
/// use sparq::cost::{StepCosts, StepShape};
/// use sparq::SparqConfig;
///
/// let costs = StepCosts { dense_us: 5.0, sparq_us: 15.0, gb_per_s: 3000.0, scores_per_us: 1e6 };
/// let step = StepShape { batch: 1, heads: 32, kv_heads: 32, head_dim: 128, element_bytes: 2 };
/// let config = SparqConfig::new(32, 128);
/// // 8192 positions of dense attention are 134 MB, so 45 us; SparQ moves an eighth of that.
/// assert!((costs.dense_us(&step, 8192) - 50.0).abs() < 1.0);
/// assert!(costs.sparq_us(&step, 8192, &config) < 25.0);
/// assert!(costs.break_even(&step, &config).is_some_and(|s| (1024..4096).contains(&s)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepCosts {
    /// Microseconds of every dense step: launches, and latencies behind each other.
    pub dense_us: f64,
    /// Microseconds of every SparQ step; more of both, for it scores, selects and attends one after the other.
    pub sparq_us: f64,
    /// Bandwidth at which the cache is read, in 10^9 bytes a second.
    pub gb_per_s: f64,
    /// Scores that are made, handed over and selected from in a microsecond, one for each query head and position.
    pub scores_per_us: f64,
}

/// A GPU as its maker describes it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Gpu {
    /// A part of the name that it gives itself.
    pub name: &'static str,
    /// Bandwidth of its memory, in 10^9 bytes a second.
    pub gb_per_s: f64,
    /// Memory, in 10^9 bytes.
    pub memory_gb: f64,
    /// Dense products of 16-bit matrices summed in fp32, in 10^12 operations a second.
    pub tflops: f64,
}

impl Gpu {
    const fn new(name: &'static str, gb_per_s: f64, memory_gb: f64, tflops: f64) -> Self {
        Self {
            name,
            gb_per_s,
            memory_gb,
            tflops,
        }
    }

    /// Every GPU that is known. A name is looked up from top to bottom.
    pub const ALL: [Gpu; 16] = [
        Gpu::new("B200", 8000.0, 180.0, 2250.0),
        Gpu::new("H200", 4800.0, 141.0, 989.0),
        Gpu::new("H100 NVL", 3900.0, 94.0, 835.0),
        Gpu::new("H100 PCIe", 2000.0, 80.0, 756.0),
        Gpu::new("H100", 3350.0, 80.0, 989.0),
        Gpu::new("A100-SXM4-80GB", 2039.0, 80.0, 312.0),
        Gpu::new("A100", 1555.0, 40.0, 312.0),
        Gpu::new("L40", 864.0, 48.0, 181.0),
        Gpu::new("A10", 600.0, 24.0, 125.0),
        Gpu::new("L4", 300.0, 24.0, 121.0),
        Gpu::new("T4", 320.0, 16.0, 65.0),
        Gpu::new("RTX 5090", 1792.0, 32.0, 209.0),
        Gpu::new("RTX 4090", 1008.0, 24.0, 165.0),
        Gpu::new("RTX 3090", 936.0, 24.0, 71.0),
        Gpu::new("MI300X", 5300.0, 192.0, 1307.0),
        Gpu::new("RX 7900 XTX", 960.0, 24.0, 123.0),
    ];

    /// The GPU whose name is a part of this one, in any case.
    ///
    /// ```
    /// use sparq::cost::Gpu;
    ///
    /// assert_eq!(Gpu::named("NVIDIA H100 80GB HBM3").unwrap().gb_per_s, 3350.0);
    /// assert!(Gpu::named("an abacus").is_none());
    /// ```
    pub fn named(name: &str) -> Option<&'static Gpu> {
        let name = name.to_lowercase();
        const { &Self::ALL }
            .iter()
            .find(|gpu| name.contains(&gpu.name.to_lowercase()))
    }
}

/// The share of a maker's bandwidth that a copy reaches: 3020 of 3350 GB/s on an H100.
pub const REACHED: f64 = 0.9;

/// A GPU that the table doesn't know.
const UNKNOWN_GPU: f64 = 500.0;

impl StepCosts {
    /// A processor with the native implementation: what fits the steps of 4096 to 65536 positions measured on two cores of a server.
    pub const CPU: StepCosts = StepCosts {
        dense_us: 0.0,
        sparq_us: 75.0,
        gb_per_s: 31.0,
        scores_per_us: 1075.0,
    };

    /// A GPU whose memory is read at `gb_per_s`, for steps that are captured and replayed: what fits the steps measured on an H100, where no pair of a dense
    /// and a SparQ step would have gone to the slower one.
    pub fn gpu(gb_per_s: f64) -> Self {
        Self {
            dense_us: 7.8,
            sparq_us: 14.8,
            gb_per_s,
            scores_per_us: 167.0 * gb_per_s,
        }
    }

    /// What is known of a device: of a GPU by its name, of anything else as of a CPU.
    pub fn of(device: &Device) -> Self {
        // A software rasterizer names itself too, but is no card.
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

    /// What is known of a GPU by the name that it gives itself; an unknown one is taken for slow.
    pub fn of_gpu(name: &str) -> Self {
        Self::gpu(Gpu::named(name).map_or(UNKNOWN_GPU, |gpu| REACHED * gpu.gb_per_s))
    }

    /// Checks that every figure is one that a device can have.
    ///
    /// # Errors
    /// [`SparqError::Value`], naming the first that is not.
    pub fn validate(&self) -> Result<(), SparqError> {
        for (what, value, least) in [
            ("dense_us", self.dense_us, 0.0),
            ("sparq_us", self.sparq_us, 0.0),
            ("gb_per_s", self.gb_per_s, f64::MIN_POSITIVE),
            ("scores_per_us", self.scores_per_us, f64::MIN_POSITIVE),
        ] {
            if !(value.is_finite() && value >= least) {
                return Err(SparqError::Value {
                    what,
                    expected: if least > 0.0 {
                        "a number above 0".into()
                    } else {
                        "0 or more".into()
                    },
                    found: value.to_string(),
                });
            }
        }
        Ok(())
    }

    /// Microseconds of a dense step at `seq_len` positions.
    pub fn dense_us(&self, step: &StepShape, seq_len: usize) -> f64 {
        self.dense_us + self.moving(Transfers::dense(&step.cache(), seq_len))
    }

    /// Microseconds of a SparQ step at `seq_len` positions; at most top_k of them are read densely.
    pub fn sparq_us(&self, step: &StepShape, seq_len: usize, config: &SparqConfig) -> f64 {
        if seq_len <= config.top_k {
            return self.dense_us(step, seq_len);
        }
        let scores = (seq_len * step.scores_per_position(config)) as f64;
        self.sparq_us
            + self.moving(Transfers::sparq(&step.cache(), seq_len, config))
            + scores / self.scores_per_us
    }

    /// Microseconds of a step of any method at `seq_len` positions; [`Method::Auto`] takes the quicker of its two.
    ///
    /// Methods without kernels of their own take what every dense step takes and the time of their bytes: no less than that.
    pub fn step_us(&self, step: &StepShape, seq_len: usize, method: &Method) -> f64 {
        match method {
            Method::Dense(_) => self.dense_us(step, seq_len),
            Method::Sparq(config) => self.sparq_us(step, seq_len, config),
            Method::Auto(auto) => {
                let sparq = self.sparq_us(step, seq_len, &auto.sparq);
                self.dense_us(step, seq_len).min(sparq)
            }
            other => self.dense_us + self.moving(other.transfers(&step.cache(), seq_len)),
        }
    }

    /// The length from which on a SparQ step takes no longer than a dense one, at this length and at every greater one; `None` where dense stays
    /// the quicker. It is above top_k.
    pub fn break_even(&self, step: &StepShape, config: &SparqConfig) -> Option<usize> {
        let saved = |seq_len| self.dense_us(step, seq_len) - self.sparq_us(step, seq_len, config);
        let (first, far) = (config.top_k + 1, config.top_k + 1 + FAR);
        let slope = (saved(far) - saved(first)) / FAR as f64;
        if saved(first) >= 0.0 && slope >= 0.0 {
            return Some(first);
        }
        if slope <= 0.0 {
            return None;
        }
        let crossing = first as f64 - saved(first) / slope;
        // Beyond what any cache holds, a length may not even fit in a usize.
        (crossing < LONGEST as f64).then(|| {
            let mut at = (crossing.ceil() as usize).max(first);
            // The line was taken through two points: rounding may be off by a position.
            while at > first && saved(at - 1) >= 0.0 {
                at -= 1;
            }
            while saved(at) < 0.0 {
                at += 1;
            }
            at
        })
    }

    /// Whether a SparQ step at `seq_len` positions takes no longer than a dense one; at most top_k positions are dense either way.
    pub fn sparq_pays(&self, step: &StepShape, seq_len: usize, config: &SparqConfig) -> bool {
        let at = self.break_even(step, config);
        at.is_some_and(|at| seq_len >= at)
    }

    fn moving(&self, transfers: Transfers) -> f64 {
        transfers.bytes() / self.gb_per_s / 1e3
    }
}

/// Positions between the two lengths that a slope is taken from.
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

    /// Devices, shapes and settings far apart from each other.
    fn grid() -> impl Iterator<Item = (StepCosts, StepShape, SparqConfig)> {
        let costs = [
            H100(),
            StepCosts::CPU,
            StepCosts::gpu(500.0),
            StepCosts {
                dense_us: 9.0,
                sparq_us: 1.0,
                ..H100()
            },
            StepCosts {
                scores_per_us: 1.0,
                ..H100()
            },
        ];
        costs.into_iter().flat_map(|costs| {
            [(1, 32), (1, 8), (1, 1), (64, 32), (8, 8)]
                .into_iter()
                .flat_map(move |(batch, kv_heads)| {
                    [(16, 64), (32, 128), (128, 1024)]
                        .into_iter()
                        .flat_map(move |(r, k)| {
                            [Sketch::Full, Sketch::Bits8, Sketch::Bits4].map(|sketch| {
                                (
                                    costs,
                                    step(batch, kv_heads),
                                    SparqConfig::new(r, k).with_sketch(sketch),
                                )
                            })
                        })
                })
        })
    }

    #[test]
    fn once_sparse_pays_it_keeps_paying_and_dense_is_quicker_before() {
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
    fn at_most_k_positions_are_dense() {
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
        assert!(
            at(1) > at(4) && at(4) > at(64),
            "{} {} {}",
            at(1),
            at(4),
            at(64)
        );
    }

    #[test]
    fn scores_cost_what_the_group_makes_of_them() {
        let config = SparqConfig::new(32, 128);
        let as_one = config
            .with_group_score(GroupScore::Logits)
            .with_components(Components::AbsSum);
        let slow = StepCosts {
            scores_per_us: 1e3,
            ..H100()
        };
        let time = |config| slow.sparq_us(&step(1, 8), 4096, config);
        assert_eq!(step(2, 8).scores_per_position(&config), 64);
        assert_eq!(step(2, 8).scores_per_position(&as_one), 16);
        assert!((time(&config) - time(&as_one) - 24.0 * 4.096).abs() < 1e-9);
    }

    #[test]
    fn a_gpu_is_known_by_the_longest_part_of_its_name() {
        assert_eq!(H100().gb_per_s, 0.9 * 3350.0);
        assert_eq!(StepCosts::of_gpu("NVIDIA H100 PCIe").gb_per_s, 1800.0);
        assert_eq!(StepCosts::of_gpu("an abacus"), StepCosts::gpu(500.0));
    }

    #[test]
    fn figures_that_no_device_has_are_named() {
        assert!(StepCosts::CPU.validate().is_ok() && H100().validate().is_ok());
        for (costs, what) in [
            (
                StepCosts {
                    gb_per_s: 0.0,
                    ..H100()
                },
                "gb_per_s: expected a number above 0, found 0",
            ),
            (
                StepCosts {
                    sparq_us: f64::NAN,
                    ..H100()
                },
                "sparq_us: expected 0 or more, found NaN",
            ),
        ] {
            assert_eq!(costs.validate().unwrap_err().to_string(), what);
        }
    }
}
