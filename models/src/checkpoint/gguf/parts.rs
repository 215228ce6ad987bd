//! The files that a GGUF model is split into: [`Part`].

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use super::super::{CheckpointError, describe, source::Source};
use super::header::{self, TensorInfo};

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// One file with its tensors.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) source: Source,
    pub(super) tensors: Vec<TensorInfo>,
}

impl Part {
    fn open(path: &Path) -> Result<(Map<String, Value>, Self), CheckpointError> {
        let source = Source::open(path)?;
        let (metadata, tensors) = header::read(&source)?;
        Ok((metadata, Self { source, tensors }))
    }
}

/// Opens the file `path`. If it is the first of several parts, opens the others beside it. The
/// first has the metadata of the model.
pub(super) fn open(path: &Path) -> Result<(Map<String, Value>, Vec<Part>), CheckpointError> {
    let (metadata, first) = Part::open(path)?;
    let mut parts = vec![first];
    let count = number(&metadata, COUNT).unwrap_or(1);
    if count <= 1 {
        return Ok((metadata, parts));
    }
    expect(path, &metadata, NUMBER, 0, " (the first part)")?;
    for number in 1..count {
        let other = path_of(path, number, count)?;
        let (own, part) = match Part::open(&other) {
            Err(CheckpointError::Read { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                let expected = format!("the part {} as well", other.display());
                return Err(error_of(path, COUNT, expected, "no such file"));
            }
            opened => opened?,
        };
        expect(&other, &own, NUMBER, number, "")?;
        expect(&other, &own, COUNT, count, "")?;
        parts.push(part);
    }
    if metadata.contains_key(TENSORS) {
        let tensors = parts.iter().map(|part| part.tensors.len() as u64).sum();
        let all = " in all parts together";
        expect(path, &metadata, TENSORS, tensors, all)?;
    }
    Ok((metadata, parts))
}

/// Returns the first file of each model among the sorted files `names`.
pub(super) fn models<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = BTreeSet::new();
    let mut first = names.into_iter().collect::<Vec<_>>();
    first.retain(|name| model_of(name).is_none_or(|model| seen.insert(model)));
    first
}

/// Returns the files of the model whose first file is `first`, among `names`.
#[cfg(feature = "hub")]
pub(crate) fn of_model<'a>(first: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let model = model_of(first);
    let is_part = |name: &&str| match model {
        Some(model) => model_of(name) == Some(model),
        None => *name == first,
    };
    names.into_iter().filter(is_part).collect()
}

/// Returns the number of files of the model that the file `name` belongs to.
#[cfg(feature = "hub")]
pub(crate) fn count(name: &str) -> usize {
    let count = model_of(name).and_then(|(_, count)| count.strip_suffix(super::ENDING));
    count.and_then(|count| count.parse().ok()).unwrap_or(1)
}

/// Returns the text before and after the number in `model-00001-of-00003.gguf`, which identifies
/// the model.
fn model_of(name: &str) -> Option<(&str, &str)> {
    let (begin, count) = name.rsplit_once("-of-")?;
    let (model, number) = begin.rsplit_once('-')?;
    number.parse::<u64>().ok()?;
    Some((model, count))
}

/// Returns the path of the part `number`, counted from 0, of the model whose first part is `first`.
fn path_of(first: &Path, number: u64, count: u64) -> Result<PathBuf, CheckpointError> {
    let name = first.file_name().unwrap_or_default().to_string_lossy();
    let ending = |number: u64| format!("-{:05}-of-{count:05}{}", number + 1, super::ENDING);
    let Some(model) = name.strip_suffix(&ending(0)) else {
        let expected = format!("the first of {count} parts, named *{}", ending(0));
        return Err(error_of(first, COUNT, expected, name));
    };
    Ok(first.with_file_name(format!("{model}{}", ending(number))))
}

fn number(metadata: &Map<String, Value>, key: &str) -> Option<u64> {
    metadata.get(key).and_then(Value::as_u64)
}

/// Checks that the number under `key` is `expected`.
fn expect(
    path: &Path,
    metadata: &Map<String, Value>,
    key: &str,
    expected: u64,
    why: &str,
) -> Result<(), CheckpointError> {
    if number(metadata, key) == Some(expected) {
        return Ok(());
    }
    let found = metadata.get(key).map_or("nothing".into(), describe);
    Err(error_of(path, key, format!("{expected}{why}"), found))
}

fn error_of(path: &Path, key: &str, expected: String, found: impl Into<String>) -> CheckpointError {
    super::error(path, format!("\"{key}\""), expected, found)
}
