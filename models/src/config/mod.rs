//! The configuration of a model, from the `config.json` of its checkpoint.
//!
//! [`Architecture`] says which family of models a checkpoint belongs to; each family has a type here whose fields have the names of the
//! file's keys. Whatever a model could not compute with, or would compute something else with than the checkpoint was trained for, is an
//! error that names the file, the key, what was expected and what was found.

mod activation;
mod architecture;
mod error;
mod fields;
mod generation;
mod llama;
mod rope;

pub use activation::HiddenAct;
pub use architecture::Architecture;
pub use error::ConfigError;
pub use llama::LlamaConfig;
