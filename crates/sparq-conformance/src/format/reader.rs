//! Reads metadata entries and tensors of a safetensors file. Errors name the file and the key.

use std::collections::HashMap;
use std::fmt::{Debug, Display};

use safetensors::{Dtype, SafeTensors};

use crate::{Array, ConformanceError, Problem};

/// A parsed safetensors file.
pub(crate) struct Reader<'a> {
    file: &'a str,
    metadata: HashMap<String, String>,
    tensors: SafeTensors<'a>,
}

impl<'a> Reader<'a> {
    /// Parses the header.
    pub(crate) fn new(file: &'a str, bytes: &'a [u8]) -> Result<Self, ConformanceError> {
        let format = |source| ConformanceError::Format {
            file: file.to_string(),
            source,
        };
        let tensors = SafeTensors::deserialize(bytes).map_err(format)?;
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(format)?;
        let Some(metadata) = header.metadata().clone() else {
            return Err(ConformanceError::Key {
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

    /// Returns the name of the file.
    pub(crate) fn file(&self) -> &str {
        self.file
    }

    /// Returns whether the metadata has an entry `key`.
    pub(crate) fn has_entry(&self, key: &str) -> bool {
        self.metadata.contains_key(key)
    }

    /// Returns the error that `key` was expected to be `expected`.
    pub(crate) fn error(
        &self,
        key: &str,
        expected: impl Display,
        found: impl Display,
    ) -> ConformanceError {
        ConformanceError::Key {
            file: self.file.to_string(),
            key: key.to_string(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// Reads the metadata entry `key` as text.
    pub(crate) fn text(&self, key: &str) -> Result<&str, ConformanceError> {
        self.metadata
            .get(key)
            .map(String::as_str)
            .ok_or_else(|| self.error(key, "a metadata entry", "nothing"))
    }

    /// Reads the metadata entry `key` as JSON.
    pub(crate) fn json<T: serde::de::DeserializeOwned>(
        &self,
        key: &str,
        expected: &str,
    ) -> Result<T, ConformanceError> {
        let text = self.text(key)?;
        serde_json::from_str(text).map_err(|_| self.error(key, expected, quoted(text)))
    }

    /// Reads the metadata entry `key` as an integer of at least `least`.
    pub(crate) fn number(&self, key: &str, least: usize) -> Result<usize, ConformanceError> {
        let expected = format!("an integer of at least {least}");
        let number = self.json(key, &expected)?;
        if number < least {
            return Err(self.error(key, expected, number));
        }
        Ok(number)
    }

    /// Reads the metadata entry `key` as `true` or `false`.
    pub(crate) fn boolean(&self, key: &str) -> Result<bool, ConformanceError> {
        self.json(key, "true or false")
    }

    /// Reads the metadata entry `key` as one of the named choices.
    pub(crate) fn choice<T: Copy>(
        &self,
        key: &str,
        choices: &[(&str, T)],
    ) -> Result<T, ConformanceError> {
        let text = self.text(key)?;
        match choices.iter().find(|(name, _)| *name == text) {
            Some((_, choice)) => Ok(*choice),
            None => {
                let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
                Err(self.error(key, names.join(" or "), quoted(text)))
            }
        }
    }

    /// Reads the name of the case.
    pub(crate) fn name(&self) -> Result<String, ConformanceError> {
        let name = self.text("name")?;
        // The name is printed in tables on terminals.
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(self.error("name", "printable text", quoted(name)));
        }
        Ok(name.to_string())
    }

    /// Reads the sizes of the case.
    pub(crate) fn problem(&self) -> Result<Problem, ConformanceError> {
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

    /// Reads the fp32 tensor `key` of `shape`. Refuses NaN and, unless `infinite`, infinities.
    fn floats(
        &self,
        key: &str,
        shape: &[usize],
        infinite: bool,
    ) -> Result<Array<f32>, ConformanceError> {
        let array = self.tensor(key, Dtype::F32, shape, f32::from_le_bytes)?;
        let refused = |x: &&f32| x.is_nan() || (x.is_infinite() && !infinite);
        match array.values().iter().find(refused) {
            Some(x) if infinite => Err(self.error(key, "no NaN", x)),
            Some(x) => Err(self.error(key, "finite numbers", x)),
            None => Ok(array),
        }
    }

    /// Reads the fp32 tensor `key` of `shape`. All elements must be finite.
    pub(crate) fn finite(
        &self,
        key: &str,
        shape: &[usize],
    ) -> Result<Array<f32>, ConformanceError> {
        self.floats(key, shape, false)
    }

    /// Reads the fp32 tensor `key` of `shape`, which may contain infinities.
    pub(crate) fn mask(&self, key: &str, shape: &[usize]) -> Result<Array<f32>, ConformanceError> {
        self.floats(key, shape, true)
    }

    /// Reads the tensor `key` of `shape`: indices below `end`, strictly ascending along the last
    /// dimension.
    pub(crate) fn ascending(
        &self,
        key: &str,
        shape: &[usize],
        end: usize,
    ) -> Result<Array<i64>, ConformanceError> {
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

    /// Reads the byte tensor `key` of `shape`, whose elements are at most `most`.
    pub(crate) fn bytes(
        &self,
        key: &str,
        shape: &[usize],
        most: u8,
    ) -> Result<Array<u8>, ConformanceError> {
        let array = self.tensor(key, Dtype::U8, shape, |[byte]| byte)?;
        match array.values().iter().find(|&&x| x > most) {
            Some(x) => Err(self.error(key, format!("numbers up to {most}"), x)),
            None => Ok(array),
        }
    }

    /// Reads the tensor `key`, which must have this type and shape.
    fn tensor<T, const N: usize>(
        &self,
        key: &str,
        dtype: Dtype,
        shape: &[usize],
        element: impl Fn([u8; N]) -> T,
    ) -> Result<Array<T>, ConformanceError> {
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

/// Quotes text of a file for a message: escapes control characters and cuts it after 60 characters.
fn quoted(text: impl AsRef<str> + Debug) -> String {
    let mut short: String = text.as_ref().chars().take(60).collect();
    if short.len() < text.as_ref().len() {
        short.push('…');
    }
    format!("{short:?}")
}
