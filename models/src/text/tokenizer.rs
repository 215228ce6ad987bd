//! The tokenizer of a checkpoint: [`TextTokenizer`].

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokenizers::{AddedToken, Tokenizer};

use super::config_file::{ConfigFile, ConfigFiles};
use super::tokenizer_json::{catch_panic, parse};
use crate::checkpoint::read_small;
use crate::config::ConfigError;

/// An error in loading or using a tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file cannot be read.
    #[error("{}: the tokenizer cannot be read: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        error: io::Error,
    },
    /// The folder has a vocabulary in another form only.
    #[error(
        "{}: no such file, but {found}; convert it with Python: from transformers import \
         AutoTokenizer; AutoTokenizer.from_pretrained({folder:?}).save_pretrained({folder:?})",
        path.display(),
        folder = path.parent().unwrap_or(path)
    )]
    OtherForm {
        /// The missing tokenizer.json.
        path: PathBuf,
        /// The file of the vocabulary.
        found: &'static str,
    },
    /// The file is not a valid tokenizer.json.
    #[error("{origin}: not a valid tokenizer.json: {reason}")]
    Parse {
        /// The file, or the caller's name for the bytes.
        origin: String,
        /// The message of the parser.
        reason: String,
    },
    /// A text cannot be encoded.
    #[error("{origin}: cannot encode a text of {bytes} bytes: {reason}")]
    Encode {
        /// The source of the tokenizer.
        origin: String,
        /// The length of the text.
        bytes: usize,
        /// The message of the tokenizer.
        reason: String,
    },
    /// Tokens cannot be decoded.
    #[error("{origin}: cannot decode {tokens} tokens: {reason}")]
    Decode {
        /// The source of the tokenizer.
        origin: String,
        /// The number of tokens.
        tokens: usize,
        /// The message of the tokenizer.
        reason: String,
    },
    /// The tokenizer cannot be written.
    #[error("{origin}: cannot be written as a tokenizer.json: {reason}")]
    Write {
        /// The source of the tokenizer.
        origin: String,
        /// The message of the tokenizer.
        reason: String,
    },
    /// A file that names the end-of-sequence tokens is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The end-of-sequence token is not in the vocabulary.
    #[error("{}: \"eos_token\": expected a token of {origin}, found {token:?}", path.display())]
    UnknownEos {
        /// The file that names the token.
        path: PathBuf,
        /// The source of the tokenizer.
        origin: String,
        /// The token.
        token: String,
    },
}

/// A Hugging Face tokenizer and the ids of the end-of-sequence tokens. Clones share the vocabulary.
///
/// Truncation and padding in tokenizer.json are disabled. They are settings of the training and
/// would silently shorten prompts.
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
    /// Reads a tokenizer.json. It has no end-of-sequence tokens: set them with
    /// [`TextTokenizer::with_eos_ids`].
    ///
    /// # Errors
    /// If the file cannot be read or is not a valid tokenizer.json.
    pub fn from_file(path: &Path) -> Result<Self, TokenizerError> {
        let bytes = read_small(path).map_err(|error| TokenizerError::Read {
            path: path.to_owned(),
            error,
        })?;
        Self::from_bytes(&bytes, &path.display().to_string())
    }

    /// Reads the tokenizer and its end-of-sequence tokens from a checkpoint's folder or GGUF file.
    ///
    /// Tokens that only `added_tokens_decoder` in tokenizer_config.json has are added.
    ///
    /// The end-of-sequence tokens are `eos_token_id` in generation_config.json, else in
    /// config.json, and `eos_token` in tokenizer_config.json: some chat checkpoints name the end of
    /// a turn only there.
    ///
    /// # Errors
    /// As [`TextTokenizer::from_file`], and if one of the three files exists but is wrong.
    pub fn from_folder(folder: &Path) -> Result<Self, TokenizerError> {
        let files = ConfigFiles::open(folder)?;
        let (bytes, origin) = match &files {
            ConfigFiles::Folder(folder) => read_folder(folder)?,
            ConfigFiles::Gguf(gguf) => {
                let json = gguf.tokenizer();
                let json = json.map_err(|error| ConfigError::from(Box::new(error)))?;
                (
                    json.to_string().into_bytes(),
                    gguf.path().display().to_string(),
                )
            }
        };
        let config = files.read("tokenizer_config.json")?;
        let added = config.as_ref().map(added_tokens).transpose()?;
        let tokenizer = Self::parse(&bytes, &origin, added.unwrap_or_default())?;
        let mut eos_ids = Vec::new();
        for name in ["generation_config.json", "config.json"] {
            if let Some(config) = files.read(name)?
                && eos_ids.is_empty()
            {
                eos_ids = config.fields()?.token_ids("eos_token_id")?;
            }
        }
        if let Some(config) = config
            && let Some(token) = config.fields()?.token("eos_token")?
        {
            let id = tokenizer.token_id(token);
            eos_ids.push(id.ok_or_else(|| TokenizerError::UnknownEos {
                path: config.path().to_owned(),
                origin: tokenizer.origin.to_string(),
                token: token.to_owned(),
            })?);
        }
        Ok(tokenizer.with_eos_ids(eos_ids))
    }

    /// Parses the content of a tokenizer.json. Errors call it `origin`.
    ///
    /// # Errors
    /// If the bytes are not a valid tokenizer.json.
    pub fn from_bytes(bytes: &[u8], origin: &str) -> Result<Self, TokenizerError> {
        Self::parse(bytes, origin, Vec::new())
    }

    /// Parses a tokenizer.json and adds the tokens `added` to its vocabulary.
    fn parse(bytes: &[u8], origin: &str, added: Vec<AddedToken>) -> Result<Self, TokenizerError> {
        let parsed = parse(bytes).and_then(|mut inner| {
            catch_panic(|| inner.add_tokens(added))?;
            Ok(inner)
        });
        let inner = parsed.map_err(|reason| TokenizerError::Parse {
            origin: origin.to_owned(),
            reason,
        })?;
        Ok(Self {
            inner: Arc::new(inner),
            origin: origin.into(),
            eos_ids: Arc::default(),
        })
    }

    /// Replaces the end-of-sequence tokens.
    #[must_use]
    pub fn with_eos_ids(mut self, mut ids: Vec<u32>) -> Self {
        ids.sort_unstable();
        ids.dedup();
        self.eos_ids = ids.into();
        self
    }

    /// Encodes `text`. With `add_special_tokens`, the post-processor of the checkpoint adds its
    /// special tokens, usually a BOS token at the beginning.
    ///
    /// A special token written in the text, such as `<|eot_id|>`, becomes that token in both cases.
    /// Encode a rendered chat template without `add_special_tokens`, because it contains its BOS
    /// token.
    ///
    /// # Errors
    /// If the vocabulary cannot express the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        let encode = || self.inner.encode_fast(text, add_special_tokens);
        match catch_panic(encode) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(reason) => Err(TokenizerError::Encode {
                origin: self.origin.to_string(),
                bytes: text.len(),
                reason,
            }),
        }
    }

    /// Decodes `ids`, without the special tokens if `skip_special_tokens` is set.
    ///
    /// Ids outside the vocabulary decode to no text. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// If the decoder of the tokenizer fails.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, TokenizerError> {
        let decode = || self.inner.decode(ids, skip_special_tokens);
        catch_panic(decode).map_err(|reason| TokenizerError::Decode {
            origin: self.origin.to_string(),
            tokens: ids.len(),
            reason,
        })
    }

    /// Returns the content of a tokenizer.json, with the tokens that other files added.
    ///
    /// # Errors
    /// If a part of the tokenizer cannot be written.
    pub fn to_json(&self) -> Result<String, TokenizerError> {
        let write = || self.inner.to_string(false);
        catch_panic(write).map_err(|reason| TokenizerError::Write {
            origin: self.origin.to_string(),
            reason,
        })
    }

    /// Returns the number of tokens, added tokens included. The vocabulary of the model may be
    /// padded to a larger size.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Returns the id of a token, given as it is spelled in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Returns the token of an id as it is spelled in the vocabulary, which may differ from its
    /// text.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Returns whether `id` is a special token, which [`TextTokenizer::decode`] can skip.
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.inner.get_added_vocabulary();
        added
            .simple_id_to_token(id)
            .is_some_and(|token| added.is_special_token(&token))
    }

    /// Returns the ids of the end-of-sequence tokens, ascending and without duplicates.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }
}

