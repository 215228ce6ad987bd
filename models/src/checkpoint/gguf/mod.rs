//! Reading GGUF, the format of llama.cpp: a file, or several, with metadata, tokenizer and quantised tensors.
//!
//! A GGUF file is made from a Hugging Face checkpoint, and [`Gguf`] reads it back as one: its configuration as a `config.json` would say it, its tokenizer
//! as a `tokenizer.json`, its tensors by their names and in the order of their rows there. Nothing behind this module knows of the format.
//!
//! The parser is our own because those published allocate whatever length a file claims.

mod config;
mod cursor;
mod header;
mod names;
mod parts;
mod tokenizer;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{
    CheckpointError,
    decode::{Layout, Stored},
    describe,
    open::file_names,
    source::Source,
    weight_files::WeightFiles,
};
use header::TensorInfo;
use names::Family;
use parts::Part;

/// How the name of a GGUF file ends.
const ENDING: &str = ".gguf";

/// An open GGUF file.
#[derive(Debug)]
pub(crate) struct Gguf {
    /// Never empty.
    parts: Vec<Part>,
    metadata: Map<String, Value>,
    family: Family,
}

impl Gguf {
    /// The GGUF file that `path` means: the file itself, or the only one, or the first part of the only one, of a folder that has no other weights.
    pub(crate) fn locate(path: &Path) -> Option<PathBuf> {
        let is_gguf = |name: &str| name.ends_with(ENDING);
        if path.is_file() {
            let name = path.file_name()?.to_str()?;
            return is_gguf(name).then(|| path.to_path_buf());
        }
        // What can't be read is told by who opens the folder.
        let names = file_names(path).ok()?;
        if WeightFiles::choose(names.iter().map(String::as_str)).is_some() {
            return None;
        }
        let names = names.iter().map(String::as_str);
        let found: Vec<_> = names.filter(|name| is_gguf(name)).collect();
        match *found {
            [only] => Some(path.join(only)),
            _ => parts::first(&found).map(|first| path.join(first)),
        }
    }

    /// Reads the headers of the file `path` and of its further parts.
    pub(crate) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let (metadata, parts) = parts::open(path)?;
        let mut gguf = Self {
            parts,
            metadata,
            family: names::LLAMA,
        };
        const KEY: &str = "general.architecture";
        let name = gguf.required_str(KEY)?;
        gguf.family = Family::find(name).ok_or_else(|| {
            let known: Vec<_> = names::FAMILIES.iter().map(|family| family.name).collect();
            gguf.error(KEY, known.join(" or "), format!("{name:?}"))
        })?;
        Ok(gguf)
    }

    pub(crate) fn path(&self) -> &Path {
        self.parts[0].source.path()
    }

    /// The files, in the order of [`tensors`](Self::tensors).
    pub(super) fn into_sources(self) -> impl Iterator<Item = Source> {
        self.parts.into_iter().map(|part| part.source)
    }

    /// The tensors of the checkpoint, file by file.
    pub(super) fn tensors(&self) -> Result<Vec<Vec<(String, Stored)>>, CheckpointError> {
        let head_dim = self.head_dim()?;
        let convert = |tensor: &TensorInfo| {
            let name = self.family.tensor(&tensor.name);
            let paired = self.family.pairs_rows && names::is_rotated(&tensor.name);
            let layout = match paired {
                true => Layout::PairedRows { head_dim },
                false => Layout::Rows,
            };
            let heads_fit = |rows: &usize| rows.is_multiple_of(head_dim);
            if paired && !tensor.shape.first().is_some_and(heads_fit) {
                let expected = format!("rows of whole heads of {head_dim}");
                return Err(self.error(&tensor.name, expected, format!("{:?}", tensor.shape)));
            }
            let stored = Stored {
                dtype: tensor.dtype,
                shape: tensor.shape.clone(),
                offset: tensor.offset,
                bytes: tensor.bytes,
                layout,
                checksum: None,
            };
            Ok((name, stored))
        };
        let convert = |part: &Part| {
            let tensors = part.tensors.iter();
            let kept = tensors.filter(|tensor| tensor.name != names::ROPE_FACTORS);
            kept.map(convert).collect()
        };
        self.parts.iter().map(convert).collect()
    }

    /// The tensor `name` and the file that it is in.
    fn tensor(&self, name: &str) -> Option<(&Source, &TensorInfo)> {
        self.parts.iter().find_map(|part| {
            let tensor = part.tensors.iter().find(|tensor| tensor.name == name);
            tensor.map(|tensor| (&part.source, tensor))
        })
    }

    /// The entry `key`; `{arch}` stands for the name of the architecture.
    fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(&self.key(key))
    }

    fn key(&self, key: &str) -> String {
        key.replace("{arch}", self.family.name)
    }

    fn required(&self, key: &str, expected: &str) -> Result<&Value, CheckpointError> {
        let missing = || self.error(key, expected, "nothing");
        self.get(key).ok_or_else(missing)
    }

    fn required_str(&self, key: &str) -> Result<&str, CheckpointError> {
        let value = self.required(key, "a string")?;
        value
            .as_str()
            .ok_or_else(|| self.unexpected(key, "a string"))
    }

    /// A count that is not zero and has to be there.
    fn required_size(&self, key: &str) -> Result<usize, CheckpointError> {
        const EXPECTED: &str = "a positive integer";
        let size = self.required(key, EXPECTED)?.as_u64();
        let size = size.and_then(|size| usize::try_from(size).ok());
        size.filter(|&size| size > 0)
            .ok_or_else(|| self.unexpected(key, EXPECTED))
    }

    /// A list that has to be there.
    fn required_list(&self, key: &str) -> Result<&[Value], CheckpointError> {
        const EXPECTED: &str = "a list";
        let list = self.required(key, EXPECTED)?.as_array();
        list.map(Vec::as_slice)
            .ok_or_else(|| self.unexpected(key, EXPECTED))
    }

    /// The error that the entry `key` is there and not what was expected.
    fn unexpected(&self, key: &str, expected: impl Into<String>) -> CheckpointError {
        self.error(
            key,
            expected,
            self.get(key).map_or("nothing".into(), describe),
        )
    }

    fn error(
        &self,
        what: &str,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> CheckpointError {
        CheckpointError::Gguf {
            path: self.path().into(),
            what: format!("\"{}\"", self.key(what)),
            expected: expected.into(),
            found: found.into(),
        }
    }
}
