//! The default model, which is a part of the program: a byte-level Llama of 4.5 million parameters with a context of 8192.
//!
//! It reads English prose, finds facts ("needles") in it and repeats passages of it. A token is a byte. `models/embedded/README.md` tells how it was made.

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::text::{TextTokenizer, TokenizerError};

/// What messages call the model.
pub const NAME: &str = "embedded";

/// `config.json`.
pub static CONFIG: &[u8] = include_bytes!("../embedded/config.json");

/// `model.safetensors`, in fp16. A static, because a constant of this size would be copied into the metadata of every build.
pub static WEIGHTS: &[u8] = include_bytes!("../embedded/model.safetensors");

/// `tokenizer.json`: the id of a token is its byte.
pub static TOKENIZER: &[u8] = include_bytes!("../embedded/tokenizer.json");

/// The model as an open checkpoint.
///
/// ```
/// use sparq_models::{config::LlamaConfig, embedded};
///
/// let checkpoint = embedded::checkpoint()?;
/// let config = LlamaConfig::from_checkpoint(&checkpoint)?;
/// assert_eq!((config.num_hidden_layers, config.vocab_size), (6, 256));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Never for the files in the program; the type is that of opening any checkpoint.
pub fn checkpoint() -> Result<Checkpoint, CheckpointError> {
    Checkpoint::from_bytes(NAME, CONFIG, WEIGHTS)
}

/// The model's tokenizer. No token ends a text.
///
/// ```
/// let tokenizer = sparq_models::embedded::tokenizer()?;
/// assert_eq!(tokenizer.encode("Amen", true)?, [65, 109, 101, 110]);
/// # Ok::<(), sparq_models::text::TokenizerError>(())
/// ```
///
/// # Errors
/// As [`checkpoint`].
pub fn tokenizer() -> Result<TextTokenizer, TokenizerError> {
    TextTokenizer::from_bytes(TOKENIZER, NAME)
}
