//! What can be wrong with a configuration: [`ConfigError`].

use std::path::PathBuf;

use crate::checkpoint::JsonError;

/// What is wrong with a configuration: the file, the key, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file cannot be read or is not JSON.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// An entry is missing, is of another kind than it has to be, or asks for something that is not supported.
    #[error("{}: \"{key}\": expected {expected}, found {found}", path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// The entry, with dots between the levels.
        key: String,
        /// What would have been right.
        expected: String,
        /// What is there.
        found: String,
    },
}
