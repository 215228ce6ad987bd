//! A model on a machine: [`Setup`], with its predictions.

use serde::Serialize;
use sparq::cost::StepShape;
use sparq::methods::Dense;
use sparq::{Method, SparqConfig, SparqError};

use crate::{Machine, ModelShape};

/// A model in one element type on one machine, or split over several equal GPUs.
///
/// Several GPUs share each layer: each has its part of the KV heads, with their caches and query
/// heads, and its part of every matrix. Twice per layer an all-reduce sums their outputs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Setup {
    /// The model.
    pub model: ModelShape,
    /// The machine, or each of the GPUs.
    pub machine: Machine,
    /// Bytes per element of weights, K and V.
    pub element_bytes: usize,
    /// The number of GPUs that share each layer, a divisor of the number of KV heads.
    pub gpus: usize,
    /// Microseconds of one all-reduce. Each layer has two.
    pub all_reduce_us: f64,
    /// The share of the memory for weights and caches. The rest is for activations, workspaces and
    /// the driver.
    pub memory_share: f64,
}

/// A setup that is not possible.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The heads cannot be split over the GPUs.
    #[error("gpus: expected a divisor of the {kv_heads} KV heads of the model, found {found}")]
    Split {
        /// KV heads per layer.
        kv_heads: usize,
        /// The number of GPUs.
        found: usize,
    },
    /// A value is out of range.
    #[error("{name}: expected {expected}, found {found}")]
    Value {
        /// Name of the value.
        name: &'static str,
        /// The expected range.
        expected: &'static str,
        /// The value.
        found: f64,
    },
    /// The method does not fit the model.
    #[error(transparent)]
    Method(#[from] SparqError),
}

/// The parts of a step's time, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StepTime {
    /// The attention of all layers.
    pub attention_us: f64,
    /// The products with all matrices.
    pub weights_us: f64,
    /// The rest of all layers.
    pub layers_us: f64,
    /// All-reduces between GPUs.
    pub all_reduce_us: f64,
}

/// A prediction of lossless decoding.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Lossless {
    /// The share of drafted tokens that are accepted.
    pub acceptance: f64,
    /// n: the tokens of a draft, 0 if dense steps are faster.
    pub drafted: usize,
    /// The mean number of tokens that a draft and its verification give.
    pub tokens: f64,
    /// Microseconds per token of each sequence.
    pub token_us: f64,
    /// The tokens per second of all sequences together.
    pub tokens_per_s: f64,
}

impl StepTime {
    /// The sum of the parts.
    pub fn total_us(&self) -> f64 {
        self.attention_us + self.weights_us + self.layers_us + self.all_reduce_us
    }
}

impl Setup {
    /// A model on one machine, with nine tenths of the memory for weights and caches.
    ///
    /// ```
    /// use sparq::{Method, SparqConfig};
    /// use sparq_plan::{Machine, ModelShape, Setup};
    ///
    /// // Llama-3-8B.
    /// let model = ModelShape {
    ///     layers: 32, hidden_size: 4096, heads: 32, kv_heads: 8, head_dim: 128,
    ///     parameters: 8_030_261_248, read_parameters: 7_504_924_672,
    ///     sliding_window: None, sliding_layers: 0,
    /// };
    /// let setup = Setup::new(model, Machine::find("H100")?, 2);
    /// let sparq = Method::from(SparqConfig::new(32, 128));
    /// let us = |method| setup.step(&method, 8, 131_072).total_us();
    /// assert!(us(sparq) < 0.7 * us(Method::DENSE));
    /// # Ok::<(), sparq_plan::MachineError>(())
    /// ```
    pub fn new(model: ModelShape, machine: Machine, element_bytes: usize) -> Self {
        Self {
            model,
            machine,
            element_bytes,
            gpus: 1,
            all_reduce_us: 0.0,
            memory_share: 0.9,
        }
    }

    /// Checks that the heads can be split and that the values are in range.
    ///
    /// # Errors
    /// [`PlanError`], naming the first value out of range.
    pub fn validate(&self) -> Result<(), PlanError> {
        let kv_heads = self.model.kv_heads;
        if self.gpus == 0 || !kv_heads.is_multiple_of(self.gpus) {
            return Err(PlanError::Split {
                kv_heads,
                found: self.gpus,
            });
        }
        let share = self.memory_share;
        if !(share > 0.0 && share <= 1.0) {
            return Err(PlanError::Value {
                name: "memory share",
                expected: "above 0 and at most 1",
                found: share,
            });
        }
        if !(self.all_reduce_us.is_finite() && self.all_reduce_us >= 0.0) {
            return Err(PlanError::Value {
                name: "microseconds of an all-reduce",
                expected: "0 or more",
                found: self.all_reduce_us,
            });
        }
        Ok(())
    }

