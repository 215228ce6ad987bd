//! The tokenizer of a checkpoint.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokenizers::Tokenizer;

use super::config_file::{ConfigFileError, ConfigFiles};
use super::tokenizer_json::{guarded, parse};
use crate::checkpoint::read_small;

/// Why text could not be turned into tokens or back.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file cannot be read.
    #[error("{}: the tokenizer cannot be read: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        error: io::Error,
    },
    /// The content is not that of a tokenizer.json.
    #[error("{origin}: expected a tokenizer.json, found something else: {reason}")]
    Parse {
        /// The file, or what the caller named the bytes.
        origin: String,
        /// What the parser says.
        reason: String,
    },
    /// The tokenizer refuses a text.
    #[error("{origin}: cannot encode a text of {bytes} bytes: {reason}")]
    Encode {
        /// Where the tokenizer came from.
        origin: String,
        /// Length of the text.
        bytes: usize,
        /// What the tokenizer says.
        reason: String,
    },
    /// The tokenizer refuses token ids.
    #[error("{origin}: cannot decode {tokens} tokens: {reason}")]
    Decode {
        /// Where the tokenizer came from.
        origin: String,
        /// Number of token ids.
        tokens: usize,
        /// What the tokenizer says.
        reason: String,
    },
    /// One of the files that name the end-of-sequence tokens is wrong.
    #[error(transparent)]
    Config(#[from] ConfigFileError),
    /// The end-of-sequence token is not in the vocabulary.
    #[error("{}: \"eos_token\": expected a token of {origin}, found {token:?}", path.display())]
    UnknownEos {
        /// The file that names the token.
        path: PathBuf,
        /// Where the tokenizer came from.
        origin: String,
        /// The token.
        token: String,
    },
}

/// A Hugging Face tokenizer with the ids of the tokens that end a sequence.
///
/// Truncation and padding written into a tokenizer.json are settings left from training that would silently shorten
/// a prompt: they are switched off. Clones share the vocabulary.
///
/// ```no_run
/// # use std::path::Path;
/// # use sparq_models::text::{TextTokenizer, TokenizerError};
/// let tokenizer = TextTokenizer::from_folder(Path::new("checkpoints/llama"))?;
/// let tokens = tokenizer.encode("Hello", true)?;
/// assert_eq!(tokenizer.decode(&tokens, true)?, "Hello");
/// # Ok::<(), TokenizerError>(())
/// ```
#[derive(Clone)]
pub struct TextTokenizer {
    inner: Arc<Tokenizer>,
    origin: Arc<str>,
    eos_ids: Arc<[u32]>,
}

impl TextTokenizer {
    /// Reads one tokenizer.json; no token ends a sequence until [`TextTokenizer::with_eos_ids`] says so.
    ///
    /// # Errors
    /// When the file cannot be read or is no tokenizer.json.
    pub fn from_file(path: &Path) -> Result<Self, TokenizerError> {
        let bytes = read_small(path).map_err(|error| TokenizerError::Read {
            path: path.to_owned(),
            error,
        })?;
        Self::from_bytes(&bytes, &path.display().to_string())
    }

    /// Reads the tokenizer.json of a checkpoint's folder, and the ids that end a sequence; `folder` may also be a GGUF file, which holds both.
    ///
    /// Those are the union of `eos_token_id` in generation_config.json and config.json and of `eos_token` in
    /// tokenizer_config.json: chat checkpoints exist in which only one of the three names the end of a turn.
    ///
    /// # Errors
    /// As [`TextTokenizer::from_file`], and when one of the three files is there but wrong.
    pub fn from_folder(folder: &Path) -> Result<Self, TokenizerError> {
        let files = ConfigFiles::open(folder)?;
        let tokenizer = match &files {
            ConfigFiles::Folder(folder) => Self::from_file(&folder.join("tokenizer.json"))?,
            ConfigFiles::Gguf(gguf) => {
                let json = gguf
                    .tokenizer()
                    .map_err(|error| ConfigFileError::from(Box::new(error)))?;
                Self::from_bytes(
                    json.to_string().as_bytes(),
                    &gguf.path().display().to_string(),
                )?
            }
        };
        let mut eos_ids = Vec::new();
        for name in ["generation_config.json", "config.json"] {
            if let Some(config) = files.read(name)? {
                eos_ids.extend(config.token_ids("eos_token_id")?);
            }
        }
        if let Some(config) = files.read("tokenizer_config.json")?
            && let Some(token) = config.token("eos_token")?
        {
            let id = tokenizer
                .token_id(&token)
                .ok_or_else(|| TokenizerError::UnknownEos {
                    path: config.path().to_owned(),
                    origin: tokenizer.origin.to_string(),
                    token,
                })?;
            eos_ids.push(id);
        }
        Ok(tokenizer.with_eos_ids(eos_ids))
    }

    /// Reads the content of a tokenizer.json; errors call it `origin`.
    ///
    /// # Errors
    /// When the bytes are no tokenizer.json.
    pub fn from_bytes(bytes: &[u8], origin: &str) -> Result<Self, TokenizerError> {
        let inner = parse(bytes).map_err(|reason| TokenizerError::Parse {
            origin: origin.to_owned(),
            reason,
        })?;
        Ok(Self {
            inner: Arc::new(inner),
            origin: origin.into(),
            eos_ids: Arc::default(),
        })
    }

    /// The same tokenizer with these ids, sorted and without repetition, as the ends of a sequence.
    #[must_use]
    pub fn with_eos_ids(mut self, mut ids: Vec<u32>) -> Self {
        ids.sort_unstable();
        ids.dedup();
        self.eos_ids = ids.into();
        self
    }

    /// The token ids of `text`; `add_special_tokens` puts what the checkpoint's post-processor asks for around it (BOS).
    ///
    /// Tokens written out in the text (`<|eot_id|>`) become that token either way, which is what a rendered chat
    /// template needs: encode it with `add_special_tokens` false, because it brings its own BOS.
    ///
    /// # Errors
    /// When the tokenizer's model cannot express the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        let encode = || self.inner.encode_fast(text, add_special_tokens);
        match guarded(encode) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(reason) => Err(TokenizerError::Encode {
                origin: self.origin.to_string(),
                bytes: text.len(),
                reason,
            }),
        }
    }

    /// The text of `ids`, without the special tokens when `skip_special_tokens` is set.
    ///
    /// Ids outside the vocabulary stand for no text. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, TokenizerError> {
        let decode = || self.inner.decode(ids, skip_special_tokens);
        guarded(decode).map_err(|reason| TokenizerError::Decode {
            origin: self.origin.to_string(),
            tokens: ids.len(),
            reason,
        })
    }

    /// Number of tokens, the added ones included; a model's vocabulary may be padded to more.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of a token as it stands in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id as it stands in the vocabulary, which is not the text that it stands for.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether `id` is a special token, one that [`TextTokenizer::decode`] can leave out.
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.inner.get_added_vocabulary();
        added
            .simple_id_to_token(id)
            .is_some_and(|token| added.is_special_token(&token))
    }

    /// The ids that end a sequence, ascending.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }
}

impl fmt::Debug for TextTokenizer {
    // The derived form would print the whole vocabulary.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextTokenizer")
            .field("origin", &self.origin)
            .field("vocab_size", &self.vocab_size())
            .field("eos_ids", &self.eos_ids)
            .finish()
    }
}
