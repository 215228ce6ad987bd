//! [`Tokens`]: token IDs from the command line or a safetensors file.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// The key of the tokens in a file.
const KEY: &str = "input_ids";

/// Token IDs, [B, T].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// The number of sequences, B.
    pub batch: usize,
    /// The number of tokens per sequence, T, at least 1.
    pub len: usize,
    /// The IDs, sequence after sequence.
    pub ids: Vec<u32>,
}

impl Tokens {
    /// Reads `argument`: IDs separated by commas, or the path of a safetensors file.
    ///
    /// # Errors
    /// If it is neither, an ID is not below `vocab_size`, or there are no tokens.
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
                "{origin}: {KEY}: expected at least one sequence and token, found shape {shape:?}"
            );
        }
        let valid = |(index, &id): (usize, &i64)| {
            let known = u32::try_from(id).ok();
            let known = known.filter(|&id| (id as usize) < vocab_size);
            let (sequence, at, last) = (index / len, index % len, vocab_size - 1);
            known.with_context(|| {
                format!(
                    "{origin}: {KEY}[{sequence}, {at}]: expected a token ID of 0 to {last}, found {id}"
                )
            })
        };
        Ok(Self {
            batch,
            len,
            ids: ids.iter().enumerate().map(valid).collect::<Result<_>>()?,
        })
    }

    /// Returns the tokens of every sequence at the positions of a span, sequence after sequence.
    pub fn columns(&self, span: Range<usize>) -> Vec<u32> {
        self.ids
            .chunks(self.len)
            .flat_map(|sequence| &sequence[span.clone()])
            .copied()
            .collect()
    }
}

fn from_list(list: &str) -> Result<Vec<i64>> {
    let id = |text: &str| {
        let text = text.trim();
        text.parse().with_context(|| {
            format!(
                "--tokens: expected IDs separated by commas or a .safetensors file, found {text:?}"
            )
        })
    };
    list.split(',').map(id).collect()
}

fn from_file(path: &Path) -> Result<([usize; 2], Vec<i64>)> {
    let bytes =
        std::fs::read(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    let file = SafeTensors::deserialize(&bytes)
        .with_context(|| format!("{}: expected a safetensors file", path.display()))?;
    let tensor = file.tensor(KEY).map_err(|_| {
        let found = file.names().join(", ");
        anyhow::anyhow!("{}: expected a tensor {KEY}, found {found}", path.display())
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
    let wide = |bytes: &[u8; 8]| i64::from_le_bytes(*bytes);
    let narrow = |bytes: &[u8; 4]| i64::from(i32::from_le_bytes(*bytes));
    match tensor.dtype() {
        Dtype::I64 => Some(data.as_chunks().0.iter().map(wide).collect()),
        Dtype::I32 => Some(data.as_chunks().0.iter().map(narrow).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_is_one_sequence() {
        let tokens = Tokens::read("3, 1,2", 4).unwrap();
        assert_eq!((tokens.batch, tokens.len), (1, 3));
        assert_eq!(tokens.columns(0..3), [3, 1, 2]);
        assert_eq!(tokens.columns(1..3), [1, 2]);
    }

    #[test]
    fn ids_outside_the_vocabulary_are_located() {
        let error = Tokens::read("0,4", 4).unwrap_err().to_string();
        assert_eq!(
            error,
            "--tokens: input_ids[0, 1]: expected a token ID of 0 to 3, found 4"
        );
        assert!(Tokens::read("-1", 4).is_err());
        assert!(Tokens::read("", 4).is_err());
    }
}