    /// The shape of the attention of one layer on one GPU.
    pub fn attention(&self, batch: usize) -> StepShape {
        StepShape {
            batch,
            heads: self.model.heads / self.gpus,
            kv_heads: self.model.kv_heads / self.gpus,
            head_dim: self.model.head_dim,
            element_bytes: self.element_bytes,
        }
    }

    /// Microseconds of the attention of a layer over `attended` positions.
    fn attention_us(&self, shape: &StepShape, attended: usize, method: &Method) -> f64 {
        let costs = &self.machine.costs;
        let mut us = costs.step_us(shape, attended, method);
        if let Method::Sparq(config) = method {
            // The mean of the layers that select and of those that reuse their positions.
            let anchors = config.anchors.of(self.model.layers) as f64 / self.model.layers as f64;
            us = anchors * us + (1.0 - anchors) * costs.reuse_us(shape, attended, config);
        }
        match (method, self.machine.dense_scores_per_us) {
            (Method::Dense(_), Some(rate)) => {
                let scores = (shape.batch * shape.heads * attended) as f64;
                us.max(costs.dense_us + scores / rate)
            }
            _ => us,
        }
    }

    /// Predicts the time of a step of `batch` sequences with `seq_len` positions each.
    pub fn step(&self, method: &Method, batch: usize, seq_len: usize) -> StepTime {
        let Self { model, machine, .. } = self;
        let shape = self.attention(batch);
        let attention = |(layers, attended): (usize, usize)| {
            layers as f64 * self.attention_us(&shape, attended, method)
        };
        let rate = machine.weights_rate(batch);
        let read = (model.read_parameters * self.element_bytes) as f64 / rate;
        let flops = (2 * batch) as f64 * model.read_parameters as f64;
        let arithmetic = machine.tflops.map_or(0.0, |tflops| flops / tflops / 1e6);
        let layers = model.layers as f64;
        StepTime {
            attention_us: model.layers_at(seq_len).into_iter().map(attention).sum(),
            weights_us: (read / 1e3).max(arithmetic) / self.gpus as f64,
            layers_us: layers * machine.layer_us,
            all_reduce_us: match self.gpus {
                1 => 0.0,
                _ => 2.0 * layers * self.all_reduce_us,
            },
        }
    }

    /// Predicts the tokens per second of all sequences together.
    pub fn tokens_per_s(&self, method: &Method, batch: usize, seq_len: usize) -> f64 {
        batch as f64 * 1e6 / self.step(method, batch, seq_len).total_us()
    }

    /// Predicts lossless decoding: drafts of n tokens by `draft`, each accepted with probability
    /// `acceptance`, and dense passes over n + 1 tokens that verify them. Chooses the n up to 15
    /// with the most tokens per second, 0 where no draft pays.
    ///
    /// A verification reads weights and caches once, as a dense step. Its arithmetic is that of n +
    /// 1 times the sequences.
    pub fn lossless(
        &self,
        draft: &SparqConfig,
        acceptance: f64,
        batch: usize,
        seq_len: usize,
    ) -> Lossless {
        let draft_us = self.step(&Method::from(*draft), batch, seq_len).total_us();
        let verify = Method::from(Dense { rows: draft.rows });
        let dense = self.step(&verify, batch, seq_len);
        let with = |drafted: usize| {
            let rows = batch * (drafted + 1);
            let weights_us = self.step(&Method::DENSE, rows, 1).weights_us;
            let verification = StepTime {
                weights_us,
                ..dense
            };
            let tokens: f64 = (0..=drafted).map(|n| acceptance.powi(n as i32)).sum();
            let us = drafted as f64 * draft_us + verification.total_us();
            Lossless {
                acceptance,
                drafted,
                tokens,
                token_us: us / tokens,
                tokens_per_s: batch as f64 * tokens * 1e6 / us,
            }
        };
        let none = Lossless {
            token_us: dense.total_us(),
            tokens_per_s: self.tokens_per_s(&verify, batch, seq_len),
            ..with(0)
        };
        (1..=15)
            .map(with)
            .fold(none, |best, next| match next.token_us < best.token_us {
                true => next,
                false => best,
            })
    }

    /// The bytes of the weights on one GPU.
    pub fn weight_bytes(&self) -> f64 {
        (self.model.parameters * self.element_bytes) as f64 / self.gpus as f64
    }

    /// The bytes of the cache of one sequence on one GPU.
    pub fn cache_bytes(&self, method: &Method, seq_len: usize) -> f64 {
        self.model.cache_bytes(method, seq_len, self.element_bytes) / self.gpus as f64
    }

