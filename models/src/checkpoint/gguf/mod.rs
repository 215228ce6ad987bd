//! Reads GGUF, the format of llama.cpp: one or more files with metadata, tokenizer and quantised
//! tensors.
//!
//! A GGUF file is made from a Hugging Face checkpoint. [`Gguf`] restores that checkpoint: the
//! configuration as `config.json`, the tokenizer as `tokenizer.json`, and the tensors with their
//! original names and order of rows. The rest of the library does not know the format.
//!
//! The module does not use a published parser, since those allocate any length that a file claims.

mod config;
mod cursor;
mod families;
mod header;
mod names;
mod parts;
mod pre_tokenizer;
mod rope;
mod tokenizer;

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use super::{
    CheckpointError,
    decode::{Layout, Stored},
    describe,
    open::file_names,
    source::Source,
    weight_files::WeightFiles,
};
pub(super) use config::key_of;
use header::TensorInfo;
use names::Family;
pub(super) use names::in_llama_cpp;
use parts::Part;
#[cfg(feature = "hub")]
pub(crate) use parts::{count, of_model};
pub(crate) use tokenizer::CHAT_BEGINS_WITH_BOS;

/// The ending of the name of a GGUF file.
pub(crate) const ENDING: &str = ".gguf";

/// An open GGUF file.
#[derive(Debug)]
pub(crate) struct Gguf {
    /// Never empty.
    parts: Vec<Part>,
    metadata: Map<String, Value>,
    family: Family,
}

impl Gguf {
    /// Returns the GGUF file that `path` stands for: the file itself, or the only model in a folder
    /// without other weights (its file, or the first of its parts). `None` if `path` is something
    /// else.
    ///
    /// # Errors
    /// If a folder has several models.
    pub(crate) fn locate(path: &Path) -> Result<Option<PathBuf>, CheckpointError> {
        if path.is_file() {
            let by_name = path.to_string_lossy().ends_with(ENDING);
            return Ok((by_name || begins_as_gguf(path)).then(|| path.to_path_buf()));
        }
        // Opening the folder reports an error of reading it.
        let Ok(names) = file_names(path) else {
            return Ok(None);
        };
        let names = names.iter().map(String::as_str);
        if WeightFiles::choose(names.clone()).is_some() {
            return Ok(None);
        }
        let files: Vec<_> = names.filter(|name| name.ends_with(ENDING)).collect();
        let models = language_models(&files);
        match (&*models, &*files) {
            ([only], _) => Ok(Some(path.join(only))),
            ([], []) => Ok(None),
            ([], [projector, ..]) => Err(error(
                path,
                "the folder",
                "a language model",
                format!("the projector {projector} of a vision model alone"),
            )),
            (several, _) => Err(CheckpointError::SeveralGguf {
                path: path.into(),
                found: several.join(", "),
            }),
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
            gguf.error(
                KEY,
                format!("one of {}", known.join(", ")),
                format!("{name:?}"),
            )
        })?;
        if gguf.family.name == names::LLAMA.name && gguf.experts() > 0 {
            gguf.family = names::MIXTRAL;
        }
        Ok(gguf)
    }

    /// Returns the name in `general.architecture`.
    pub(super) fn family_name(&self) -> &'static str {
        self.family.name
    }

    pub(crate) fn path(&self) -> &Path {
        self.parts[0].source.path()
    }

    /// Returns the files, in the order of [`tensors`](Self::tensors).
    pub(super) fn into_sources(self) -> impl Iterator<Item = Source> {
        self.parts.into_iter().map(|part| part.source)
    }

    /// Returns the tensors of the checkpoint, file by file.
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
                within: None,
            };
            self.split(&tensor.name, name, stored)
        };
        let convert = |part: &Part| {
            let tensors = part.tensors.iter();
            let is_constant =
                |name: &str| name == names::ROPE_FACTORS || names::LONGROPE_FACTORS.contains(&name);
            let kept = tensors.filter(|tensor| !is_constant(&tensor.name));
            let tensors = kept.map(convert).collect::<Result<Vec<_>, _>>()?;
            Ok(tensors.into_iter().flatten().collect())
        };
        self.parts.iter().map(convert).collect()
    }

    /// Returns the tensor `name` and its file.
    fn tensor(&self, name: &str) -> Option<(&Source, &TensorInfo)> {
        self.parts.iter().find_map(|part| {
            let tensor = part.tensors.iter().find(|tensor| tensor.name == name);
            tensor.map(|tensor| (&part.source, tensor))
        })
    }

    /// Returns the entry `key`, in which `{arch}` stands for the name of the architecture.
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

    /// Returns a count, which has to exist and be positive.
    fn required_size(&self, key: &str) -> Result<usize, CheckpointError> {
        const EXPECTED: &str = "a positive integer";
        let size = self.required(key, EXPECTED)?.as_u64();
        let size = size.and_then(|size| usize::try_from(size).ok());
        size.filter(|&size| size > 0)
            .ok_or_else(|| self.unexpected(key, EXPECTED))
    }

    /// Returns a list, which has to exist.
    fn required_list(&self, key: &str) -> Result<&[Value], CheckpointError> {
        const EXPECTED: &str = "a list";
        let list = self.required(key, EXPECTED)?.as_array();
        list.map(Vec::as_slice)
            .ok_or_else(|| self.unexpected(key, EXPECTED))
    }

    /// Creates the error of an entry with an unexpected value.
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
        let what = format!("\"{}\"", self.key(what));
        error(self.path(), what, expected, found)
    }
}

/// Returns the language models among the GGUF files `names`, each by its first file. The projector
/// of a vision model is no language model.
pub(crate) fn language_models<'a>(names: &[&'a str]) -> Vec<&'a str> {
    let is_projector = |name: &str| name.to_lowercase().contains("mmproj");
    parts::models(names.iter().copied().filter(|name| !is_projector(name)))
}

/// Returns whether a regular file begins like one in the GGUF format.
fn begins_as_gguf(path: &Path) -> bool {
    let mut magic = [0; header::MAGIC.len()];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    read.is_ok() && &magic == header::MAGIC
}

fn error(
    path: &Path,
    what: impl Into<String>,
    expected: impl Into<String>,
    found: impl Into<String>,
) -> CheckpointError {
    CheckpointError::Gguf {
        path: path.into(),
        what: what.into(),
        expected: expected.into(),
        found: found.into(),
    }
}
