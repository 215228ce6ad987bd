//! A reference case: the input of one decode step and what must come out.

use std::path::Path;

use sparq::SparqConfig;

use crate::{Array, GoldenError, Problem, format};

/// Where a case comes from, and so in which format its file is, if it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A step of the paper's authors' published code, with a full copy of K.
    Authors,
    /// A step with a key sketch of 8 or 4 bits, computed in float64.
    Sketch,
    /// A drawn case, judged by float64 arithmetic.
    Random,
}

/// One decode step: settings, input and expected results.
///
/// Every tensor has the shape that `problem` and `config` give it, all numbers are finite, and every sequence has a valid position.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// The name within its set.
    pub name: String,
    /// The format that it was read from.
    pub kind: Kind,
    /// The sizes.
    pub problem: Problem,
    /// The settings of the step, in the paper's way of counting.
    pub config: SparqConfig,
    /// Positions at the start of each sequence that hold no token, B of them.
    pub left_padding: Vec<usize>,
    /// What goes in.
    pub inputs: Inputs,
    /// What must come out.
    pub expected: Expected,
}

/// The input of a decode step.
#[derive(Clone, Debug, PartialEq)]
pub struct Inputs {
    /// The query of the current token, after rotary embedding, [B, H, 1, d].
    pub q: Array<f32>,
    /// The keys, the current token's last, [B, H_kv, S, d].
    pub k: Array<f32>,
    /// The values, the current token's last, [B, H_kv, S, d].
    pub v: Array<f32>,
}

/// The results of a decode step.
#[derive(Clone, Debug, PartialEq)]
pub struct Expected {
    /// The chosen components of the query, ascending, [B, H_kv, r].
    pub components: Array<i64>,
    /// The approximate logits, [B, H_kv, g, S]; without meaning in the left padding.
    pub logits: Array<f32>,
    /// 1 at the positions that are kept and valid, else 0, [B, H_kv, S].
    pub selected: Array<u8>,
    /// The approximate probability of the kept positions, [B, H]. `None` where the file does not tell: the authors' code without reallocation.
    pub alpha: Option<Array<f32>>,
    /// The mean of V over the valid positions, [B, H_kv, d].
    pub mean_value: Array<f32>,
    /// The attention output, [B, H, 1, d].
    pub output: Array<f32>,
    /// The key sketch, for cases that have one.
    pub sketch: Option<ExpectedSketch>,
}

/// A key sketch: key = lo + step * code, rounded to the nearest code.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpectedSketch {
    /// The codes, one a byte, [B, H_kv, d, S].
    pub codes: Array<u8>,
    /// The least key of each channel, [B, H_kv, d].
    pub lo: Array<f32>,
    /// The distance between two codes, [B, H_kv, d].
    pub step: Array<f32>,
}

impl Case {
    /// Reads a case from the bytes of a safetensors file; `file` names it in messages.
    ///
    /// ```
    /// let error = sparq_conformance::Case::from_bytes("a.safetensors", b"").unwrap_err();
    /// assert!(error.to_string().starts_with("a.safetensors: expected a safetensors file"));
    /// ```
    ///
    /// # Errors
    /// [`GoldenError::Format`], [`GoldenError::Key`] or [`GoldenError::Config`] where the file is in neither format, or contradicts itself.
    pub fn from_bytes(file: &str, bytes: &[u8]) -> Result<Self, GoldenError> {
        format::read(file, bytes)
    }

    /// Reads a case from a safetensors file.
    ///
    /// # Errors
    /// [`GoldenError::Io`] where the file cannot be read, and those of [`Case::from_bytes`].
    pub fn from_file(path: &Path) -> Result<Self, GoldenError> {
        let bytes = std::fs::read(path).map_err(|source| GoldenError::Io {
            path: path.to_path_buf(),
            source,
        })?;
        Self::from_bytes(&path.display().to_string(), &bytes)
    }
}
