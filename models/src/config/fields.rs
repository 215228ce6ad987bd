//! The entries of a JSON object: [`Fields`].

use std::path::Path;

use serde_json::{Map, Value};

use super::ConfigError;
use crate::checkpoint::describe;

/// A JSON object of a configuration file, with errors that name the file and the entry.
///
/// An entry that is `null` counts as missing, as in transformers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a> {
    path: &'a Path,
    /// The key of the object in the file. Empty for the top level.
    parent: &'a str,
    entries: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// Returns the top level of `config`, the content of the file `path`.
    pub(crate) fn new(config: &'a Value, path: &'a Path) -> Result<Self, ConfigError> {
        match config {
            Value::Object(entries) => Ok(Self {
                path,
                parent: "",
                entries,
            }),
            other => Err(ConfigError::Entry {
                path: path.into(),
                key: String::new(),
                expected: "an object".into(),
                found: describe(other),
            }),
        }
    }

    /// Returns the error about the entry `key`.
    pub(crate) fn error(
        &self,
        key: &str,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> ConfigError {
        let key = match self.parent {
            "" => key.into(),
            parent => format!("{parent}.{key}"),
        };
        ConfigError::Entry {
            path: self.path.into(),
            key,
            expected: expected.into(),
            found: found.into(),
        }
    }

    /// Returns the error about the entry `key`, whose value is the one found.
    pub(crate) fn unexpected(&self, key: &str, expected: impl Into<String>) -> ConfigError {
        self.error(
            key,
            expected,
            self.get(key).map_or("nothing".into(), describe),
        )
    }

    /// Returns the entry `key`, unless it is missing or `null`.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.entries.get(key).filter(|value| !value.is_null())
    }

    fn read<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let convert = |value| convert(value).ok_or_else(|| self.unexpected(key, expected));
        self.get(key).map(convert).transpose()
    }

    /// Reads an integer that may be 0.
    pub(crate) fn count(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.read(key, "an integer that is not negative", |value| {
            usize::try_from(value.as_u64()?).ok()
        })
    }

    /// Reads a positive integer.
    pub(crate) fn size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.read(key, "a positive integer", |value| {
            let size = usize::try_from(value.as_u64()?).ok()?;
            (size > 0).then_some(size)
        })
    }

    /// Reads a positive integer that must not be missing.
    pub(crate) fn required_size(&self, key: &str) -> Result<usize, ConfigError> {
        let missing = || self.unexpected(key, "a positive integer");
        self.size(key)?.ok_or_else(missing)
    }

    /// Reads a positive number.
    pub(crate) fn positive(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.read(key, "a positive number", |value| {
            value
                .as_f64()
                .filter(|number| *number > 0.0 && number.is_finite())
        })
    }

    /// Reads a positive number that must not be missing.
    pub(crate) fn required_positive(&self, key: &str) -> Result<f64, ConfigError> {
        let missing = || self.unexpected(key, "a positive number");
        self.positive(key)?.ok_or_else(missing)
    }

    /// Returns whether the entry exists, even as `null`.
    pub(crate) fn contains(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Reads a boolean.
    pub(crate) fn switch(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        self.read(key, "true or false", Value::as_bool)
    }

    /// Reads a string.
    pub(crate) fn string(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        self.read(key, "a string", Value::as_str)
    }

    /// Reads the first of a list of strings.
    pub(crate) fn first_string(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        let first = |value: &'a Value| match value.as_array()?.first() {
            Some(first) => first.as_str().map(Some),
            None => Some(None),
        };
        Ok(self.read(key, "a list of strings", first)?.flatten())
    }

    /// Reads a list of strings.
    pub(crate) fn strings(&self, key: &str) -> Result<Option<Vec<&'a str>>, ConfigError> {
        self.read(key, "a list of strings", |value| {
            value.as_array()?.iter().map(Value::as_str).collect()
        })
    }

    /// Reads a list of integers that may be 0.
    pub(crate) fn counts(&self, key: &str) -> Result<Option<Vec<usize>>, ConfigError> {
        let count = |value: &Value| usize::try_from(value.as_u64()?).ok();
        self.read(key, "a list of integers that are not negative", |value| {
            value.as_array()?.iter().map(count).collect()
        })
    }

    /// Reads a list of numbers.
    pub(crate) fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>, ConfigError> {
        self.read(key, "a list of numbers", |value| {
            value.as_array()?.iter().map(Value::as_f64).collect()
        })
    }

    /// Reads an object.
    pub(crate) fn object(&self, key: &'a str) -> Result<Option<Self>, ConfigError> {
        self.object_within(key, key)
    }

    /// Reads an object whose entries errors call `path.entry`.
    pub(crate) fn object_within(
        &self,
        key: &str,
        path: &'a str,
    ) -> Result<Option<Self>, ConfigError> {
        let entries = self.read(key, "an object", Value::as_object)?;
        Ok(entries.map(|entries| Self {
            path: self.path,
            parent: path,
            entries,
        }))
    }

    /// Returns whether there is no entry.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Reads a token, given as a string or as an `AddedToken` object with the string in `content`.
    pub(crate) fn token(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        self.read(key, "a string or an object with \"content\"", |value| {
            value.as_str().or_else(|| value.get("content")?.as_str())
        })
    }

    /// Reads a token id or a list of token ids. The id -1, which some checkpoints write as a signed
    /// or an unsigned number of 32 bits, means none.
    pub(crate) fn token_ids(&self, key: &str) -> Result<Vec<u32>, ConfigError> {
        let ids = self.read(key, "a token id or a list of token ids", |value| {
            let one;
            let list = match value {
                Value::Array(list) => list.as_slice(),
                _ => {
                    one = [value.clone()];
                    &one
                }
            };
            let none = [-1, i64::from(u32::MAX)];
            let is_none = |id: &&Value| id.as_i64().is_some_and(|id| none.contains(&id));
            let given = list.iter().filter(|id| !is_none(id));
            given
                .map(|id| u32::try_from(id.as_u64()?).ok())
                .collect::<Option<Vec<_>>>()
        })?;
        Ok(ids.unwrap_or_default())
    }
}
