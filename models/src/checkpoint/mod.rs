//! Reads Hugging Face checkpoints: a folder with `config.json`, and weights as safetensors or
//! `pytorch_model.bin`. A checkpoint of safetensors can also be bytes in memory. A GGUF file is
//! read as the checkpoint that it was made from.
//!
//! [`Checkpoint`] opens a folder and has every tensor by name, shape and stored type. [`Loader`]
//! reads the tensors of a model, and [`Weights`] makes burn modules of them. [`Conversion`] writes
//! a checkpoint in another form. The types of stored weights are one registry: [`StoredType`].
//!
//! Weights in blocks that the device multiplies by stay in these blocks. On a CPU they are used
//! from the mapped file. All other tensors become floats.
//!
//! Tensors are read one at a time, in chunks and by all threads, into the type that the model
//! computes in. Memory therefore peaks at the weights and a small buffer for each thread. For a GPU
//! the tensors are read into a few buffers: it copies from one while the next is filled. Files are
//! read and not mapped: if another process shortens a mapped file, this process ends with a signal,
//! while a read returns an error. The exceptions are blocks of GGUF files on a CPU and the folders
//! of a [`Conversion`]: their weights are mapped, and a model in the stored type loads at once.
//!
//! Loading an untrusted checkpoint either succeeds or returns an error that names the file and key.
//! Every length, offset and shape is checked before it is used, and names of shards cannot lead out
//! of the folder. Weights that are not finite are refused, since they would only show many layers
//! later.

mod base;
mod blocks;
mod decode;
mod error;
mod formats;
pub(crate) mod gguf;
mod header;
mod json;
mod loader;
mod open;
mod packed;
mod reader;
mod small_file;
mod source;
mod staging;
mod threads;
mod torch;
mod upload;
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
pub(crate) use loader::Part;
pub(crate) use small_file::read_small;
#[cfg(feature = "hub")]
pub(crate) use weight_files::{WeightFiles, read_index};