    /// The bytes of one GPU for weights and caches.
    pub fn memory_bytes(&self) -> f64 {
        self.machine.memory_gb * 1e9 * self.memory_share
    }

    /// The largest number of sequences of `seq_len` positions that fit beside the weights.
    pub fn largest_batch(&self, method: &Method, seq_len: usize) -> usize {
        let left = self.memory_bytes() - self.weight_bytes();
        (left.max(0.0) / self.cache_bytes(method, seq_len)) as usize
    }

    /// The length from which attention with SparQ takes at most the time of dense attention, in the
    /// layers that attend to the most positions. `None` if there is none.
    pub fn break_even(&self, config: &SparqConfig, batch: usize) -> Option<usize> {
        let costs = &self.machine.costs;
        let at = costs.break_even(&self.attention(batch), config)?;
        let reached = match self.model.sliding_window {
            Some(window) if self.model.sliding_layers == self.model.layers => at <= window,
            _ => true,
        };
        reached.then_some(at)
    }
}

#[cfg(test)]
mod tests {
    use sparq::Sketch;
    use sparq::cost::StepCosts;
    use sparq::methods::Anchors;

    use super::*;
    use crate::MANY_SEQUENCES;

    /// Figures for calculations by hand.
    fn setup() -> Setup {
        let machine = Machine {
            name: "paper and pencil".into(),
            memory_gb: 0.1,
            gb_per_s: 100.0,
            weights_gb_per_s: 50.0,
            many_weights_gb_per_s: None,
            tflops: Some(1.0),
            dense_scores_per_us: None,
            layer_us: 3.0,
            costs: StepCosts {
                dense_us: 5.0,
                sparq_us: 15.0,
                gb_per_s: 100.0,
                scores_per_us: 1e3,
            },
        };
        Setup {
            memory_share: 0.8,
            ..Setup::new(ModelShape::example(), machine, 2)
        }
    }

    fn close(found: f64, expected: f64) {
        let difference = (found - expected).abs();
        assert!(difference <= 1e-9 * expected, "{found} {expected}");
    }

    #[test]
    fn setup_dense_step_matches_a_calculation() {
        let time = setup().step(&Method::DENSE, 2, 999);
        // A layer: 2 sequences x 4 heads x (2 x 999 + 2) x 64 elements of 2 bytes = 2 048 000
        // bytes, 20.48 us at 100 GB/s, plus 5.
        close(time.attention_us, 10.0 * (20.48 + 5.0));
        // 2 MB at 50 GB/s; the 4 million operations would take 4 us.
        close(time.weights_us, 40.0);
        close(time.layers_us, 30.0);
        close(time.total_us(), 254.8 + 70.0);
        close(setup().tokens_per_s(&Method::DENSE, 2, 999), 2e6 / 324.8);
    }

    #[test]
    fn setup_sparq_step_matches_a_calculation() {
        let config = SparqConfig::new(16, 128).with_sketch(Sketch::Bits4);
        let time = setup().step(&config.into(), 2, 1000);
        // 8 heads x (1000 x 16 codes of half a byte + (2 x 128 + 4) x 64 elements of 2 bytes), and
        // a score per position for 2 x 8 query heads.
        let bytes = 8.0 * (1000.0 * 16.0 / 2.0 + 260.0 * 64.0 * 2.0);
        close(time.attention_us, 10.0 * (15.0 + bytes / 1e5 + 16.0));
    }

    #[test]
    fn setup_reuse_layers_read_rows_alone() {
        let config = SparqConfig::new(16, 128).with_sketch(Sketch::Bits4);
        let us = |config: SparqConfig, len| setup().step(&config.into(), 2, len).attention_us;
        let shared = config.with_anchors(Anchors::Number(3));
        // Seven layers: 8 heads x ((2 x 128 + 2) x 64 elements of 2 bytes and 128 numbers of 4).
        let reuse = 5.0 + 8.0 * (258.0 * 64.0 * 2.0 + 128.0 * 4.0) / 1e5;
        close(us(shared, 1000), 0.3 * us(config, 1000) + 7.0 * reuse);
        close(us(shared, 100), us(config, 100));
        close(
            us(config.with_anchors(Anchors::Number(10)), 1000),
            us(config, 1000),
        );
    }

