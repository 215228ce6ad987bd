//! Incremental decoding of tokens: [`TokenStream`].

use super::tokenizer::{TextTokenizer, TokenizerError};

/// Replaces a byte that is not UTF-8 and the first bytes of an incomplete character.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// The most tokens of an incomplete character: a character has at most four bytes, a token at least
/// one.
const INCOMPLETE_TOKENS: usize = 3;

/// Decodes tokens as they arrive and emits only complete characters.
///
/// The text of a token depends on its neighbours: a character may span several tokens, and some
/// decoders strip the space before the first token. The stream therefore decodes a window of
/// tokens: the context, whose text is emitted, and the pending tokens after it. Its text beyond the
/// emitted text is new. Once pending tokens are emitted they become the context, so the window
/// stays small.
///
/// The texts of all pushes and of [`TokenStream::finish`] add up to that of
/// [`TextTokenizer::decode`], with one exception. In vocabularies with byte-fallback tokens, an
/// invalid byte makes `decode` replace the whole run of byte tokens. The stream keeps the complete
/// characters of the run.
///
/// ```
/// # use sparq_models::text::{TextTokenizer, TokenStream, TokenizerError};
/// // A vocabulary of two tokens, the bytes 0xc3 and 0xa9 in the alphabet of byte-level BPE.
/// let json = r#"{"version": "1.0", "added_tokens": [],
///     "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
///         "use_regex": false},
///     "model": {"type": "BPE", "vocab": {"Ã": 0, "©": 1}, "merges": []}}"#;
/// let tokenizer = TextTokenizer::from_bytes(json.as_bytes(), "two bytes")?;
/// let mut stream = TokenStream::new(tokenizer, true);
/// assert_eq!(stream.push(0)?, "");
/// assert_eq!(stream.push(1)?, "é");
/// assert_eq!(stream.finish()?, "");
/// # Ok::<(), TokenizerError>(())
/// ```
#[derive(Clone, Debug)]
pub struct TokenStream {
    tokenizer: TextTokenizer,
    skip_special_tokens: bool,
    /// The tokens emitted last, then the pending ones.
    window: Vec<u32>,
    /// The number of emitted tokens in `window`.
    context: usize,
    /// The emitted part of the window's text.
    emitted: String,
}

impl TokenStream {
    /// Starts a sequence. With `skip_special_tokens`, special tokens have no text.
    pub fn new(tokenizer: TextTokenizer, skip_special_tokens: bool) -> Self {
        Self {
            tokenizer,
            skip_special_tokens,
            window: Vec::new(),
            context: 0,
            emitted: String::new(),
        }
    }

    /// Takes the next token and returns the text that it completes, which may be empty.
    ///
    /// # Errors
    /// If the decoder of the tokenizer fails. The token then stays pending.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        if !self.is_text(id) {
            return Ok(String::new());
        }
        self.window.push(id);
        let text = self.decode(&self.window)?;
        if !text.ends_with(REPLACEMENT) {
            let new = self.new_text(&text)?;
            self.slide(0)?;
            return Ok(new);
        }
        if self.window.len() - self.context <= INCOMPLETE_TOKENS {
            return Ok(String::new());
        }
        // So many pending tokens contain invalid bytes. All U+FFFD but the last are final. The last
        // may stand for an incomplete character, which completes while its tokens are in the
        // window.
        let new = self.new_text(&text)?;
        self.slide(1)?;
        Ok(strip_replacement(&new).to_owned())
    }

    /// Ends the sequence and returns the rest of its text. Bytes of an incomplete character become
    /// U+FFFD. The next push starts a new sequence.
    ///
    /// # Errors
    /// If the decoder of the tokenizer fails.
    pub fn finish(&mut self) -> Result<String, TokenizerError> {
        let rest = self
            .decode(&self.window)
            .and_then(|text| self.new_text(&text));
        self.window.clear();
        self.context = 0;
        self.emitted.clear();
        rest
    }

    /// Returns whether a token has text. Tokens without may occur between the bytes of a character.
    fn is_text(&self, id: u32) -> bool {
        self.tokenizer.token(id).is_some()
            && !(self.skip_special_tokens && self.tokenizer.is_special(id))
    }

    fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.tokenizer.decode(ids, self.skip_special_tokens)
    }

    /// Returns the part of the window's `text` that is not emitted yet.
    fn new_text(&self, text: &str) -> Result<String, TokenizerError> {
        match text.strip_prefix(self.emitted.as_str()) {
            Some(new) => Ok(new.to_owned()),
            // An invalid byte made the decoder replace characters that are already emitted. Decode
            // the pending tokens alone.
            None => self.decode(&self.window[self.context..]),
        }
    }

    /// Drops the context from the window. The pending tokens but the last `incomplete` become the
    /// new context.
    fn slide(&mut self, incomplete: usize) -> Result<(), TokenizerError> {
        let text = self.decode(&self.window[self.context..])?;
        self.emitted = match incomplete {
            0 => text,
            _ => strip_replacement(&text).to_owned(),
        };
        self.window.drain(..self.context);
        self.context = self.window.len() - incomplete;
        Ok(())
    }
}

/// Returns `text` without one U+FFFD at its end.
fn strip_replacement(text: &str) -> &str {
    text.strip_suffix(REPLACEMENT).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_stays_small_with_invalid_bytes() {
        // First bytes of a two-byte character, with a complete one every 50 tokens.
        let json = r#"{"version": "1.0", "added_tokens": [],
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "model": {"type": "BPE", "vocab": {"Ã": 0, "©": 1}, "merges": []}}"#;
        let tokenizer = TextTokenizer::from_bytes(json.as_bytes(), "two bytes").unwrap();
        let mut stream = TokenStream::new(tokenizer, true);
        let mut text = String::new();
        for step in 1..=5_000 {
            text += &stream.push(u32::from(step % 50 == 0)).unwrap();
            assert!(stream.window.len() <= 2 * (INCOMPLETE_TOKENS + 1));
        }
        assert_eq!(text.matches('é').count(), 100);
        assert_eq!(text.matches(REPLACEMENT).count(), 4_800);
    }
}
