//! The ablation of SparQ's components: scores from a projection of queries and keys to r directions, instead of r components of the query.

use burn::tensor::{DType, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::basis;
use crate::methods::budget::Budget;
use crate::methods::settings::Settings;
use crate::methods::step::Step;
use crate::methods::{Dense, Method, Strategy};
use crate::ops::reference::attend_to_best;
use crate::ops::reference::write;
use crate::{CacheShape, KvCache, KvCacheConfig, SparqConfig, SparqError, Transfers};

/// Which directions queries and keys are projected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Directions {
    /// Random orthonormal ones, other ones for each key/value head: the authors' `LowRank`.
    Random,
    /// The principal directions of the keys in the cache, for each sequence and key/value head: the projection to r dimensions that keeps most of the keys' spread. What is the same in all
    /// keys adds the same to every score, and is left out. Set at the first step, and again whenever the length has doubled since.
    Principal,
}

/// Approximate logits (q W) (K W)^T / sqrt(d) for an orthonormal W [d, r], and from there on SparQ as in the paper.
///
/// The projected keys are what a real implementation would store beside the keys; here they are computed at every step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Projection {
    /// Which directions.
    pub directions: Directions,
    /// r: how many directions.
    pub rank: usize,
    /// k: positions kept in all.
    pub top_k: usize,
    /// l: how many of them are the latest.
    pub local_window: usize,
}

impl Projection {
    /// r directions and the paper's settings for k positions; see [`SparqConfig::new`].
    pub fn new(directions: Directions, rank: usize, top_k: usize) -> Self {
        Self {
            directions,
            rank,
            top_k,
            local_window: SparqConfig::new(rank, top_k).local_window,
        }
    }

    fn sparq(&self) -> SparqConfig {
        SparqConfig::new(self.rank, self.top_k).with_local_window(self.local_window)
    }

    /// W, [B, H_kv, d, r] in fp32.
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
                let spread = spread(step).try_into_vec_as::<f32>();
                let spread = spread.map_err(|error| SparqError::Device {
                    reason: error.to_string(),
                })?;
                let heads = spread.chunks(d * d);
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

/// The sum over the valid keys of their deviations from the mean, times themselves: [B, H_kv, d, d].
fn spread(step: &Step) -> Tensor<4> {
    let (keys, device) = (step.keys(), step.q.device());
    let shape = keys.dims();
    let hidden = step
        .valid()
        .map(|valid| valid.bool_not().unsqueeze_dim::<4>(3).expand(shape));
    let silent = |keys: Tensor<4>| match &hidden {
        Some(hidden) => keys.mask_fill(hidden.clone(), 0.0),
        None => keys,
    };
    let keys = silent(keys);
    let counts = step.rows.counts(&device).clamp_min(1.0);
    let mean = keys.clone().sum_dim(2) / counts.unsqueeze_dim::<4>(3);
    let keys = silent(keys - mean);
    keys.clone().transpose().matmul(keys)
}

impl Strategy for Projection {
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

    fn transfers(&self, shape: &CacheShape, seq_len: usize) -> Transfers {
        Transfers::projection(shape, seq_len, self)
    }

    fn is_sparse(&self, cache: &KvCacheConfig, seq_len: usize) -> bool {
        cache.attended(seq_len) > self.top_k
    }

    /// Half for the scores, as for SparQ.
    fn at_budget(&self, budget: &Budget) -> Result<Method, SparqError> {
        let with = |rank, top_k| Self::new(self.directions, rank, top_k);
        let half = Budget {
            ratio: budget.ratio / 2.0,
            ..*budget
        };
        let most = budget
            .head_dim
            .min((budget.head_dim as f64 * budget.ratio) as usize);
        let rank = (1..=most.max(1))
            .rev()
            .find(|&rank| half.fits(&with(rank, 1)))
            .unwrap_or(1);
        let top_k = budget.largest(1, |top_k| budget.fits(&with(rank, top_k)))?;
        Ok(with(rank, top_k).into())
    }

    fn decode(&self, q: Tensor<4>, cache: &mut KvCache) -> Result<Tensor<4>, SparqError> {
        if !self.is_sparse(cache.config(), cache.len()) {
            return Dense.decode(q, cache);
        }
        let mut step = Step::new(q, cache)?;
        let basis = match cache.basis(self) {
            Some(basis) => basis,
            None => {
                let basis = self.basis(&step)?;
                cache.keep_basis(self, basis.clone());
                basis
            }
        };
        let d = step.q.dims()[3] as f32;
        // (q W) (K W)^T is ((q W) W^T) K^T.
        let q = step
            .q
            .clone()
            .matmul(basis.clone())
            .matmul(basis.transpose());
        let keys = step.keys().transpose();
        // The cache's sum follows a window only for the methods that have a sketch.
        step.tensors.v_sum = write::sum_values(&step.tensors.v, &step.rows);
        let attended = attend_to_best(
            &step.q,
            q / d.sqrt(),
            |q1| q1.matmul(keys.clone()),
            &step.tensors,
            &step.rows,
            &self.sparq(),
        );
        Ok(step.output(attended.output))
    }
}

impl From<Projection> for Method {
    fn from(method: Projection) -> Self {
        Method::Projection(method)
    }
}