    #[test]
    fn dense_attention_is_limited_by_its_scores() {
        let free = setup();
        let mut limited = setup();
        limited.machine.dense_scores_per_us = Some(1e-3);
        let us = |setup: &Setup, method| setup.step(&method, 3, 1000).attention_us;
        let shape = free.attention(3);
        let scores = (3 * shape.heads * 1000) as f64;
        let layers = free.model.layers as f64;
        close(us(&limited, Method::DENSE), layers * (5.0 + scores / 1e-3));
        let sparq = Method::from(SparqConfig::new(8, 16));
        close(us(&limited, sparq), us(&free, sparq));
        limited.machine.dense_scores_per_us = Some(1e9);
        close(us(&limited, Method::DENSE), us(&free, Method::DENSE));
    }

    #[test]
    fn setup_lossless_matches_a_calculation() {
        let (setup, draft) = (
            setup(),
            SparqConfig::new(16, 128).with_sketch(Sketch::Bits4),
        );
        let [dense, step] =
            [Method::DENSE, draft.into()].map(|method| setup.step(&method, 2, 50_000).total_us());
        assert!(step < 0.9 * dense);
        let found = setup.lossless(&draft, 0.95, 2, 50_000);
        let (n, tokens) = (
            found.drafted,
            (1.0 - 0.95f64.powi(found.drafted as i32 + 1)) / 0.05,
        );
        // 2 (n + 1) vectors of 10^6 weights are multiplied at 10^12 operations per second, which is
        // faster than reading the weights up to 10 of them.
        let slower = ((4 * (n + 1)) as f64 - 40.0).max(0.0);
        close(found.tokens, tokens);
        close(found.token_us, (n as f64 * step + dense + slower) / tokens);
        close(found.tokens_per_s, 2e6 / found.token_us);
        assert!(found.token_us < dense && (1..15).contains(&n));
        // Drafts of dense steps' time never pay.
        let found = setup.lossless(&draft, 0.99, 2, 100);
        assert_eq!((found.drafted, found.tokens), (0, 1.0));
    }

    #[test]
    fn setup_many_sequences_are_bound_by_arithmetic() {
        // 2 x 100 x 10^6 operations at 10^12 per second take 200 us; reading takes 40 us.
        let us = |setup: &Setup, batch| setup.step(&Method::DENSE, batch, 10).weights_us;
        close(us(&setup(), 100), 200.0);
        let mut unknown = setup();
        unknown.machine.tflops = None;
        close(us(&unknown, 100), 40.0);
        unknown.machine.many_weights_gb_per_s = Some(100.0);
        close(us(&unknown, MANY_SEQUENCES - 1), 40.0);
        close(us(&unknown, MANY_SEQUENCES), 20.0);
    }

    #[test]
    fn setup_largest_batch_fills_the_memory() {
        let setup = setup();
        // 80 MB minus 2.4 MB of weights. A sequence takes 10 layers x 4 heads x 64 x (2 x 1000 x 2
        // bytes + 4 bytes of the sum of V).
        close(setup.cache_bytes(&Method::DENSE, 1000), 2560.0 * 4004.0);
        assert_eq!(setup.largest_batch(&Method::DENSE, 1000), 7);
        // The full sketch adds half of that.
        let full = SparqConfig::new(16, 128).into();
        close(setup.cache_bytes(&full, 1000), 2560.0 * 6004.0);
        assert_eq!(setup.largest_batch(&full, 1000), 5);
        assert_eq!(setup.largest_batch(&Method::DENSE, 100_000), 0);
    }

    #[test]
    fn setup_two_gpus_halve_the_work() {
        let two = Setup {
            gpus: 2,
            all_reduce_us: 7.0,
            ..setup()
        };
        two.validate().unwrap();
        let time = two.step(&Method::DENSE, 2, 999);
        close(time.attention_us, 10.0 * (10.24 + 5.0));
        close(time.weights_us, 20.0);
        close(time.all_reduce_us, 140.0);
        assert_eq!(two.largest_batch(&Method::DENSE, 1000), 15);
        for gpus in [0, 3, 8] {
            let error = Setup { gpus, ..setup() }.validate().unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("gpus: expected a divisor of the 4 KV heads of the model, found {gpus}")
            );
        }
    }

    #[test]
    fn setup_window_below_break_even_has_none() {
        let (mut setup, config) = (setup(), SparqConfig::new(16, 32));
        setup.machine.costs.scores_per_us = 1e6;
        let at = setup.break_even(&config, 1).unwrap();
        assert!(at > 100);
        setup.model.sliding_window = Some(at - 1);
        setup.model.sliding_layers = 5;
        assert_eq!(setup.break_even(&config, 1), Some(at));
        setup.model.sliding_layers = 10;
        assert_eq!(setup.break_even(&config, 1), None);
        setup.model.sliding_window = Some(at);
        assert_eq!(setup.break_even(&config, 1), Some(at));
    }
}
