//! Dense attention or SparQ, whichever the cost model expects to be quicker.

use burn::tensor::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::{Budget, Dense, Method, Settings, Strategy};
use crate::cost::{StepCosts, StepShape};
use crate::{CacheShape, KvCache, KvCacheConfig, Sketch, SparqConfig, SparqError, Transfers};

/// SparQ where it pays and dense attention elsewhere: never slower than dense, as far as [`StepCosts`] knows the device.
///
/// Each step decides anew, from the sizes of the cache and its length alone, so a growing cache changes over once, at [`StepCosts::break_even`]. The cache
/// holds the sketch from the beginning. A step that is recorded and replayed stays what it was when it was recorded; [`CapturedStep`](crate::CapturedStep)
/// records again where the choice changes.
///
/// ```
/// use burn::tensor::{Device, FloatDType};
/// use sparq::{Auto, KvCacheConfig, Method, SparqConfig};
///
/// let config = SparqConfig::new(32, 128);
/// let auto = Method::from(Auto::new(config, 4, &Device::default()));
/// let cache = KvCacheConfig {
///     batch: 1, kv_heads: 8, head_dim: 128, capacity: 1 << 20, dtype: FloatDType::F32, sketch: auto.sketch(), window: None,
/// };
/// assert_eq!(auto.at(&cache, 128), Method::DENSE);
/// assert_eq!(auto.at(&cache, 1 << 20), Method::from(config));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auto {
    /// The settings of SparQ.
    pub sparq: SparqConfig,
    /// g: query heads of one key/value head.
    pub group_size: usize,
    /// What steps cost on the device.
    pub costs: StepCosts,
}

impl Auto {
    /// With these settings and g query heads for each key/value head, for what is known of the device.
    pub fn new(sparq: SparqConfig, group_size: usize, device: &Device) -> Self {
        Self {
            sparq,
            group_size,
            costs: StepCosts::of(device),
        }
    }

    /// The method that a step takes on a cache like this with `seq_len` positions, dense attention or SparQ.
    pub fn at(&self, cache: &KvCacheConfig, seq_len: usize) -> Method {
        match self
            .costs
            .sparq_pays(&self.step(cache), cache.attended(seq_len), &self.sparq)
        {
            true => Method::Sparq(self.sparq),
            false => Method::Dense(Dense),
        }
    }

    /// The sizes of a step on a cache like this.
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

    fn sketch(&self) -> Option<Sketch> {
        self.sparq.sketch()
    }

    /// SparQ's, which a long cache comes to; [`Method::at`] says which method a step takes.
    fn transfers(&self, shape: &CacheShape, seq_len: usize) -> Transfers {
        self.sparq.transfers(shape, seq_len)
    }

    fn is_sparse(&self, cache: &KvCacheConfig, seq_len: usize) -> bool {
        self.at(cache, seq_len).is_sparse(cache, seq_len)
    }

    fn at_budget(&self, budget: &Budget) -> Result<Method, SparqError> {
        let sparq = self
            .sparq
            .for_compression(budget.head_dim, budget.seq_len, budget.ratio)?;
        Ok(Self { sparq, ..*self }.into())
    }

    /// Also refuses a query whose heads are not g for each key/value head: the costs would be those of another step.
    fn decode(&self, q: Tensor<4>, cache: &mut KvCache) -> Result<Tensor<4>, SparqError> {
        // Also where the step is dense: a later one is not.
        cache.check_sketch(self.name(), self.sparq.sketch)?;
        let (step, [batch, heads, len, d]) = (self.step(cache.config()), q.dims());
        if heads != step.heads {
            return Err(SparqError::Shape {
                what: "query [batch, kv_heads x group_size of the method, 1, head_dim]",
                expected: vec![batch, step.heads, len, d],
                found: vec![batch, heads, len, d],
            });
        }
        self.at(cache.config(), cache.len())
            .strategy()
            .decode(q, cache)
    }
}

impl From<Auto> for Method {
    fn from(auto: Auto) -> Self {
        Method::Auto(auto)
    }
}
