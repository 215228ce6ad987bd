//! The ways to decode an answer: [`Decoding`].

use sparq::Method;
use sparq_models::text::SpeculativeConfig;

/// A way to decode an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decoding {
    /// Steps with a method.
    Steps(Method),
    /// The tokens of dense attention: from drafts and their verification while the answer is the
    /// only one, and from dense steps in a batch, which shares the reading of the weights.
    Lossless(SpeculativeConfig),
}

impl Decoding {
    /// Returns the name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Steps(method) => method.name(),
            Self::Lossless(_) => "lossless",
        }
    }

    /// Returns the method to make a cache for.
    pub(super) fn cache_method(&self) -> Method {
        match self {
            Self::Steps(method) => *method,
            Self::Lossless(config) => config.cache_method(),
        }
    }

    /// Returns the method of a step in a batch.
    pub(super) fn step_method(&self) -> Method {
        match self {
            Self::Steps(method) => *method,
            Self::Lossless(_) => Method::DENSE,
        }
    }
}

impl From<Method> for Decoding {
    fn from(method: Method) -> Self {
        Self::Steps(method)
    }
}
