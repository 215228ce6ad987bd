//! Errors of opening, reading and writing checkpoints: [`CheckpointError`].

use std::{
    io,
    path::{Path, PathBuf},
};

use burn::tensor::FloatDType;
use sparq::SparqError;

use super::{JsonError, StoredType, small_file::LFS_POINTER};

const EXPECTED_FOLDER: &str = "expected a folder with config.json and *.safetensors or \
                               pytorch_model.bin, or a *.gguf file";

/// An error of a checkpoint. Its message names the file and the key, what was expected and what was
/// found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// There is nothing at the path.
    #[error("{}: no such folder; {EXPECTED_FOLDER}", path.display())]
    MissingFolder {
        /// The path.
        path: PathBuf,
    },
    /// The path is no folder.
    #[error("{}: {EXPECTED_FOLDER}, found {found}", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
        /// Its kind.
        found: &'static str,
    },
    /// A JSON file is missing or is not JSON.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// The folder has no weights in a supported format.
    #[error(
        "{}: expected model.safetensors, pytorch_model.bin, the index of either, \
         or one other *.safetensors file, found {found}",
        path.display()
    )]
    NoWeights {
        /// The folder.
        path: PathBuf,
        /// The files of weights that are there.
        found: String,
    },
    /// A folder has several GGUF models.
    #[error("{}: expected one GGUF model, found {found}; name one of the files", path.display())]
    SeveralGguf {
        /// The folder.
        path: PathBuf,
        /// The files, separated by commas.
        found: String,
    },
    /// A folder has an adapter (PEFT) in place of a model.
    #[error(
        "{}: expected a model, found an adapter (LoRA) of {base}; merge the two with Python: \
         from peft import AutoPeftModelForCausalLM; \
         AutoPeftModelForCausalLM.from_pretrained({path:?}).merge_and_unload().save_pretrained(\"merged\")",
        path.display()
    )]
    Adapter {
        /// The folder.
        path: PathBuf,
        /// The model that the adapter belongs to.
        base: String,
    },
    /// A file is a pointer of Git LFS.
    #[error("{}: {LFS_POINTER}", path.display())]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// The operating system cannot read a file or folder.
    #[error("{}: cannot be read: {error}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// A file is not in the safetensors format, or is truncated.
    #[error("{}: not a complete safetensors file: expected {expected}, found {found}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// The requirement of the format.
        expected: String,
        /// The content of the file.
        found: String,
    },
    /// A file is not in the GGUF format, is truncated, or has unsupported content.
    #[error("{}: GGUF: {what}: expected {expected}, found {found}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// The part of the file, or the key of its metadata.
        what: String,
        /// The expected content.
        expected: String,
        /// The content found.
        found: String,
    },
    /// A file is not in the format of PyTorch, is truncated, or has unsupported content.
    #[error("{}: PyTorch: {what}: expected {expected}, found {found}", path.display())]
    Torch {
        /// The file.
        path: PathBuf,
        /// The part of the file, or the tensor.
        what: String,
        /// The expected content.
        expected: String,
        /// The content found.
        found: String,
    },
    /// A converted model has changed since it was written.
    #[error("{}: {what}: expected {expected}, found {found}; convert the model again", path.display())]
    Packed {
        /// The file.
        path: PathBuf,
        /// The part of the file.
        what: String,
        /// The content that was written.
        expected: String,
        /// The content found.
        found: String,
    },
    /// The measurement of shared layers in a manifest does not fit the model.
    #[error("{}: {error}; measure this model with --calibrate", path.display())]
    Sharing {
        /// The file.
        path: PathBuf,
        /// The part that does not fit.
        error: SparqError,
    },
    /// A file cannot be written.
    #[error("{}: cannot be written: {error}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// An entry of the index of shards has the wrong kind.
    #[error("{}: \"{key}\": expected {expected}, found {found}", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// The entry, with dots between its levels.
        key: String,
        /// The expected content.
        expected: &'static str,
        /// The content found.
        found: String,
    },
    /// The index names a shard that is missing.
    #[error(
        "{}: \"weight_map.{tensor}\": expected the shard {}, found no such file",
        index.display(),
        shard.display()
    )]
    MissingShard {
        /// The index.
        index: PathBuf,
        /// A tensor of the shard.
        tensor: String,
        /// The path of the shard.
        shard: PathBuf,
    },
    /// Two files hold a tensor of the same name.
    #[error(
        "tensor \"{tensor}\": expected in one file, found in {} and {}",
        first.display(),
        second.display()
    )]
    Duplicate {
        /// The tensor.
        tensor: String,
        /// One of the files.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// The model needs a tensor that the checkpoint does not have.
    #[error(
        "{}: tensor \"{tensor}\": expected shape {expected:?}, found no tensor of that name",
        path.display()
    )]
    MissingTensor {
        /// The folder, or the only file of weights.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape that the model needs.
        expected: Vec<usize>,
    },
    /// The shape of a tensor differs from the one in the configuration.
    #[error(
        "{}: tensor \"{tensor}\": expected shape {expected:?}, found {found:?}",
        path.display()
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape that the model needs.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// The product of a tensor's dimensions is too large.
    #[error(
        "{}: tensor \"{tensor}\": expected dimensions whose product fits into memory, found {found:?}",
        path.display()
    )]
    Dimensions {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor is stored in a type that cannot be read, or is to be written in one that cannot be
    /// written.
    #[error(
        "{}: tensor \"{tensor}\": expected type {}, found {found}",
        path.display(),
        StoredType::names(|dtype| dtype.float().is_some())
    )]
    StoredType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type of the tensor.
        found: StoredType,
    },
    /// The device does not compute in the requested type.
    #[error("device {device}: expected a floating-point type that it computes in, found {dtype:?}")]
    DeviceType {
        /// The device.
        device: String,
        /// The requested type.
        dtype: FloatDType,
    },
    /// A tensor has NaN or infinite weights.
    #[error(
        "{}: tensor \"{tensor}\": expected finite weights, found {count} of {total} that are not, \
         the first {value} at {index:?}",
        path.display()
    )]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The index of the first one.
        index: Vec<usize>,
        /// The first one.
        value: f32,
        /// Their number.
        count: usize,
        /// The number of weights in the tensor.
        total: usize,
    },
    /// A tensor has weights beyond the range of the requested type.
    #[error(
        "{}: tensor \"{tensor}\": expected weights within the range of {dtype:?}, \
         found {count} of {total} beyond it, the first {value} at {index:?}; \
         load the model in BF16 or F32",
        path.display()
    )]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The index of the first one.
        index: Vec<usize>,
        /// The first one.
        value: f32,
        /// Their number.
        count: usize,
        /// The number of weights in the tensor.
        total: usize,
        /// The requested type.
        dtype: FloatDType,
    },
    /// There is not enough memory for a tensor.
    #[error("{}: tensor \"{tensor}\": expected {bytes} bytes of memory, found less", path.display())]
    OutOfMemory {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The bytes that it needs.
        bytes: usize,
    },
}

impl CheckpointError {
    /// Converts the error of reading the file or folder `path`.
    pub(super) fn read(path: &Path) -> impl Fn(io::Error) -> Self {
        move |error| Self::Read {
            path: path.into(),
            error,
        }
    }

    /// Converts the error of writing the file `path`.
    pub(super) fn write(path: &Path) -> impl Fn(io::Error) -> Self {
        move |error| Self::Write {
            path: path.into(),
            error,
        }
    }
}
