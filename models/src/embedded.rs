//! The default model, embedded in the binary: a byte-level Llama with 4.5 million parameters and a
//! context of 8192.
//!
//! Its tokens are bytes. It continues English prose, finds facts ("needles") in it and repeats
//! passages. `models/embedded/README.md` describes its training.

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::text::{TextTokenizer, TokenizerError};

/// The name of the model in messages.
pub const NAME: &str = "embedded";

/// The content of `config.json`.
pub static CONFIG: &[u8] = include_bytes!("../embedded/config.json");

/// The content of `model.safetensors`, in fp16.
///
/// A static, because the compiler would copy a constant of this size into the crate metadata.
pub static WEIGHTS: &[u8] = include_bytes!("../embedded/model.safetensors");

/// The content of `tokenizer.json`. The id of a token is its byte.
pub static TOKENIZER: &[u8] = include_bytes!("../embedded/tokenizer.json");

/// Opens the checkpoint of the model.
///
/// ```
/// use sparq_models::{DecoderConfig, embedded};
///
/// let checkpoint = embedded::checkpoint()?;
/// let config = DecoderConfig::from_checkpoint(&checkpoint)?;
/// assert_eq!((config.num_hidden_layers, config.vocab_size), (6, 256));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Never: the embedded files are valid.
pub fn checkpoint() -> Result<Checkpoint, CheckpointError> {
    Checkpoint::from_bytes(NAME, CONFIG, WEIGHTS)
}

/// Loads the tokenizer of the model. It has no end-of-sequence token.
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
