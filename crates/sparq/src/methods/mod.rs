//! The ways to attend in a decode step, as values of one type.
//!
//! Each method is a type in a file of its own that implements [`Strategy`], and a variant of [`Method`] with a line in its table.

mod auto;
mod dense;
mod sparq;

pub use auto::Auto;
pub use dense::Dense;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

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
}

/// What a method has to offer.
pub trait Strategy {
    /// The method's name: lower case, as on a command line.
    fn name(&self) -> &'static str;

    /// Checks the settings against a model's head_dim.
    ///
    /// # Errors
    /// [`SparqError::Config`], naming what to change.
    fn validate(&self, head_dim: usize) -> Result<(), SparqError>;

    /// The key sketch that a cache must hold for this method.
    fn sketch(&self) -> Option<Sketch>;

    /// What one decode step moves at `seq_len` positions that it attends to; see [`KvCacheConfig::attended`].
    fn transfers(&self, shape: &CacheShape, seq_len: usize) -> Transfers;

    /// Whether a step on a cache like this with `seq_len` positions reads only a part of them. A recording of a step serves only steps for which this is the same.
    fn is_sparse(&self, cache: &KvCacheConfig, seq_len: usize) -> bool;

    /// Attends with one query per sequence, q [B, H, 1, d], to a cache that already holds the current token: [B, H, 1, d].
    ///
    /// # Errors
    /// When q does not fit the cache, the settings don't fit its head_dim, or the cache lacks the sketch.
    fn decode(&self, q: Tensor<4>, cache: &mut KvCache) -> Result<Tensor<4>, SparqError>;
}

impl Method {
    /// Dense attention.
    pub const DENSE: Method = Method::Dense(Dense);

    /// The table of methods: where a value finds its implementation.
    fn strategy(&self) -> &dyn Strategy {
        match self {
            Method::Dense(method) => method,
            Method::Sparq(method) => method,
            Method::Auto(method) => method,
        }
    }

    /// The method that a step takes on a cache like this with `seq_len` positions: itself, or what [`Auto`] chooses.
    pub fn at(&self, cache: &KvCacheConfig, seq_len: usize) -> Method {
        match self {
            Method::Auto(auto) => auto.at(cache, seq_len),
            Method::Dense(_) | Method::Sparq(_) => *self,
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
    /// When q does not fit the cache, the settings don't fit its head_dim, or the cache lacks the sketch.
    pub fn decode(&self, q: Tensor<4>, cache: &mut KvCache) -> Result<Tensor<4>, SparqError> {
        self.validate(cache.config().head_dim)?;
        cache.check_query(&q)?;
        cache.check_not_empty()?;
        // The cache is outside autodiff, and a step has all its operands on one side.
        let q = q.inner();
        cache.note_query(&q);
        self.strategy().decode(q, cache)
    }
}

impl From<SparqConfig> for Method {
    fn from(config: SparqConfig) -> Self {
        Method::Sparq(config)
    }
}
