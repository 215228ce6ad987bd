//! The JSON files beside a checkpoint's weights: [`ConfigFiles`].

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::checkpoint::{gguf::Gguf, read_json_if_present};
use crate::config::{ConfigError, Fields};

/// The source of a checkpoint's JSON files.
#[derive(Debug)]
pub(super) enum ConfigFiles {
    /// A folder.
    Folder(PathBuf),
    /// A GGUF file, whose metadata are converted to the contents of the JSON files.
    Gguf(Box<Gguf>),
}

impl ConfigFiles {
    /// Opens a folder or a GGUF file.
    pub(super) fn open(path: &Path) -> Result<Self, ConfigError> {
        Ok(match Gguf::locate(path).map_err(Box::new)? {
            Some(file) => Self::Gguf(Gguf::open(&file).map_err(Box::new)?.into()),
            None => Self::Folder(path.to_owned()),
        })
    }

    /// Reads the file `name`. Returns `None` if it does not exist, because every such file is
    /// optional.
    pub(super) fn read(&self, name: &str) -> Result<Option<ConfigFile>, ConfigError> {
        let gguf = match self {
            Self::Gguf(gguf) => gguf,
            Self::Folder(folder) => {
                let path = folder.join(name);
                let root = read_json_if_present(&path)?;
                return Ok(root.map(|root| ConfigFile { path, root }));
            }
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

/// A JSON file and its path, which errors about its entries name.
#[derive(Debug)]
pub(super) struct ConfigFile {
    path: PathBuf,
    root: Value,
}

impl ConfigFile {
    /// Returns the path of the file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the entries of the file.
    pub(super) fn fields(&self) -> Result<Fields<'_>, ConfigError> {
        Fields::new(&self.root, &self.path)
    }
}
