//! Reading a tokenizer.json from a stranger: the crate `tokenizers` believes what stands in one.

use std::panic::{AssertUnwindSafe, catch_unwind};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::Value;
use tokenizers::Tokenizer;

/// The entry of a normalizer with a trie in base64.
const CHARSMAP: &str = "precompiled_charsmap";

/// Reads a tokenizer.json, or says why not.
pub(super) fn parse(bytes: &[u8]) -> Result<Tokenizer, String> {
    /// The entries that are looked at first.
    #[derive(Deserialize)]
    struct Untrusted {
        /// Its reader panics when the JSON in it is broken, as in a file that was cut short.
        #[serde(rename = "decoder")]
        _decoder: Option<Value>,
        normalizer: Option<Value>,
    }
    let untrusted: Untrusted = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    check_charsmaps(&untrusted.normalizer.unwrap_or_default())?;
    let mut tokenizer = guarded(|| Tokenizer::from_bytes(bytes))?;
    tokenizer
        .with_truncation(None)
        .map_err(|error| error.to_string())?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

/// Refuses a trie that says it is longer than it is: as much would be allocated.
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

/// Does what may panic in the crate `tokenizers`, where entries of a tokenizer.json are believed: the trie of a normalizer is indexed with what it says itself.
pub(super) fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    // What a panic leaves behind in a tokenizer is a lock of its cache, which it then does without.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("an entry of the tokenizer is not what its type needs".to_owned()),
    }
}
