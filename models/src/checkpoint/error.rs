//! What can be wrong with a checkpoint: [`CheckpointError`].

use std::{io, path::PathBuf};

use burn::tensor::FloatDType;

use super::{JsonError, StoredType};

/// What is wrong with a checkpoint: the file, the key, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// There is nothing at the path.
    #[error("{}: no such folder; expected a folder with config.json and *.safetensors or pytorch_model.bin, or a *.gguf file", path.display())]
    MissingFolder {
        /// The path.
        path: PathBuf,
    },
    /// The path leads to a file.
    #[error("{}: expected a folder with config.json and *.safetensors or pytorch_model.bin, or a *.gguf file, found {found}", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// A JSON file is missing or is not JSON.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// The folder has no weights in a format that is read.
    #[error(
        "{}: expected model.safetensors, pytorch_model.bin, the index of either, or one other *.safetensors file, found {found}",
        path.display()
    )]
    NoWeights {
        /// The folder.
        path: PathBuf,
        /// What is there instead.
        found: String,
    },
    /// The operating system refuses to read a file or folder.
    #[error("{}: cannot be read: {error}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system says.
        error: io::Error,
    },
    /// A file is not in the safetensors format, or only a part of it is there.
    #[error("{}: not a whole safetensors file: expected {expected}, found {found}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What the format asks for.
        expected: String,
        /// What the file says.
        found: String,
    },
    /// A file is not in the GGUF format, only a part of it is there, or it holds what is not supported.
    #[error("{}: GGUF: {what}: expected {expected}, found {found}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// The part of the file, or the key of its metadata.
        what: String,
        /// What would have been right.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A file is not in the format of PyTorch, only a part of it is there, or it holds what is not supported.
    #[error("{}: PyTorch: {what}: expected {expected}, found {found}", path.display())]
    Torch {
        /// The file.
        path: PathBuf,
        /// The part of the file, or the tensor.
        what: String,
        /// What would have been right.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A converted model is not what was written.
    #[error("{}: {what}: expected {expected}, found {found}; convert the model again", path.display())]
    Packed {
        /// The file.
        path: PathBuf,
        /// The part of the file.
        what: String,
        /// What was written.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A file cannot be written.
    #[error("{}: cannot be written: {error}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        error: io::Error,
    },
    /// An entry of the index of shards is not of the kind it has to be.
    #[error("{}: \"{key}\": expected {expected}, found {found}", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// The entry, with dots between the levels.
        key: String,
        /// What would have been right.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// The index names a shard that is not there.
    #[error("{}: \"weight_map.{tensor}\": expected the shard {}, found no such file", index.display(), shard.display())]
    MissingShard {
        /// The index.
        index: PathBuf,
        /// A tensor that should be in the shard.
        tensor: String,
        /// Where the shard should be.
        shard: PathBuf,
    },
    /// The index places a tensor in a shard that does not hold it.
    #[error("{}: \"weight_map.{tensor}\": expected the tensor in {}, found none of that name", index.display(), shard.display())]
    NotInShard {
        /// The index.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard that the index names.
        shard: PathBuf,
    },
    /// Two files hold a tensor of the same name.
    #[error("tensor \"{tensor}\": expected in one file, found in {} and {}", first.display(), second.display())]
    Duplicate {
        /// The tensor.
        tensor: String,
        /// One of the files.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// The model needs a tensor that the checkpoint does not have.
    #[error("{}: tensor \"{tensor}\": expected shape {expected:?}, found no tensor of that name", path.display())]
    MissingTensor {
        /// The folder, or the only file of weights.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape that the model needs.
        expected: Vec<usize>,
    },
    /// A tensor has another shape than the configuration says.
    #[error("{}: tensor \"{tensor}\": expected shape {expected:?}, found {found:?}", path.display())]
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
    /// The dimensions of a tensor are those of no weights.
    #[error("{}: tensor \"{tensor}\": expected dimensions whose product fits into memory, found {found:?}", path.display())]
    Dimensions {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor is stored in a type that is not read.
    #[error("{}: tensor \"{tensor}\": expected type F32, F16 or BF16, found {found}", path.display())]
    StoredType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type in the file.
        found: StoredType,
    },
    /// The device does not compute in the type asked for.
    #[error("device {device}: expected a floating-point type that it computes in, found {dtype:?}")]
    DeviceType {
        /// The device.
        device: String,
        /// The type asked for.
        dtype: FloatDType,
    },
    /// A tensor holds NaN or infinity.
    #[error(
        "{}: tensor \"{tensor}\": expected finite weights, found {count} of {total} that are not, the first {value} at {index:?}",
        path.display()
    )]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where the first one is.
        index: Vec<usize>,
        /// The first one.
        value: f32,
        /// How many there are.
        count: usize,
        /// How many weights the tensor has.
        total: usize,
    },
    /// A tensor holds weights too large for the type asked for.
    #[error(
        "{}: tensor \"{tensor}\": expected weights within the range of {dtype:?}, found {count} of {total} beyond it, the first {value} at \
         {index:?}; load the model in BF16 or F32",
        path.display()
    )]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where the first one is.
        index: Vec<usize>,
        /// The first one.
        value: f32,
        /// How many there are.
        count: usize,
        /// How many weights the tensor has.
        total: usize,
        /// The type asked for.
        dtype: FloatDType,
    },
    /// There is no memory for a tensor.
    #[error("{}: tensor \"{tensor}\": expected {bytes} bytes of memory, found less", path.display())]
    OutOfMemory {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// How much it needs.
        bytes: usize,
    },
}
