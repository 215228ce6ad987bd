//! The tokens to read: from the command line or from a safetensors file.

use std::path::Path;

use anyhow::{Context, Result, bail};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// The key of the tokens in a file.
const KEY: &str = "input_ids";

/// Token ids, [B, T], T at least 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// B.
    pub batch: usize,
    /// T.
    pub len: usize,
    /// Row after row.
    pub ids: Vec<u32>,
}

impl Tokens {
    /// Reads `argument`: ids with commas between them, or the path of a safetensors file. Every id has to be below `vocab_size`.
    ///
    /// # Errors
    /// When it is neither, or an id or the shape is out of range.
    pub fn read(argument: &str, vocab_size: usize) -> Result<Self> {
        let (origin, shape, ids) =
            if argument.ends_with(".safetensors") || Path::new(argument).is_file() {
                let (shape, ids) = from_file(Path::new(argument))?;
                (argument.to_owned(), shape, ids)
            } else {
                let ids = from_list(argument)?;
                ("--tokens".to_owned(), [1, ids.len()], ids)
            };
        let [batch, len] = shape;
        if batch == 0 || len == 0 {
            bail!(
                "{origin}: {KEY}: expected a sequence and a token at least, found shape {shape:?}"
            );
        }
        let valid = |(index, &id): (usize, &i64)| {
            u32::try_from(id)
                .ok()
                .filter(|&id| (id as usize) < vocab_size)
                .with_context(|| {
                    format!(
                        "{origin}: {KEY}[{}, {}]: expected a token id of 0 to {}, found {id}",
                        index / len,
                        index % len,
                        vocab_size - 1
                    )
                })
        };
        Ok(Self {
            batch,
            len,
            ids: ids.iter().enumerate().map(valid).collect::<Result<_>>()?,
        })
    }

    /// The columns `from .. to` of every row, row after row.
    pub fn columns(&self, from: usize, to: usize) -> Vec<u32> {
        self.ids
            .chunks(self.len)
            .flat_map(|row| &row[from..to])
            .copied()
            .collect()
    }
}

fn from_list(list: &str) -> Result<Vec<i64>> {
    let id = |text: &str| {
        let text = text.trim();
        text.parse().with_context(|| format!("--tokens: expected ids with commas between them or a .safetensors file, found {text:?}"))
    };
    list.split(',').map(id).collect()
}

fn from_file(path: &Path) -> Result<([usize; 2], Vec<i64>)> {
    let bytes =
        std::fs::read(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    let file = SafeTensors::deserialize(&bytes)
        .with_context(|| format!("{}: expected a safetensors file", path.display()))?;
    let found = || file.names().into_iter().collect::<Vec<&str>>().join(", ");
    let tensor = file.tensor(KEY).map_err(|_| {
        anyhow::anyhow!(
            "{}: expected a tensor {KEY}, found {}",
            path.display(),
            found()
        )
    })?;
    let &[batch, len] = tensor.shape() else {
        bail!(
            "{}: {KEY}: expected shape [B, T], found {:?}",
            path.display(),
            tensor.shape()
        );
    };
    let Some(ids) = integers(&tensor) else {
        bail!(
            "{}: {KEY}: expected type I64 or I32, found {:?}",
            path.display(),
            tensor.dtype()
        );
    };
    Ok(([batch, len], ids))
}

fn integers(tensor: &TensorView<'_>) -> Option<Vec<i64>> {
    let data = tensor.data();
    match tensor.dtype() {
        Dtype::I64 => Some(
            data.as_chunks()
                .0
                .iter()
                .map(|&bytes| i64::from_le_bytes(bytes))
                .collect(),
        ),
        Dtype::I32 => Some(
            data.as_chunks()
                .0
                .iter()
                .map(|&bytes| i64::from(i32::from_le_bytes(bytes)))
                .collect(),
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_one_sequence() {
        let tokens = Tokens::read("3, 1,2", 4).unwrap();
        assert_eq!(
            tokens,
            Tokens {
                batch: 1,
                len: 3,
                ids: vec![3, 1, 2]
            }
        );
        assert_eq!(tokens.columns(1, 3), [1, 2]);
    }

    #[test]
    fn an_id_outside_the_vocabulary_is_named_with_its_place() {
        let error = Tokens::read("0,4", 4).unwrap_err().to_string();
        assert_eq!(
            error,
            "--tokens: input_ids[0, 1]: expected a token id of 0 to 3, found 4"
        );
        assert!(Tokens::read("-1", 4).is_err());
        assert!(Tokens::read("", 4).is_err());
    }
}
