//! Entries and tensors of a safetensors file, by name, with errors that name both.

use std::collections::HashMap;
use std::fmt::{Debug, Display};

use safetensors::{Dtype, SafeTensors};

use crate::{Array, GoldenError, Problem};

/// A parsed safetensors file.
pub(crate) struct Reader<'a> {
    file: &'a str,
    metadata: HashMap<String, String>,
    tensors: SafeTensors<'a>,
}

impl<'a> Reader<'a> {
    /// Parses the header.
    pub(crate) fn new(file: &'a str, bytes: &'a [u8]) -> Result<Self, GoldenError> {
        let format = |source| GoldenError::Format {
            file: file.to_string(),
            source,
        };
        let tensors = SafeTensors::deserialize(bytes).map_err(format)?;
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(format)?;
        let Some(metadata) = header.metadata().clone() else {
            return Err(GoldenError::Key {
                file: file.to_string(),
                key: "__metadata__".into(),
                expected: "the settings of the case".into(),
                found: "nothing".into(),
            });
        };
        Ok(Self {
            file,
            metadata,
            tensors,
        })
    }

    /// The name of the file.
    pub(crate) fn file(&self) -> &str {
        self.file
    }

    /// Whether the metadata has an entry `key`.
    pub(crate) fn has_entry(&self, key: &str) -> bool {
        self.metadata.contains_key(key)
    }

