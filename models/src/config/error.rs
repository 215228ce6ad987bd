//! Errors in configuration files: [`ConfigError`].

use std::{io, path::PathBuf};

use crate::checkpoint::{CheckpointError, JsonError};

/// An error in a configuration file of a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file cannot be read or is not JSON.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// The metadata of a GGUF file, which replace the JSON files, are invalid, or a file of weights
    /// cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] Box<CheckpointError>),
    /// A text file, such as a chat template, cannot be read.
    #[error("{}: cannot be read: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        error: io::Error,
    },
    /// An entry is missing, malformed or not supported.
    #[error("{}: \"{key}\": expected {expected}, found {found}", path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// The key of the entry, with dots between the levels.
        key: String,
        /// The values that are accepted.
        expected: String,
        /// The value in the file.
        found: String,
    },
}
