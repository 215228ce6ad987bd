//! Reading the JSON files of a checkpoint.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;

/// More than any real `config.json` or index (the index of a model with a million tensors is about as large).
const MAX_BYTES: u64 = 100_000_000;

/// What is wrong with a JSON file of a checkpoint as a whole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// The file is not there.
    #[error("{}: no such file", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// Something of that name is there, but it is no regular file.
    #[error("{}: expected a file, found {found}", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// The operating system refuses to read it.
    #[error("{}: cannot be read: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        error: io::Error,
    },
    /// The file is far larger than any file of its kind.
    #[error("{}: expected at most {expected} bytes of JSON, found {found}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        expected: u64,
        /// The size of the file.
        found: u64,
    },
    /// The file is not JSON.
    #[error("{}: not valid JSON: {error}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why the parser stopped.
        error: serde_json::Error,
    },
}

/// Reads a JSON file.
pub(crate) fn read_json(path: &Path) -> Result<Value, JsonError> {
    let read = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => JsonError::Missing { path: path.into() },
        _ => JsonError::Read {
            path: path.into(),
            error,
        },
    };
    // Before the file is opened: opening a pipe would wait for a writer for ever.
    let metadata = fs::metadata(path).map_err(read)?;
    if !metadata.is_file() {
        return Err(JsonError::NotAFile {
            path: path.into(),
            found: kind_of(&metadata),
        });
    }
    if metadata.len() > MAX_BYTES {
        return Err(JsonError::TooLarge {
            path: path.into(),
            expected: MAX_BYTES,
            found: metadata.len(),
        });
    }
    parse_json(&fs::read(path).map_err(read)?, path)
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

/// What a path that is no regular file is, in words.
pub(super) fn kind_of(metadata: &fs::Metadata) -> &'static str {
    if metadata.is_dir() {
        "a folder"
    } else {
        "neither a file nor a folder"
    }
}

/// A JSON value in the words of an error message: short, whatever the file holds.
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
