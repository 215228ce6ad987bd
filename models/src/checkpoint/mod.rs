//! Reading Hugging Face checkpoints: a folder with `config.json` and files in safetensors or `pytorch_model.bin`, or the first two as bytes in memory. A
//! GGUF file is read as the checkpoint that it was made from.
//!
//! [`Checkpoint`] opens the folder and knows every tensor by name, shape and stored type; [`Loader`] turns tensors into burn modules.
//! Tensors are read one at a time, in chunks, straight into the type that the model computes in: the peak of memory while a model loads is
//! the weights and a small buffer. Files are not memory-mapped, because a file that another process shortens under a mapping ends
//! this process with a signal, where a read ends with an error. The exception are the folders that a [`Conversion`] writes: their weights are mapped, and
//! a model in the type that they are stored in is there at once.
//!
//! A checkpoint comes from strangers. Every length, offset and shape in it is checked before it is believed, names of shards cannot lead
//! out of the folder, and weights that are not finite are refused: they would only show many layers later, as a model that says nothing.

mod base;
mod decode;
mod error;
mod formats;
pub(crate) mod gguf;
mod header;
mod json;
mod loader;
mod open;
mod packed;
mod small_file;
mod source;
mod torch;
mod weight;
mod weight_files;

pub use crate::weights::{Init, Weights};
pub use base::{Checkpoint, TensorEntry};
pub use error::CheckpointError;
pub use formats::StoredType;
pub use json::JsonError;
pub use loader::Loader;
pub use packed::{Calibration, Conversion, Manifest};

pub(crate) use base::check_device;
pub(crate) use json::{describe, read_json_if_present};
pub(crate) use small_file::read_small;
#[cfg(feature = "hub")]
pub(crate) use weight_files::{WeightFiles, read_index};
