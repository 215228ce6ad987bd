//! The ways to attend in a decode step, as values of one type.
//!
//! Each method is a type in a file of its own that implements [`Strategy`], and a variant of [`Method`] with a line in its table.

mod auto;
pub mod baselines;
mod budget;
mod dense;
mod names;
mod settings;
mod sparq;
mod step;

use self::baselines::{FlexGen, H2o, Hybrid, LmInfinite, Oracle, Projection, Quest, SparqVariant};
pub use auto::Auto;
pub use budget::Budget;
pub use dense::Dense;
pub use settings::{Setting, Settings};

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use self::step::Step;
use crate::{CacheShape, KvCache, KvCacheConfig, Sketch, SparqConfig, SparqError, Transfers};

/// How a decode step attends to the cache.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "method")]
pub enum Method {
    /// Every position.
    Dense(Dense),
    /// The positions and components that SparQ chooses.
    Sparq(SparqConfig),
    /// SparQ where it is expected to be quicker than dense attention, and dense attention elsewhere.
    Auto(Auto),
    /// The positions that have received the most attention, and the latest; the rest is evicted.
    H2o(H2o),
    /// The first positions and the latest.
    LmInfinite(LmInfinite),
    /// The values of the positions with the largest exact probabilities, not renormalised.
    #[serde(rename = "flexgen")]
    FlexGen(FlexGen),
    /// The positions with the largest exact probabilities.
    Oracle(Oracle),
    /// The pages whose bounds promise most.
    Quest(Quest),
    /// Pages by the bounds of a few components, then positions by the same.
    Hybrid(Hybrid),
    /// SparQ with projections in the place of components.
    Projection(Projection),
    /// SparQ with switches that no kernel has.
    SparqVariant(SparqVariant),
}

/// What a method has to offer.
pub trait Strategy {
    /// The method's name: lower case, as on a command line.
    fn name(&self) -> &'static str;

    /// The settings, to be written and read as words.
    fn settings(&mut self) -> Settings<'_>;

    /// Sets the sizes that follow from k to what they are by default, after k has been set.
    fn follow_top_k(&mut self) {}

    /// Checks the settings against a model's head_dim.
    ///
    /// # Errors
    /// [`SparqError::Config`], naming what to change.
    fn validate(&self, head_dim: usize) -> Result<(), SparqError>;

    /// The key sketch that a cache must hold for this method.
    fn sketch(&self) -> Option<Sketch> {
        None
    }

    /// Whether a cache must record the attention that its positions receive; see [`KvCache::record_attention`].
    fn reads_attention(&self) -> bool {
        false
    }

    /// What one decode step moves at `seq_len` positions that it attends to; see [`KvCacheConfig::attended`].
    fn transfers(&self, shape: &CacheShape, seq_len: usize) -> Transfers;

    /// Whether a step on a cache like this with `seq_len` positions reads only a part of them. A recording of a step serves only steps for which this is the same.
    fn is_sparse(&self, cache: &KvCacheConfig, seq_len: usize) -> bool;

    /// This method with the sizes that make the most of a budget.
    ///
    /// # Errors
    /// [`SparqError::Budget`] where no sizes fit.
    fn at_budget(&self, budget: &Budget) -> Result<Method, SparqError>;

    /// Attends with one query per sequence, q [B, H, 1, d], to a cache that already holds the current token: [B, H, 1, d].
    ///
    /// # Errors
    /// When q does not fit the cache, the settings don't fit its head_dim, or the cache lacks the sketch.
    fn decode(&self, q: Tensor<4>, cache: &mut KvCache) -> Result<Tensor<4>, SparqError>;
}

/// The table of methods.
macro_rules! table {
    ($method:expr) => {
        match $method {
            Method::Dense(method) => method,
            Method::Sparq(method) => method,
            Method::Auto(method) => method,
            Method::H2o(method) => method,
            Method::LmInfinite(method) => method,
            Method::FlexGen(method) => method,
            Method::Oracle(method) => method,
            Method::Quest(method) => method,
            Method::Hybrid(method) => method,
            Method::Projection(method) => method,
            Method::SparqVariant(method) => method,
        }
    };
}

impl Method {
    /// Dense attention.
    pub const DENSE: Method = Method::Dense(Dense);

    /// Where a value finds its implementation.
    fn strategy(&self) -> &dyn Strategy {
        table!(self)
    }

    /// The same for a value to be changed.
    fn strategy_mut(&mut self) -> &mut dyn Strategy {
        table!(self)
    }

    /// The method that a step takes on a cache like this with `seq_len` positions: itself, or what [`Auto`] chooses.
    pub fn at(&self, cache: &KvCacheConfig, seq_len: usize) -> Method {
        match self {
            Method::Auto(auto) => auto.at(cache, seq_len),
            _ => *self,
        }
    }

    /// See [`Strategy::name`].
    pub fn name(&self) -> &'static str {
        self.strategy().name()
    }

    /// See [`Strategy::validate`].
    ///
    /// # Errors
    /// [`SparqError::Config`], naming what to change.
    pub fn validate(&self, head_dim: usize) -> Result<(), SparqError> {
        self.strategy().validate(head_dim)
    }

    /// See [`Strategy::sketch`].
    pub fn sketch(&self) -> Option<Sketch> {
        self.strategy().sketch()
    }

    /// See [`Strategy::reads_attention`].
    pub fn reads_attention(&self) -> bool {
        self.strategy().reads_attention()
    }

    /// See [`Strategy::transfers`].
    pub fn transfers(&self, shape: &CacheShape, seq_len: usize) -> Transfers {
        self.strategy().transfers(shape, seq_len)
    }

    /// See [`Strategy::is_sparse`].
    pub fn is_sparse(&self, cache: &KvCacheConfig, seq_len: usize) -> bool {
        self.strategy().is_sparse(cache, seq_len)
    }

    /// See [`Strategy::decode`].
    ///
    /// # Errors
    /// When q does not fit the cache, the settings don't fit its head_dim, or the cache lacks what the method reads.
    pub fn decode(&self, q: Tensor<4>, cache: &mut KvCache) -> Result<Tensor<4>, SparqError> {
        self.validate(cache.config().head_dim)?;
        self.check_cache(cache)?;
        cache.check_query(&q)?;
        cache.check_not_empty()?;
        // The cache is outside autodiff, and a step has all its operands on one side.
        let q = q.inner();
        cache.note_query(&q);
        if cache.records_attention() && !self.reads_attention() {
            let weights = Step::new(q.clone(), cache)?.weights();
            cache.add_received(weights.mean_dim(2).squeeze_dim::<3>(2));
        }
        self.strategy().decode(q, cache)
    }

    /// Checks that a cache has what the method reads.
    pub(crate) fn check_cache(&self, cache: &KvCache) -> Result<(), SparqError> {
        if let Some(sketch) = self.sketch() {
            cache.check_sketch(self.name(), sketch)?;
        }
        match self.reads_attention() {
            true => cache.check_records_attention(self.name()),
            false => cache.check_whole(self.name()),
        }
    }
}

impl From<SparqConfig> for Method {
    fn from(config: SparqConfig) -> Self {
        Method::Sparq(config)
    }
}
