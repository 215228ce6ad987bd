//! [`EvalError`]: the errors of an evaluation.

use std::io;
use std::path::{Path, PathBuf};

use sparq::SparqError;
use sparq_models::text::{GenerateError, SamplingError, TokenizerError};

/// An error of an evaluation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The model or a method was refused.
    #[error(transparent)]
    Sparq(#[from] SparqError),
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The model's logits are not finite.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// Lossless decoding failed.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// The tokenizer has a token that the model lacks.
    #[error(
        "tokens: expected token ids below {vocab} (the model's vocabulary), found {found}; \
         does the tokenizer belong to the model?"
    )]
    Token {
        /// The size of the model's vocabulary.
        vocab: usize,
        /// The token ID.
        found: u32,
    },
    /// The device failed to compute or return the logits.
    #[error("logits: cannot read them from the device: {reason}")]
    Device {
        /// The message of the device.
        reason: String,
    },
    /// A context is too short for a task or too long for the model.
    #[error("context of {task}: expected {expected}, found {found}")]
    Context {
        /// The task.
        task: &'static str,
        /// The allowed contexts.
        expected: String,
        /// The context requested.
        found: usize,
    },
    /// There are more needles than depths or names.
    #[error("--needles: expected 1 to {most} (the number of depths or of names), found {found}")]
    Needles {
        /// The largest allowed number.
        most: usize,
        /// The number requested.
        found: usize,
    },
    /// The file of a data set is missing.
    #[error("--data: expected the file of the data set for {task}, found none")]
    NoData {
        /// The task.
        task: &'static str,
    },
    /// A file cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system error.
        source: io::Error,
    },
    /// A data file has a form that its task does not read.
    #[error("{}: {place}: {reason}", path.display())]
    Data {
        /// The file.
        path: PathBuf,
        /// The row or key.
        place: String,
        /// The expected and the found content.
        reason: String,
    },
    /// A results file cannot be written.
    #[error("{}: cannot be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system error.
        source: io::Error,
    },
    /// A line of a results file is invalid or belongs to another evaluation.
    #[error("{}: line {line}: {reason}", path.display())]
    Results {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The expected and the found content.
        reason: String,
    },
}

impl EvalError {
    /// Returns the constructor of [`EvalError::Read`] for a file.
    pub(crate) fn read(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Read {
            path: path.to_owned(),
            source,
        }
    }

    /// Returns the constructor of [`EvalError::Write`] for a file.
    pub(crate) fn write(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Write {
            path: path.to_owned(),
            source,
        }
    }
}
