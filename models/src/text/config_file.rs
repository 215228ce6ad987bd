//! Reading the small files about text that lie beside a checkpoint's weights.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::checkpoint::{CheckpointError, JsonError, describe, gguf::Gguf, read_json_if_present};

/// What is wrong with a file about text in a checkpoint's folder.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFileError {
    /// The file is no JSON, or cannot be read.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// The GGUF file that holds what such a file would say is wrong.
    #[error(transparent)]
    Gguf(#[from] Box<CheckpointError>),
    /// A template file is there but cannot be read as text.
    #[error("{}: cannot be read: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        error: io::Error,
    },
    /// An entry is not of the kind it has to be.
    #[error("{}: \"{key}\": expected {expected}, found {found}", path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// The entry, with dots between the levels.
        key: String,
        /// What would have been right.
        expected: &'static str,
        /// What is there.
        found: String,
    },
}

/// Where the small files of a checkpoint are.
#[derive(Debug)]
pub(super) enum ConfigFiles {
    /// In its folder.
    Folder(PathBuf),
    /// In the metadata of a GGUF file, which says what they would.
    Gguf(Box<Gguf>),
}

impl ConfigFiles {
    /// Those of the folder or the GGUF file `path`.
    pub(super) fn open(path: &Path) -> Result<Self, ConfigFileError> {
        Ok(match Gguf::locate(path) {
            Some(file) => Self::Gguf(Gguf::open(&file).map_err(Box::new)?.into()),
            None => Self::Folder(path.to_owned()),
        })
    }

    /// The file `name`; `None` when there is no such file, because every file read this way is optional.
    pub(super) fn read(&self, name: &str) -> Result<Option<ConfigFile>, ConfigFileError> {
        let gguf = match self {
            Self::Folder(folder) => return ConfigFile::read(&folder.join(name)),
            Self::Gguf(gguf) => gguf,
        };
        let root = match name {
            "config.json" => gguf.config(),
            "tokenizer_config.json" => gguf.tokenizer_config(),
            _ => return Ok(None),
        };
        Ok(Some(ConfigFile {
            path: gguf.path().to_owned(),
            root: root.map_err(Box::new)?,
        }))
    }
}

/// A JSON file and where it came from, so that an error about one of its entries can name both.
#[derive(Debug)]
pub(super) struct ConfigFile {
    path: PathBuf,
    root: Value,
}

impl ConfigFile {
    /// Reads `path`; `None` when there is no such file, because every file read this way is optional.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, ConfigFileError> {
        Ok(read_json_if_present(path)?.map(|root| Self {
            path: path.to_owned(),
            root,
        }))
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The entry `key` of the top level; `None` when it is absent or null.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.root.get(key).filter(|value| !value.is_null())
    }

    /// A token written as a string or as an `AddedToken` object, whose `content` is the string.
    pub(super) fn token(&self, key: &str) -> Result<Option<String>, ConfigFileError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_str().or_else(|| value.get("content")?.as_str()) {
            Some(token) => Ok(Some(token.to_owned())),
            None => Err(self.error(key, "a string or an object with \"content\"", value)),
        }
    }

    /// A token id or a list of token ids; empty when the entry is absent.
    pub(super) fn token_ids(&self, key: &str) -> Result<Vec<u32>, ConfigFileError> {
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match value {
            Value::Array(ids) => ids.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.error(key, "a token id or a list of token ids", value))
    }

    /// An [`ConfigFileError::Entry`] about this file.
    pub(super) fn error(
        &self,
        key: &str,
        expected: &'static str,
        found: &Value,
    ) -> ConfigFileError {
        ConfigFileError::Entry {
            path: self.path.clone(),
            key: key.to_owned(),
            expected,
            found: describe(found),
        }
    }
}
