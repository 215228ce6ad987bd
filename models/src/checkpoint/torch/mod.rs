//! Reads `pytorch_model.bin`, the format of `torch.save`: a zip archive with a pickle, which has
//! the names and layouts of the tensors, and a file for each storage.
//!
//! A pickle is a program that PyTorch runs. This module reads it without calling anything: it knows
//! the few calls that make a dictionary of tensors by name, and refuses any other name. The weights
//! are then read from their ranges of the archive, as from any other file.
//!
//! The module does not use the reader behind `burn-store`, which trusts the sizes that a file
//! claims: 49 kB that unpack to fifty million times `None` took 8.6 GB of memory.

mod archive;
mod calls;
mod object;
mod pickle;
mod tensor;

use super::{CheckpointError, decode::Stored, describe, source::Source};
use archive::Archive;
use object::{Object, Objects};

/// The ending of the names of such files.
pub(super) const ENDING: &str = ".bin";

/// The keys under which training programs store the weights beside other objects.
const NESTED: [&str; 4] = ["state_dict", "model_state_dict", "model", "module"];

/// The most bytes of all tensors, as a multiple of the bytes of the file. Tied tensors appear under
/// each of their names.
const MAX_SHARING: u64 = 4;

/// Returns the tensors of the file `source`.
pub(super) fn tensors(source: &Source) -> Result<Vec<(String, Stored)>, CheckpointError> {
    let archive = Archive::open(source)?;
    let bytes = archive.pickle()?;
    let (objects, root) = pickle::read(&bytes, source)?;
    let mut tensors = Vec::new();
    let mut left = source.len().saturating_mul(MAX_SHARING);
    for (name, tensor) in state_dict(&objects, root, source)? {
        let stored = tensor.locate(name, &archive)?;
        left = left.checked_sub(stored.bytes).ok_or_else(|| {
            error(
                source,
                &format!("tensor \"{name}\""),
                format!("at most {MAX_SHARING} times the bytes of the file"),
                "more",
            )
        })?;
        tensors.push((name.to_owned(), stored));
    }
    Ok(tensors)
}

/// Returns the tensors of the dictionary `root`. If it has none, returns those of the first
/// dictionary in it under one of the [`NESTED`] keys.
fn state_dict<'o>(
    objects: &'o Objects<'o>,
    root: object::Id,
    source: &Source,
) -> Result<Vec<(&'o str, &'o object::Tensor<'o>)>, CheckpointError> {
    let entries = objects.entries(root);
    let own = tensors_of(objects, entries);
    if !own.is_empty() {
        return Ok(own);
    }
    let nested = NESTED.iter().find_map(|key| {
        let (_, value) = entries
            .iter()
            .find(|(name, _)| objects.text(*name) == Some(key))?;
        let tensors = tensors_of(objects, objects.entries(*value));
        (!tensors.is_empty()).then_some(tensors)
    });
    nested.ok_or_else(|| {
        const SHOWN: usize = 5;
        let keys = entries.iter().filter_map(|(name, _)| objects.text(*name));
        let keys: Vec<_> = keys.take(SHOWN).map(|key| describe(&key.into())).collect();
        let found = match keys.is_empty() {
            true => "none".into(),
            false => format!("none beside {}", keys.join(", ")),
        };
        error(source, "the pickle", "a dictionary of tensors", found)
    })
}

fn tensors_of<'o>(
    objects: &'o Objects<'o>,
    entries: &[(object::Id, object::Id)],
) -> Vec<(&'o str, &'o object::Tensor<'o>)> {
    let tensor = |(name, value): &(object::Id, object::Id)| match objects.get(*value) {
        Object::Tensor(tensor) => Some((objects.text(*name)?, &**tensor)),
        _ => None,
    };
    entries.iter().filter_map(tensor).collect()
}

fn error(
    source: &Source,
    what: &str,
    expected: impl Into<String>,
    found: impl Into<String>,
) -> CheckpointError {
    CheckpointError::Torch {
        path: source.path().into(),
        what: what.into(),
        expected: expected.into(),
        found: found.into(),
    }
}
