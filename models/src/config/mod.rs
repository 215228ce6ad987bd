//! The configuration of a model, from the `config.json` of its checkpoint.
//!
//! [`Architecture`] says which family of models a checkpoint belongs to, and the family's file how its entries make a
//! [`DecoderConfig`](crate::DecoderConfig). Whatever a model could not compute with, or would compute something else with than the checkpoint was trained for, is an
//! error that names the file, the key, what was expected and what was found.

mod activation;
mod base;
mod error;
mod fields;
pub(crate) mod generation;
mod rope;
mod window;

pub use crate::families::{Architecture, LlamaConfig};
pub use activation::HiddenAct;
pub use error::ConfigError;

pub(crate) use base::{Defaults, check, hidden_act, read_base};
pub(crate) use fields::Fields;
pub(crate) use rope::PartialRope;
pub(crate) use window::{sliding_window, windows};