/// Reads the tokenizer.json of a folder. Returns its bytes and its name for messages.
fn read_folder(folder: &Path) -> Result<(Vec<u8>, String), TokenizerError> {
    const OTHERS: [(&str, &str); 3] = [
        ("tokenizer.model", "tokenizer.model of SentencePiece"),
        ("vocab.json", "vocab.json and merges.txt"),
        ("tekken.json", "tekken.json of Mistral"),
    ];
    let path = folder.join("tokenizer.json");
    match read_small(&path) {
        Ok(bytes) => Ok((bytes, path.display().to_string())),
        Err(error) => {
            let is_there = |(name, _): &&(&str, &str)| folder.join(name).is_file();
            let other = OTHERS.iter().find(is_there);
            Err(match other {
                Some(&(_, found)) if error.kind() == io::ErrorKind::NotFound => {
                    TokenizerError::OtherForm { path, found }
                }
                _ => TokenizerError::Read { path, error },
            })
        }
    }
}

/// Returns the tokens of `added_tokens_decoder`, an object of tokens by id, in the order of ids.
///
/// As in transformers, the ids only give the order: a token that the vocabulary lacks gets the next
/// free id.
fn added_tokens(config: &ConfigFile) -> Result<Vec<AddedToken>, ConfigError> {
    const KEY: &str = "added_tokens_decoder";
    let fields = config.fields()?;
    let Some(tokens) = fields.get(KEY) else {
        return Ok(Vec::new());
    };
    let read = || {
        let mut added = Vec::new();
        for (id, token) in tokens.as_object()? {
            let switch = |key| token.get(key).and_then(|value| value.as_bool());
            let is_set = |key| switch(key).unwrap_or(false);
            let special = is_set("special");
            let content = token.get("content")?.as_str()?;
            let token = AddedToken::from(content, special)
                .single_word(is_set("single_word"))
                .lstrip(is_set("lstrip"))
                .rstrip(is_set("rstrip"))
                .normalized(switch("normalized").unwrap_or(!special));
            added.push((id.parse::<u32>().ok()?, token));
        }
        added.sort_by_key(|(id, _)| *id);
        Some(added.into_iter().map(|(_, token)| token).collect())
    };
    let expected = "an object of token ids, each with an object with \"content\"";
    read().ok_or_else(|| fields.unexpected(KEY, expected))
}

impl fmt::Debug for TextTokenizer {
    // A derived implementation would print the whole vocabulary.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextTokenizer")
            .field("origin", &self.origin)
            .field("vocab_size", &self.vocab_size())
            .field("eos_ids", &self.eos_ids)
            .finish()
    }
}
