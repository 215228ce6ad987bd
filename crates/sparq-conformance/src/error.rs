//! What can be wrong with a reference case.

use std::path::PathBuf;

/// A case that cannot be read. Every message names the file, and the key within it where one is at fault.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    /// A file or folder cannot be read.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A folder holds no case.
    #[error(
        "{path}: expected files named *.safetensors, in this folder or in a folder directly within it, found none",
        path = path.display()
    )]
    EmptyFolder {
        /// The folder.
        path: PathBuf,
    },
    /// A file is not in the safetensors format.
    #[error("{file}: expected a safetensors file, found one that cannot be parsed: {source}")]
    Format {
        /// The file.
        file: String,
        /// What the parser said.
        source: safetensors::SafeTensorError,
    },
    /// An entry of the metadata or a tensor is missing, of another type or shape, or contradicts the rest of the file.
    #[error("{file}: {key}: expected {expected}, found {found}")]
    Key {
        /// The file.
        file: String,
        /// The metadata entry or the tensor.
        key: String,
        /// What is allowed.
        expected: String,
        /// What the file has.
        found: String,
    },
    /// The settings of a case are out of their range.
    #[error("{file}: {source}")]
    Config {
        /// The file.
        file: String,
        /// What is wrong with them.
        source: sparq::SparqError,
    },
}