    /// The error that `key` should have been `expected`.
    pub(crate) fn error(
        &self,
        key: &str,
        expected: impl Display,
        found: impl Display,
    ) -> GoldenError {
        GoldenError::Key {
            file: self.file.to_string(),
            key: key.to_string(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// The metadata entry `key` as text.
    pub(crate) fn text(&self, key: &str) -> Result<&str, GoldenError> {
        self.metadata
            .get(key)
            .map(String::as_str)
            .ok_or_else(|| self.error(key, "an entry of the metadata", "nothing"))
    }

    /// The metadata entry `key` as JSON.
    pub(crate) fn json<T: serde::de::DeserializeOwned>(
        &self,
        key: &str,
        expected: &str,
    ) -> Result<T, GoldenError> {
        let text = self.text(key)?;
        serde_json::from_str(text).map_err(|_| self.error(key, expected, quoted(text)))
    }

    /// The metadata entry `key` as a whole number of at least `least`.
    pub(crate) fn number(&self, key: &str, least: usize) -> Result<usize, GoldenError> {
        let expected = format!("a whole number from {least} on");
        let number = self.json(key, &expected)?;
        if number < least {
            return Err(self.error(key, expected, number));
        }
        Ok(number)
    }

    /// The metadata entry `key` as `true` or `false`.
    pub(crate) fn boolean(&self, key: &str) -> Result<bool, GoldenError> {
        self.json(key, "true or false")
    }

    /// The metadata entry `key` as one of the named choices.
    pub(crate) fn choice<T: Copy>(
        &self,
        key: &str,
        choices: &[(&str, T)],
    ) -> Result<T, GoldenError> {
        let text = self.text(key)?;
        match choices.iter().find(|(name, _)| *name == text) {
            Some((_, choice)) => Ok(*choice),
            None => {
                let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
                Err(self.error(key, names.join(" or "), quoted(text)))
            }
        }
    }

    /// The name of the case.
    pub(crate) fn name(&self) -> Result<String, GoldenError> {
        let name = self.text("name")?;
        // The name ends up in tables on terminals.
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(self.error("name", "printable text", quoted(name)));
        }
        Ok(name.to_string())
    }

    /// The sizes of the case, which every tensor is then held to.
    pub(crate) fn problem(&self) -> Result<Problem, GoldenError> {
        let problem = Problem {
            batch: self.number("batch", 1)?,
            n_heads: self.number("n_heads", 1)?,
            n_kv_heads: self.number("n_kv_heads", 1)?,
            head_dim: self.number("head_dim", 1)?,
            seq: self.number("seq", 1)?,
        };
        if !problem.n_heads.is_multiple_of(problem.n_kv_heads) {
            let expected = format!("a multiple of n_kv_heads ({})", problem.n_kv_heads);
            return Err(self.error("n_heads", expected, problem.n_heads));
        }
        Ok(problem)
    }

    /// The fp32 tensor `key` of `shape`, without NaN and, unless `infinite`, without infinities.
    fn floats(
        &self,
        key: &str,
        shape: &[usize],
        infinite: bool,
    ) -> Result<Array<f32>, GoldenError> {
        let array = self.tensor(key, Dtype::F32, shape, f32::from_le_bytes)?;
        let refused = |x: &&f32| x.is_nan() || (x.is_infinite() && !infinite);
        match array.values().iter().find(refused) {
            Some(x) if infinite => Err(self.error(key, "no NaN", x)),
            Some(x) => Err(self.error(key, "finite numbers", x)),
            None => Ok(array),
        }
    }

    /// The fp32 tensor `key` of `shape`, all of it finite.
    pub(crate) fn finite(&self, key: &str, shape: &[usize]) -> Result<Array<f32>, GoldenError> {
        self.floats(key, shape, false)
    }

    /// The fp32 tensor `key` of `shape`, which may hold infinities.
    pub(crate) fn mask(&self, key: &str, shape: &[usize]) -> Result<Array<f32>, GoldenError> {
        self.floats(key, shape, true)
    }

    /// The tensor `key` of `shape`: along the last dimension strictly ascending numbers from 0 to below `end`.
    pub(crate) fn ascending(
        &self,
        key: &str,
        shape: &[usize],
        end: usize,
    ) -> Result<Array<i64>, GoldenError> {
        let array = self.tensor(key, Dtype::I64, shape, i64::from_le_bytes)?;
        let within = |&x: &i64| usize::try_from(x).is_ok_and(|x| x < end);
        for row in array.rows() {
            if let Some(x) = row.iter().find(|x| !within(x)) {
                return Err(self.error(key, format!("indices from 0 to below {end}"), x));
            }
            if let Some(pair) = row.windows(2).find(|pair| pair[0] >= pair[1]) {
                let found = format!("{} before {}", pair[0], pair[1]);
                return Err(self.error(key, "ascending indices", found));
            }
        }
        Ok(array)
    }

    /// The tensor `key` of `shape`, whose elements are at most `most`.
    pub(crate) fn bytes(
        &self,
        key: &str,
        shape: &[usize],
        most: u8,
    ) -> Result<Array<u8>, GoldenError> {
        let array = self.tensor(key, Dtype::U8, shape, |[byte]| byte)?;
        match array.values().iter().find(|&&x| x > most) {
            Some(x) => Err(self.error(key, format!("numbers up to {most}"), x)),
            None => Ok(array),
        }
    }

    /// The tensor `key`, which must be of this type and shape.
    fn tensor<T, const N: usize>(
        &self,
        key: &str,
        dtype: Dtype,
        shape: &[usize],
        element: impl Fn([u8; N]) -> T,
    ) -> Result<Array<T>, GoldenError> {
        let wanted = describe(dtype, shape);
        let Ok(view) = self.tensors.tensor(key) else {
            return Err(self.error(key, format!("a tensor {wanted}"), "nothing"));
        };
        if view.dtype() != dtype || view.shape() != shape {
            return Err(self.error(key, wanted, describe(view.dtype(), view.shape())));
        }
        let (elements, _) = view.data().as_chunks::<N>();
        let values = elements.iter().map(|&bytes| element(bytes)).collect();
        Array::new(shape.to_vec(), values)
            .ok_or_else(|| self.error(key, wanted, format!("{} bytes", view.data().len())))
    }
}

fn describe(dtype: Dtype, shape: &[usize]) -> String {
    format!("{dtype:?} {shape:?}")
}

/// Text of a file for a message: control characters escaped, and no longer than a line.
fn quoted(text: impl AsRef<str> + Debug) -> String {
    let mut short: String = text.as_ref().chars().take(60).collect();
    if short.len() < text.as_ref().len() {
        short.push('…');
    }
    format!("{short:?}")
}
