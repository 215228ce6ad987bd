//! What can go wrong in an evaluation.

use std::io;
use std::path::PathBuf;

use sparq::SparqError;
use sparq_models::text::{SamplingError, TokenizerError};

/// Why an evaluation can't be made or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The model or a method is refused.
    #[error(transparent)]
    Sparq(#[from] SparqError),
    /// The tokenizer fails.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The model's logits are no numbers.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The tokenizer has a token that the model does not have.
    #[error(
        "tokens: expected ids below {vocab} (the model's vocabulary), found {found}; is the tokenizer that of the model?"
    )]
    Token {
        /// Tokens of the model.
        vocab: usize,
        /// The id.
        found: u32,
    },
    /// The device could not compute the logits or hand them over.
    #[error("logits: cannot be read from the device: {reason}")]
    Device {
        /// What the device says.
        reason: String,
    },
    /// A context in which a task has no room, or that the model does not have.
    #[error("context of {task}: expected {expected}, found {found}")]
    Context {
        /// The task.
        task: &'static str,
        /// What is allowed.
        expected: String,
        /// What was asked for.
        found: usize,
    },
    /// No method has this name.
    #[error("method: expected one of {expected}, found {found:?}")]
    Method {
        /// The names that there are.
        expected: String,
        /// The name given.
        found: String,
    },
    /// More needles than there are places or names for.
    #[error(
        "--needles: expected 1 to {most} (the depths, or the names that there are), found {found}"
    )]
    Needles {
        /// The most.
        most: usize,
        /// The number given.
        found: usize,
    },
    /// A task of a data set without its file.
    #[error("--data: expected the file of the data set for {task}, found none")]
    NoData {
        /// The task.
        task: &'static str,
    },
    /// A file can't be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file with data is not what its task reads.
    #[error("{}: {place}: {reason}", path.display())]
    Data {
        /// The file.
        path: PathBuf,
        /// The row or key.
        place: String,
        /// What was expected and found.
        reason: String,
    },
    /// A file of results can't be written.
    #[error("{}: cannot be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file of results has a line that is none, or that is of another evaluation.
    #[error("{}: line {line}: {reason}", path.display())]
    Results {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What was expected and found.
        reason: String,
    },
}
