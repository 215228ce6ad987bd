//! Reading `pytorch_model.bin`, the format of `torch.save`: a zip archive with a pickle, which names tensors and how they lie, and a file for each storage.
//!
//! A pickle is a program, and PyTorch runs it. Here it is read: the few calls that a dictionary of tensors is made of are known by name, any other name ends
//! the reading, and nothing is called. The weights are then read from where they lie in the archive, as from any other file.
//!
//! The reader is our own because the one behind `burn-store` believes what a file claims: 49 kB that unpack to fifty million times `None` took it 8.6 GB.

mod archive;
mod calls;
mod object;
mod pickle;
mod tensor;

use super::{CheckpointError, decode::Stored, describe, source::Source};
use archive::Archive;
use object::{Object, Objects};

/// How the names of such files end.
pub(super) const ENDING: &str = ".bin";

/// Where training programs put the weights beside other things.
const NESTED: [&str; 4] = ["state_dict", "model_state_dict", "model", "module"];

/// How many times the bytes of the file all tensors together may have: tied ones are there under each of their names.
const MAX_SHARING: u64 = 4;

/// The tensors of the file `source`.
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
                format!("at most {MAX_SHARING} times as many bytes of tensors as of file"),
                "more",
            )
        })?;
        tensors.push((name.to_owned(), stored));
    }
    Ok(tensors)
}

/// The tensors of the dictionary `root`, or if it has none, of the dictionary in it that is called as such are.
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
