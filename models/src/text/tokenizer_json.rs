//! Parsing an untrusted tokenizer.json.
//!
//! The crate `tokenizers` trusts the entries of the file: it panics or allocates too much memory on
//! malformed ones. The checks here turn both into errors.

use std::panic::{AssertUnwindSafe, catch_unwind};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::Value;
use tokenizers::Tokenizer;

/// The key of a normaliser's trie, encoded in base64.
const CHARSMAP: &str = "precompiled_charsmap";

/// Parses a tokenizer.json. The error is the reason.
pub(super) fn parse(bytes: &[u8]) -> Result<Tokenizer, String> {
    /// The entries that are checked before `tokenizers` parses the file.
    #[derive(Deserialize)]
    struct Untrusted {
        /// Parsed for syntax only: its reader in `tokenizers` panics on broken JSON, such as that
        /// of a truncated file.
        #[serde(rename = "decoder")]
        _decoder: Option<Value>,
        normalizer: Option<Value>,
    }
    let untrusted: Untrusted = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    check_charsmaps(&untrusted.normalizer.unwrap_or_default())?;
    let mut tokenizer = catch_panic(|| Tokenizer::from_bytes(bytes))?;
    tokenizer
        .with_truncation(None)
        .map_err(|error| error.to_string())?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

/// Refuses a trie whose stated length exceeds its data, because `tokenizers` allocates that length.
fn check_charsmaps(normalizer: &Value) -> Result<(), String> {
    match normalizer {
        Value::Array(items) => items.iter().try_for_each(check_charsmaps),
        Value::Object(entries) => {
            entries.values().try_for_each(check_charsmaps)?;
            let Some(charsmap) = entries.get(CHARSMAP).and_then(Value::as_str) else {
                return Ok(());
            };
            let bytes = STANDARD
                .decode(charsmap)
                .map_err(|error| format!("{CHARSMAP}: {error}"))?;
            let Some((length, rest)) = bytes.split_first_chunk::<4>() else {
                return Err(format!("{CHARSMAP}: expected at least 4 bytes"));
            };
            let (length, left) = (u32::from_le_bytes(*length), rest.len());
            match usize::try_from(length).is_ok_and(|length| length <= left) {
                true => Ok(()),
                false => Err(format!(
                    "{CHARSMAP}: expected a trie of at most {left} bytes, found one of {length}"
                )),
            }
        }
        _ => Ok(()),
    }
}

/// Runs `work`, which may panic inside `tokenizers`, and turns a panic into an error.
///
/// A normaliser's trie, for example, is indexed with numbers from the trie itself.
pub(super) fn catch_panic<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    // Unwind safe: a panic can only poison the lock of the tokenizer's cache, which it then skips.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("an entry of the tokenizer is inconsistent with its type".to_owned()),
    }
}
