//! Errors of reading reference cases.

use std::path::PathBuf;

/// A reference case that cannot be read. Every message names the file and, if possible, the key.
#[derive(Debug, thiserror::Error)]
pub enum ConformanceError {
    /// A file or folder cannot be read.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A folder contains no case.
    #[error(
        "{path}: expected files named *.safetensors in this folder or its direct subfolders, found none",
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
        /// The error of the parser.
        source: safetensors::SafeTensorError,
    },
    /// A metadata entry or a tensor is missing, has another type or shape, or contradicts the rest
    /// of the file.
    #[error("{file}: {key}: expected {expected}, found {found}")]
    Key {
        /// The file.
        file: String,
        /// The metadata entry or the tensor.
        key: String,
        /// The allowed values.
        expected: String,
        /// The value in the file.
        found: String,
    },
    /// The settings of a case are invalid.
    #[error("{file}: {source}")]
    Config {
        /// The file.
        file: String,
        /// The invalid setting.
        source: sparq::SparqError,
    },
}
