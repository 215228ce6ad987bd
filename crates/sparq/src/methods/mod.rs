//! The ways to attend in a decode step, as values of one type, [`Method`].
//!
//! Each method is a type in its own file that implements [`Strategy`]. A line in the list at the
//! end of this file adds the file to the crate, a variant to [`Method`], and its names to the
//! command line.

mod anchors;
mod budget;
mod names;
mod settings;
mod state;
mod step;

pub use anchors::Anchors;
pub use budget::Budget;
pub use settings::{Setting, Settings};
pub(crate) use state::{MethodState, MethodStates};

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use self::step::Step;
use crate::cost::CacheShape;
use crate::{KvCache, KvCacheConfig, RowFormat, Sketch, SparqError, Transfers, ops};

/// The paper's k: the top-k of a method by name.
const TOP_K: usize = 128;
/// The paper's r for a head_dim of 128: the rank of a method by name.
const RANK: usize = 32;

/// The interface of a method.
pub trait Strategy {
    /// The names of this method on a command line, each with the settings that it stands for.
    fn presets() -> Vec<(&'static str, Self)>
    where
        Self: Sized;

    /// The method's name in reports: lower case.
    fn name(&self) -> &'static str;

    /// The settings by name, to be read and written as words.
    fn settings(&mut self) -> Settings<'_>;

    /// Sets the sizes that follow from k to their defaults, after k has been set.
    fn follow_top_k(&mut self) {}

    /// Checks the settings against a model's head_dim.
    ///
    /// # Errors
    /// [`SparqError::Config`] for the first setting out of range.
    fn validate(&self, head_dim: usize) -> Result<(), SparqError>;

    /// How a cache made for this method stores K and V. Steps take the rows of any cache.
    fn rows(&self) -> RowFormat {
        RowFormat::Float
    }

    /// The key sketch that a cache must hold for this method.
    fn sketch(&self) -> Option<Sketch> {
        None
    }

    /// The layers of a model that select positions for all layers.
    fn anchors(&self) -> Anchors {
        Anchors::All
    }

    /// Returns whether the method reads the attention that positions have received.
    ///
    /// The cache must record it then; see [`KvCache::record_attention`].
    fn reads_attention(&self) -> bool {
        false
    }

    /// The bytes that one decode step moves at `seq_len` positions inside the window.
    ///
    /// See [`KvCacheConfig::attended`].
    fn transfers(&self, shape: &CacheShape, seq_len: usize) -> Transfers;

    /// Returns whether a step on such a cache with `seq_len` positions reads only a part of them.
    ///
    /// A captured step serves only later steps with the same answer.
    fn is_sparse(&self, cache: &KvCacheConfig, seq_len: usize) -> bool;

    /// Returns this method with the largest sizes that fit a budget.
    ///
    /// # Errors
    /// [`SparqError::Budget`] if no sizes fit.
    fn at_budget(&self, budget: &Budget) -> Result<Method, SparqError>;

    /// Attends with one query per sequence, q [B, H, 1, d] -> [B, H, 1, d].
    ///
    /// The cache already holds the current token. [`Method::decode`] calls this after it has
    /// checked that settings, query and cache fit. It takes steps that are not sparse by dense
    /// attention instead, unless the method reads received attention.
    ///
    /// # Errors
    /// If the step cannot be part of a captured graph, or the device fails.
    fn decode(&self, q: Tensor<4>, cache: &mut KvCache) -> Result<Tensor<4>, SparqError>;
}

/// Makes the modules of the methods, the enum [`Method`] and its table from one list.
macro_rules! methods {
    (
        methods {
            $($file:ident: $(#[$attribute:meta])* $name:ident($type:ident), $about:literal;)*
        }
        baselines {
            $($base_file:ident: $(#[$base_attribute:meta])* $base:ident, $base_about:literal;)*
        }
    ) => {
        $(mod $file; pub use self::$file::*;)*

        /// The methods that SparQ is compared with, in tensor operations that run on every backend.
        pub mod baselines {
            $(mod $base_file; pub use self::$base_file::*;)*
        }

        $(use self::baselines::$base;)*

        /// The way in which a decode step attends to the cache.
        #[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case", tag = "method")]
        pub enum Method {
            $(#[doc = $about] $(#[$attribute])* $name($type),)*
            $(#[doc = $base_about] $(#[$base_attribute])* $base($base),)*
        }

        impl Method {
            fn strategy(&self) -> &dyn Strategy {
                match self {
                    $(Method::$name(method) => method,)*
                    $(Method::$base(method) => method,)*
                }
            }

            fn strategy_mut(&mut self) -> &mut dyn Strategy {
                match self {
                    $(Method::$name(method) => method,)*
                    $(Method::$base(method) => method,)*
                }
            }

            /// Every name with the method that it stands for.
            fn presets() -> Vec<(&'static str, Method)> {
                fn of<T: Strategy + Into<Method>>() -> impl Iterator<Item = (&'static str, Method)> {
                    T::presets().into_iter().map(|(name, method)| (name, method.into()))
                }
                std::iter::empty()$(.chain(of::<$type>()))*$(.chain(of::<$base>()))*.collect()
            }
        }

        $(impl From<$type> for Method {
            fn from(method: $type) -> Self {
                Method::$name(method)
            }
        })*
        $(impl From<$base> for Method {
            fn from(method: $base) -> Self {
                Method::$base(method)
            }
        })*
    };
}

methods! {
    methods {
        dense: Dense(Dense), "Every position.";
        sparq: Sparq(SparqConfig), "The positions and components that SparQ selects.";
        auto: Auto(Auto), "SparQ where it is expected to be faster than dense attention, else dense.";
    }
    baselines {
        h2o: H2o, "The positions that received the most attention, and the most recent ones.";
        lm_infinite: LmInfinite, "The first positions and the most recent ones.";
        flexgen: #[serde(rename = "flexgen")] FlexGen, "The V rows with the largest exact scores, not renormalised.";
        oracle: Oracle, "The positions with the largest exact scores.";
        quest: Quest, "The pages with the largest upper bounds of their scores.";
        hybrid: Hybrid, "Pages by the bounds of a few components, then positions by the same components.";
        projection: Projection, "SparQ with projections in place of components.";
        variant: SparqVariant, "SparQ with switches that the kernels do not have.";
    }
}

impl Method {
    /// Dense attention.
    pub const DENSE: Method = Method::Dense(Dense {
        rows: RowFormat::Float,
    });

    /// The method that a step takes on such a cache with `seq_len` positions.
    ///
    /// This is the method itself, or the choice of [`Auto`].
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
    /// [`SparqError::Config`] for the first setting out of range.
    pub fn validate(&self, head_dim: usize) -> Result<(), SparqError> {
        self.strategy().validate(head_dim)
    }

    /// See [`Strategy::rows`].
    pub fn rows(&self) -> RowFormat {
        self.strategy().rows()
    }

    /// See [`Strategy::sketch`].
    pub fn sketch(&self) -> Option<Sketch> {
        self.strategy().sketch()
    }

    /// See [`Strategy::anchors`].
    pub fn anchors(&self) -> Anchors {
        self.strategy().anchors()
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

    /// Attends with one query per sequence, q [B, H, 1, d] -> [B, H, 1, d].
    ///
    /// The cache already holds the current token. If it has been given positions
    /// ([`KvCache::reuse`]), the step attends to these.
    ///
    /// # Errors
    /// If q does not fit the cache, the settings do not fit its head_dim, or the cache lacks what
    /// the method reads.
    pub fn decode(&self, q: Tensor<4>, cache: &mut KvCache) -> Result<Tensor<4>, SparqError> {
        self.check(cache)?;
        cache.check_query(&q, 1)?;
        self.decode_checked(q, cache)
    }

    /// Does what [`Method::decode`] does, after [`Method::check`] and with a query that fits.
    pub(crate) fn decode_checked(
        &self,
        q: Tensor<4>,
        cache: &mut KvCache,
    ) -> Result<Tensor<4>, SparqError> {
        cache.check_not_empty()?;
        if let Method::Auto(auto) = self {
            auto.check_query(&q, cache)?;
        }
        // The cache is outside autodiff, and a step needs all operands on one side.
        let q = q.inner();
        cache.note_query(&q);
        if cache.states().observes_attention() && !self.reads_attention() {
            let weights = Step::new(q.clone(), cache)?.weights();
            let received = weights.mean_dim(2).squeeze_dim::<3>(2);
            cache.states_mut().observe_attention(received);
        }
        if let Some(reused) = cache.take_reused() {
            let (positions, heads) = (reused.positions, reused.heads);
            let (tensors, spans) = cache.reused_view(&q, positions.dims()[2])?;
            return Ok(ops::attend_positions(q, tensors, positions, heads, &spans));
        }
        match self.reads_attention() || self.is_sparse(cache.config(), cache.len()) {
            true => self.strategy().decode(q, cache),
            false => Dense::default().decode(q, cache),
        }
    }

    /// Checks the settings, and that a cache holds what the method reads.
    pub(crate) fn check(&self, cache: &KvCache) -> Result<(), SparqError> {
        self.validate(cache.config().head_dim)?;
        if let Some(sketch) = self.sketch() {
            cache.check_sketch(self.name(), sketch)?;
        }
        match self.reads_attention() {
            true => cache.check_records_attention(self.name()),
            false => cache.check_whole(self.name()),
        }
    }
}
