//! Incremental detokenization: [`TokenStream`].

use super::tokenizer::{TextTokenizer, TokenizerError};

/// Stands for a byte that is no UTF-8, and for the beginning of a character whose other bytes have not come yet.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// A character has at most four bytes and a token at least one: an unfinished one spans at most three tokens.
const UNFINISHED_TOKENS: usize = 3;

/// Turns token ids into text as they come, a character never before it is whole.
///
/// The text of a token depends on its neighbours: a character may be spread over several tokens, and some decoders
/// strip the space in front of the first token only. So a window of tokens is decoded, the `context`, whose text has
/// been given out, and the `pending` tokens behind it; what the window's text has beyond the text given out is new. Whenever
/// pending tokens are given out they become the context, so a window holds a few tokens however long the sequence is.
///
/// The texts of all pushes and of [`TokenStream::finish`] together are the text of [`TextTokenizer::decode`]. (Except that in
/// vocabularies with byte-fallback tokens, where one wrong byte makes a decoder give up the whole run of bytes that it
/// stands in, the whole characters of that run stay text.)
///
/// ```
/// # use sparq_models::text::{TextTokenizer, TokenStream, TokenizerError};
/// // A vocabulary of two tokens, the bytes 0xc3 and 0xa9 in the alphabet of byte-level BPE.
/// let json = r#"{"version": "1.0", "added_tokens": [],
///     "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
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
    /// The tokens that were given out last, then those that were not.
    window: Vec<u32>,
    /// Number of tokens of `window` that were given out.
    context: usize,
    /// The part of the window's text that was given out.
    shown: String,
}

impl TokenStream {
    /// A stream at the beginning of a sequence; special tokens are no text when `skip_special_tokens` is set.
    pub fn new(tokenizer: TextTokenizer, skip_special_tokens: bool) -> Self {
        Self {
            tokenizer,
            skip_special_tokens,
            window: Vec::new(),
            context: 0,
            shown: String::new(),
        }
    }

    /// Takes the next token and returns the text that is complete with it, often empty.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails; the token is then held like one whose character is unfinished.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        if !self.is_text(id) {
            return Ok(String::new());
        }
        self.window.push(id);
        let text = self.decode(&self.window)?;
        if !text.ends_with(REPLACEMENT) {
            let new = self.unseen(&text)?;
            self.slide(0)?;
            return Ok(new);
        }
        if self.window.len() - self.context <= UNFINISHED_TOKENS {
            return Ok(String::new());
        }
        // Only wrong bytes can make so many tokens end unfinished. All but the last U+FFFD are final, and an unfinished
        // character that it stands for is finished before the tokens given out here leave the window.
        let new = self.unseen(&text)?;
        self.slide(1)?;
        Ok(strip_replacement(&new).to_owned())
    }

    /// Ends the sequence and returns what was held back; bytes of an unfinished character become U+FFFD.
    ///
    /// The stream is then at the beginning of a new sequence.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn finish(&mut self) -> Result<String, TokenizerError> {
        let rest = self
            .decode(&self.window)
            .and_then(|text| self.unseen(&text));
        self.window.clear();
        self.context = 0;
        self.shown.clear();
        rest
    }

    /// Whether a token stands for text at all; one that does not may come between the bytes of a character.
    fn is_text(&self, id: u32) -> bool {
        self.tokenizer.token(id).is_some()
            && !(self.skip_special_tokens && self.tokenizer.is_special(id))
    }

    fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.tokenizer.decode(ids, self.skip_special_tokens)
    }

    /// What the window's `text` has beyond the text given out.
    fn unseen(&self, text: &str) -> Result<String, TokenizerError> {
        match text.strip_prefix(self.shown.as_str()) {
            Some(new) => Ok(new.to_owned()),
            // A wrong byte behind a run of byte tokens took back the characters of the run: leave them out of it.
            None => self.decode(&self.window[self.context..]),
        }
    }

    /// Lets the window begin with the tokens that were pending, all given out but the last `unfinished`.
    fn slide(&mut self, unfinished: usize) -> Result<(), TokenizerError> {
        let text = self.decode(&self.window[self.context..])?;
        self.shown = match unfinished {
            0 => text,
            _ => strip_replacement(&text).to_owned(),
        };
        self.window.drain(..self.context);
        self.context = self.window.len() - unfinished;
        Ok(())
    }
}

/// `text` without one U+FFFD at its end.
fn strip_replacement(text: &str) -> &str {
    text.strip_suffix(REPLACEMENT).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_stays_small_however_wrong_the_bytes_are() {
        // The first byte of a two-byte character, again and again, with a whole one now and then.
        let json = r#"{"version": "1.0", "added_tokens": [],
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "model": {"type": "BPE", "vocab": {"Ã": 0, "©": 1}, "merges": []}}"#;
        let tokenizer = TextTokenizer::from_bytes(json.as_bytes(), "two bytes").unwrap();
        let mut stream = TokenStream::new(tokenizer, true);
        let mut text = String::new();
        for step in 1..=5_000 {
            text += &stream.push(u32::from(step % 50 == 0)).unwrap();
            assert!(stream.window.len() <= 2 * (UNFINISHED_TOKENS + 1));
        }
        assert_eq!(text.matches('é').count(), 100);
        assert_eq!(text.matches(REPLACEMENT).count(), 4_800);
    }
}
