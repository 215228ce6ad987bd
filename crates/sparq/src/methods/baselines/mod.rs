//! The methods that SparQ is compared with, in tensor operations on every backend.

mod basis;
mod exact_top_k;
mod h2o;
mod hybrid;
mod lm_infinite;
mod pages;
mod projection;
mod quest;
mod variant;

pub use exact_top_k::{ExactTopK, FlexGen, Oracle};
pub use h2o::H2o;
pub use hybrid::Hybrid;
pub use lm_infinite::LmInfinite;
pub use projection::{Directions, Projection};
pub use quest::Quest;
pub use variant::{KeyPrecision, SparqVariant, Temperature};
