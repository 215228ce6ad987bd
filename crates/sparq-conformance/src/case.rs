//! Reference cases: the inputs and expected results of one decode step.

use std::path::Path;

use sparq::SparqConfig;

use crate::{Array, ConformanceError, Problem, format};

/// The origin of a case, which determines the format of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A step of the code published by the paper's authors, with a full sketch.
    Authors,
    /// A step with a key sketch of 8 or 4 bits, computed in float64.
    Sketch,
    /// Causal attention of many queries, computed in float64.
    Prefill,
    /// A random case, judged by float64 arithmetic.
    Random,
}

/// One decode step: settings, input and expected results.
///
/// All tensors have the shapes that follow from `problem` and `config`, all numbers are finite, and
/// every sequence has a valid position.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// The name, unique among the cases of its kind.
    pub name: String,
    /// The origin.
    pub kind: Kind,
    /// The sizes.
    pub problem: Problem,
    /// The settings of the step. As in the paper, k and l count the current token.
    pub config: SparqConfig,
    /// Positions of left padding in each sequence, `[B]`.
    pub left_padding: Vec<usize>,
    /// The inputs.
    pub inputs: Inputs,
    /// The expected results.
    pub expected: Expected,
}

/// The inputs of a decode step.
#[derive(Clone, Debug, PartialEq)]
pub struct Inputs {
    /// The query of the current token, after RoPE, [B, H, 1, d].
    pub q: Array<f32>,
    /// The keys, with the current token last, [B, H_kv, S, d].
    pub k: Array<f32>,
    /// The values, with the current token last, [B, H_kv, S, d].
    pub v: Array<f32>,
}

/// The results of a decode step.
#[derive(Clone, Debug, PartialEq)]
pub struct Expected {
    /// The selected components, ascending, [B, H_kv, r].
    pub components: Array<i64>,
    /// The approximate logits, [B, H_kv, g, S]. Those of left padding have no meaning.
    pub logits: Array<f32>,
    /// 1 at positions that are selected and valid, else 0, [B, H_kv, S].
    pub selected: Array<u8>,
    /// Alpha, [B, H]. `None` if the file lacks it: the authors' code without reallocation.
    pub alpha: Option<Array<f32>>,
    /// The mean of V over the valid positions, [B, H_kv, d].
    pub mean_value: Array<f32>,
    /// The attention output, [B, H, 1, d].
    pub output: Array<f32>,
    /// The key sketch, for cases that have one.
    pub sketch: Option<ExpectedSketch>,
}

/// A key sketch: key = zero point + scale * code, rounded to the nearest code.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpectedSketch {
    /// The codes, one per byte, [B, H_kv, d, S].
    pub codes: Array<u8>,
    /// The zero point: the smallest key of each channel, [B, H_kv, d].
    pub zero_point: Array<f32>,
    /// The scale: the distance between two codes of a channel, [B, H_kv, d].
    pub scale: Array<f32>,
}

impl Case {
    /// Reads a case from the bytes of a safetensors file. Errors name the file `file`.
    ///
    /// ```
    /// let error = sparq_conformance::Case::from_bytes("a.safetensors", b"").unwrap_err();
    /// assert!(error.to_string().starts_with("a.safetensors: expected a safetensors file"));
    /// ```
    ///
    /// # Errors
    /// [`ConformanceError::Format`], [`ConformanceError::Key`] or [`ConformanceError::Config`] if
    /// the file has neither format or contradicts itself.
    pub fn from_bytes(file: &str, bytes: &[u8]) -> Result<Self, ConformanceError> {
        format::read(file, bytes)
    }

    /// Reads a case from a safetensors file.
    ///
    /// # Errors
    /// [`ConformanceError::Io`] if the file cannot be read, and those of [`Case::from_bytes`].
    pub fn from_file(path: &Path) -> Result<Self, ConformanceError> {
        let bytes = std::fs::read(path).map_err(|source| ConformanceError::Io {
            path: path.to_path_buf(),
            source,
        })?;
        Self::from_bytes(&path.display().to_string(), &bytes)
    }
}
