//! The ablation of SparQ's components: scores from a projection of queries and keys to r
//! directions.

mod basis;
mod state;

use burn::tensor::{DType, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use self::state::Basis;
use crate::cost::CacheShape;
use crate::methods::settings::Settings;
use crate::methods::step::Step;
use crate::methods::{Budget, Method, RANK, SparqConfig, Strategy, TOP_K};
use crate::ops::reference::{append, fill_invalid, select_and_attend};
use crate::{KvCache, KvCacheConfig, SparqError, Transfers};

/// The directions to which queries and keys are projected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Directions {
    /// Random orthonormal directions, different for each KV head: the authors' `LowRank`.
    Random,
    /// The principal directions of the cached keys, for each sequence and KV head.
    ///
    /// This projection to r dimensions keeps most of the keys' variance. The mean key adds the same
    /// to every score and is left out. The directions are computed in the first step, and again
    /// when the length has doubled since.
    Principal,
}

/// Approximate logits (q W) (K W)^T / sqrt(d) for an orthonormal W [d, r], then stages 2 and 3 of
/// SparQ.
///
/// A real implementation would store the projected keys beside the keys. Here every step computes
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Projection {
    /// The kind of directions.
    pub directions: Directions,
    /// r: the number of directions.
    pub rank: usize,
    /// k: the number of positions selected.
    pub top_k: usize,
    /// l: how many of them are the most recent.
    pub local_window: usize,
}

impl Projection {
    /// r directions and the paper's settings for k positions; see [`SparqConfig::new`].
    pub fn new(directions: Directions, rank: usize, top_k: usize) -> Self {
        let local_window = SparqConfig::new(rank, top_k).local_window;
        Self {
            directions,
            rank,
            top_k,
            local_window,
        }
    }

    fn sparq(&self) -> SparqConfig {
        SparqConfig::new(self.rank, self.top_k).with_local_window(self.local_window)
    }

    /// Computes W, [B, H_kv, d, r] in fp32.
    fn basis(&self, step: &Step) -> Result<Tensor<4>, SparqError> {
        let ([batch, kv_heads, _, d], r) = (step.q.dims(), self.rank);
        let device = step.q.device();
        let bases: Vec<f32> = match self.directions {
            Directions::Random => {
                let heads = (0..kv_heads).flat_map(|head| basis::random(d, r, head));
                let heads: Vec<f32> = heads.collect();
                heads.repeat(batch)
            }
            Directions::Principal => {
                let covariance = covariance(step).try_into_vec_as::<f32>();
                let covariance = covariance.map_err(|error| SparqError::Device {
                    reason: error.to_string(),
                })?;
                let heads = covariance.chunks(d * d);
                heads
                    .flat_map(|head| basis::principal(head, d, r))
                    .collect()
            }
        };
        Ok(Tensor::from_data(
            TensorData::new(bases, [batch, kv_heads, d, r]),
            (&device, DType::F32),
        ))
    }
}

/// The covariance of the valid keys times their number, [B, H_kv, d, d].
fn covariance(step: &Step) -> Tensor<4> {
    let keys = fill_invalid(step.keys(), step.valid(), 0.0);
    let counts = step.spans.counts(&step.q.device()).clamp_min(1.0);
    let mean = keys.clone().sum_dim(2) / counts.unsqueeze_dim::<4>(3);
    let keys = fill_invalid(keys - mean, step.valid(), 0.0);
    keys.clone().transpose().matmul(keys)
}

impl Strategy for Projection {
    fn presets() -> Vec<(&'static str, Self)> {
        let paper = |directions| Self::new(directions, RANK, TOP_K);
        vec![
            ("random-projection", paper(Directions::Random)),
            ("low-rank", paper(Directions::Principal)),
        ]
    }

    fn name(&self) -> &'static str {
        match self.directions {
            Directions::Random => "random-projection",
            Directions::Principal => "low-rank",
        }
    }

    fn settings(&mut self) -> Settings<'_> {
        vec![
            ("r", &mut self.rank),
            ("k", &mut self.top_k),
            ("l", &mut self.local_window),
        ]
    }

    fn follow_top_k(&mut self) {
        self.local_window = self.top_k / 4;
    }

    fn validate(&self, head_dim: usize) -> Result<(), SparqError> {
        self.sparq().validate(head_dim)
    }

    /// S r + 2 k d + 3 d + r + d r elements per head, with projected keys stored beside the keys.
    ///
    /// The last term is the projection itself. Up to k positions are read densely.
    fn transfers(&self, shape: &CacheShape, seq_len: usize) -> Transfers {
        if seq_len <= self.top_k {
            return Transfers::dense(shape, seq_len);
        }
        let (d, r) = (shape.head_dim, self.rank);
        Transfers::of_head(shape, (seq_len + 1 + d) * r + (2 * self.top_k + 3) * d)
    }

    fn is_sparse(&self, cache: &KvCacheConfig, seq_len: usize) -> bool {
        cache.attended(seq_len) > self.top_k
    }

    /// Half of the budget goes to the scores, as for SparQ.
    fn at_budget(&self, budget: &Budget) -> Result<Method, SparqError> {
        let with = |rank, top_k| Self::new(self.directions, rank, top_k);
        let half = Budget {
            ratio: budget.ratio / 2.0,
            ..*budget
        };
        // The ratio is at most 1.
        let most = (budget.head_dim as f64 * budget.ratio) as usize;
        let rank = (1..=most).rev().find(|&rank| half.fits(&with(rank, 1)));
        let rank = rank.unwrap_or(1);
        let top_k = budget.largest(1, |top_k| budget.fits(&with(rank, top_k)))?;
        Ok(with(rank, top_k).into())
    }

    fn decode(&self, q: Tensor<4>, cache: &mut KvCache) -> Result<Tensor<4>, SparqError> {
        let mut step = Step::new(q, cache)?;
        let len = cache.len();
        let kept = cache.states().get::<Basis>();
        let basis = match kept.and_then(|kept| kept.for_len(self, len)) {
            Some(basis) => basis,
            None => {
                let basis = self.basis(&step)?;
                cache.states_mut().set(Basis::new(self, basis.clone(), len));
                basis
            }
        };
        // (q W) (K W)^T is ((q W) W^T) K^T.
        let q = step.q.clone().matmul(basis.clone());
        let q1 = q.matmul(basis.transpose()) / (step.q.dims()[3] as f32).sqrt();
        let keys = step.keys().transpose();
        // The cache's sum of V follows a window only for methods with a sketch.
        step.tensors.v_sum = append::sum_values(&step.tensors.v, &step.spans);
        let (score, config) = (|q1: Tensor<4>| q1.matmul(keys.clone()), self.sparq());
        let attended = select_and_attend(&step.q, q1, score, &step.tensors, &step.spans, &config);
        Ok(step.output(attended.output))
    }
}
