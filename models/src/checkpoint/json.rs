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
///
/// Python writes numbers that are not finite by their names, which are no JSON. They become
/// strings, so that an entry that needs a number refuses them.
pub(super) fn parse_json(bytes: &[u8], path: &Path) -> Result<Value, JsonError> {
    let parsed = serde_json::from_slice(bytes).or_else(|error| {
        let quoted = quote_named_numbers(bytes).ok_or(error)?;
        serde_json::from_slice(&quoted)
    });
    parsed.map_err(|error| JsonError::Syntax {
        path: path.into(),
        error,
    })
}

/// Returns a copy with NaN, Infinity and -Infinity outside of strings in quotes. `None` if there
/// are none.
fn quote_named_numbers(json: &[u8]) -> Option<Vec<u8>> {
    const NAMES: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    let (mut quoted, mut found, mut in_string) = (Vec::new(), false, false);
    let mut rest = json;
    while let Some((&byte, after)) = rest.split_first() {
        let name = NAMES
            .iter()
            .find(|name| !in_string && rest.starts_with(name));
        if let Some(name) = name {
            found = true;
            quoted.push(b'"');
            quoted.extend(*name);
            quoted.push(b'"');
            rest = &rest[name.len()..];
            continue;
        }
        let escaped = in_string && byte == b'\\' && !after.is_empty();
        let length = if escaped { 2 } else { 1 };
        in_string ^= byte == b'"';
        quoted.extend(&rest[..length]);
        rest = &rest[length..];
    }
    found.then_some(quoted)
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_that_are_not_finite_are_read_as_text() {
        let text = r#"{"a": [0.0, Infinity], "b": NaN, "c": "NaN \" -Infinity", "d": -Infinity}"#;
        let found = parse_json(text.as_bytes(), Path::new("config.json")).unwrap();
        let expected = json!({
            "a": [0.0, "Infinity"], "b": "NaN", "c": "NaN \" -Infinity", "d": "-Infinity"
        });
        assert_eq!(found, expected);
        for text in [
            "{NaN: 1}x",
            "[nan]",
            r#"["NaN]"#,
            "Infinity1",
            r#"{"a": "\"#,
        ] {
            assert!(
                parse_json(text.as_bytes(), Path::new("config.json")).is_err(),
                "{text}"
            );
        }
    }
}
