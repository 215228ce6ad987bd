//! Reads the JSON files of a checkpoint.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::read_small;

/// A JSON file of a checkpoint that cannot be read or parsed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// The file is missing.
    #[error("{}: no such file", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The operating system cannot read the file, or it is no regular file, or it is too large.
    #[error("{}: cannot be read: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        error: io::Error,
    },
    /// The file is not JSON.
    #[error("{}: not valid JSON: {error}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The place and the reason.
        error: serde_json::Error,
    },
}

/// Reads a JSON file.
pub(crate) fn read_json(path: &Path) -> Result<Value, JsonError> {
    let bytes = read_small(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => JsonError::Missing { path: path.into() },
        _ => JsonError::Read {
            path: path.into(),
            error,
        },
    })?;
    parse_json(&bytes, path)
}

/// Reads a JSON file that may be absent.
pub(crate) fn read_json_if_present(path: &Path) -> Result<Option<Value>, JsonError> {
    match read_json(path) {
        Ok(value) => Ok(Some(value)),
        Err(JsonError::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Parses `bytes`, which came from `path`.
pub(super) fn parse_json(bytes: &[u8], path: &Path) -> Result<Value, JsonError> {
    serde_json::from_slice(bytes).map_err(|error| JsonError::Syntax {
        path: path.into(),
        error,
    })
}

/// Describes a JSON value for an error message, shortened.
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(entries) => format!("an object of {}", entries.len()),
        Value::String(text) if text.chars().count() > 80 => {
            let head: String = text.chars().take(80).collect();
            format!("{head:?}…")
        }
        other => other.to_string(),
    }
}
