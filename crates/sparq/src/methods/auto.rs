//! Dense attention or SparQ, whichever the cost model expects to be faster.

use burn::tensor::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::{Anchors, Budget, Dense, Method, Settings, SparqConfig, Strategy};
use crate::cost::{CacheShape, StepCosts, StepShape};
use crate::{KvCache, KvCacheConfig, RowFormat, Sketch, SparqError, Transfers};

/// SparQ for long caches and dense attention for short ones.
///
/// Each step chooses by the sizes and the length of the cache. As far as [`StepCosts`] knows the
/// device, no step is slower than dense attention. A growing cache changes from dense to SparQ
/// once, at [`StepCosts::break_even`]. It holds the sketch from the start. A captured step replays
/// the method that it was captured with; [`CapturedStep`](crate::CapturedStep) captures the step
/// again when the choice changes.
///
/// ```
/// use burn::tensor::Device;
/// use sparq::methods::Auto;
/// use sparq::{KvCacheConfig, Method, SparqConfig};
///
/// let config = SparqConfig::new(32, 128);
/// let auto = Method::from(Auto::new(config, 4, &Device::default()));
/// let cache = KvCacheConfig::new(1, 8, 128).with_sketch(auto.sketch());
/// assert_eq!(auto.at(&cache, 128), Method::DENSE);
/// assert_eq!(auto.at(&cache, 1 << 20), Method::from(config));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auto {
    /// The settings of SparQ.
    pub sparq: SparqConfig,
    /// g: query heads per KV head.
    pub group_size: usize,
    /// The costs of steps on the device.
    pub costs: StepCosts,
}

impl Auto {
    /// Chooses between dense attention and SparQ with these settings, g query heads per KV head.
    pub fn new(sparq: SparqConfig, group_size: usize, device: &Device) -> Self {
        Self {
            sparq,
            group_size,
            costs: StepCosts::of(device),
        }
    }

    /// The method of a step on such a cache with `seq_len` positions, dense attention or SparQ.
    pub fn at(&self, cache: &KvCacheConfig, seq_len: usize) -> Method {
        let (step, seq_len) = (self.step(cache), cache.attended(seq_len));
        match self.costs.sparq_pays(&step, seq_len, &self.sparq) {
            true => Method::Sparq(self.sparq),
            false => Method::Dense(Dense {
                rows: self.sparq.rows,
            }),
        }
    }

    /// Refuses a query that does not have g heads per KV head, for which the costs do not hold.
    pub(super) fn check_query(&self, q: &Tensor<4>, cache: &KvCache) -> Result<(), SparqError> {
        let (expected, [batch, heads, len, d]) = (self.step(cache.config()).heads, q.dims());
        if heads == expected {
            return Ok(());
        }
        let what = "query [batch, kv_heads x group_size of the method, 1, head_dim]";
        Err(SparqError::shape(what, [batch, expected, len, d], q.dims()))
    }

    /// The sizes of a step on such a cache.
    pub fn step(&self, cache: &KvCacheConfig) -> StepShape {
        StepShape {
            batch: cache.batch,
            heads: cache.kv_heads * self.group_size,
            kv_heads: cache.kv_heads,
            head_dim: cache.head_dim,
            element_bytes: DType::from(cache.dtype).size(),
        }
    }
}

impl Strategy for Auto {
    /// None: a choice between two methods has no name of its own.
    fn presets() -> Vec<(&'static str, Self)> {
        Vec::new()
    }

    fn name(&self) -> &'static str {
        "auto"
    }

    fn settings(&mut self) -> Settings<'_> {
        self.sparq.settings()
    }

    fn validate(&self, head_dim: usize) -> Result<(), SparqError> {
        self.costs.validate()?;
        self.sparq.validate(head_dim)
    }

    fn rows(&self) -> RowFormat {
        self.sparq.rows
    }

    fn sketch(&self) -> Option<Sketch> {
        Some(self.sparq.sketch)
    }

    fn anchors(&self) -> Anchors {
        self.sparq.anchors
    }

    /// The bytes of SparQ. [`Method::at`] returns the method that a step takes.
    fn transfers(&self, shape: &CacheShape, seq_len: usize) -> Transfers {
        self.sparq.transfers(shape, seq_len)
    }

    fn is_sparse(&self, cache: &KvCacheConfig, seq_len: usize) -> bool {
        self.at(cache, seq_len).is_sparse(cache, seq_len)
    }

    fn at_budget(&self, budget: &Budget) -> Result<Method, SparqError> {
        let sparq = self.sparq.within(budget)?;
        Ok(Self { sparq, ..*self }.into())
    }

    fn decode(&self, q: Tensor<4>, cache: &mut KvCache) -> Result<Tensor<4>, SparqError> {
        self.sparq.decode(q, cache)
    }
}
