//! The configuration of a model, read from the `config.json` of its checkpoint.
//!
//! [`Architecture`] names the family of a checkpoint. The file of the family maps the entries of
//! `config.json` to a [`DecoderConfig`](crate::DecoderConfig).
//!
//! A model that the decoder cannot compute exactly as it was trained is refused. The error names
//! the file, the key, what was expected and what was found.

mod activation;
mod common;
mod error;
mod fields;
mod quantization;
mod rope;
mod window;

pub use crate::decoder::{ExpertKeys, Experts, Keys, MlpKeys, NormKind, QkNorm, QkvKeys, Residual};
pub use crate::families::Architecture;
pub use activation::HiddenAct;
pub use error::ConfigError;

pub(crate) use common::{Defaults, bound, check, hidden_act, read_common};
pub(crate) use fields::Fields;
pub(crate) use rope::{PartialRope, RopeOf, read_rope};
pub(crate) use window::{sliding_window, windows};
