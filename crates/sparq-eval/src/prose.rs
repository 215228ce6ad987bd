//! [`Prose`]: the text that tasks take their examples from.

use std::borrow::Cow;
use std::path::Path;

use sparq_models::text::TextTokenizer;

use crate::EvalError;

/// The end of the King James Bible (Hebrews to Revelation). Not in the training data of the
/// embedded model.
pub const BIBLE: &str = include_str!("../assets/bible.txt");

/// Hamlet, Coriolanus and The Winter's Tale. Not in the training data of the embedded model.
pub const PLAYS: &str = include_str!("../assets/plays.txt");

/// A text as the tokens of a model.
#[derive(Clone, Debug)]
pub struct Prose {
    tokens: Vec<u32>,
    /// The tokens before every text: the token that begins a sequence, or none.
    opening: Vec<u32>,
    tokenizer: TextTokenizer,
}

impl Prose {
    /// Encodes a text.
    ///
    /// # Errors
    /// If the tokenizer refuses the text.
    pub fn new(text: &str, tokenizer: &TextTokenizer) -> Result<Self, EvalError> {
        Ok(Self {
            tokens: tokenizer.encode(text, false)?,
            opening: tokenizer.encode("", true)?,
            tokenizer: tokenizer.clone(),
        })
    }

    /// Returns the tokens of the whole text.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Returns the tokens before every text that a model reads.
    pub fn opening(&self) -> &[u32] {
        &self.opening
    }

    /// Encodes a text that continues another.
    ///
    /// # Errors
    /// If the tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, EvalError> {
        Ok(self.tokenizer.encode(text, false)?)
    }

    /// Decodes tokens.
    ///
    /// # Errors
    /// If the tokenizer refuses them.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, EvalError> {
        Ok(self.tokenizer.decode(tokens, false)?)
    }

    /// Returns `len` tokens that begin at `place`, from 0 (the beginning of the text) to 1 (the
    /// last place with `len` tokens after it).
    ///
    /// # Errors
    /// If the text has fewer tokens.
    pub fn window(&self, task: &'static str, place: f64, len: usize) -> Result<&[u32], EvalError> {
        let Some(last) = self.tokens.len().checked_sub(len) else {
            return Err(EvalError::Context {
                task,
                expected: format!(
                    "at most {} tokens (the length of the text)",
                    self.tokens.len()
                ),
                found: len,
            });
        };
        let start = ((place * (last + 1) as f64) as usize).min(last);
        Ok(&self.tokens[start..start + len])
    }
}

/// Returns the text of a file, or the embedded text if there is no file.
///
/// # Errors
/// If the file cannot be read or is not UTF-8.
pub fn text_or(
    path: Option<&Path>,
    embedded: &'static str,
) -> Result<Cow<'static, str>, EvalError> {
    let Some(path) = path else {
        return Ok(Cow::Borrowed(embedded));
    };
    let text = std::fs::read_to_string(path).map_err(EvalError::read(path))?;
    Ok(Cow::Owned(text))
}

/// Returns the place of example `index`, from 0 to 1. Places advance by the golden ratio from
/// `first`.
///
/// Any number of places is spread evenly, and more examples do not move the earlier ones.
pub fn place(first: f64, index: usize) -> f64 {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    (first + index as f64 * GOLDEN).fract()
}

#[cfg(test)]
mod tests {
    use sparq_models::embedded;

    use super::*;

    #[test]
    fn embedded_texts_are_ascii() {
        // One byte is one token of the embedded model, and any cut is between characters.
        assert!(BIBLE.is_ascii() && PLAYS.is_ascii());
    }

    #[test]
    fn windows_reach_both_ends_of_the_text() {
        let prose = Prose::new("abcdef", &embedded::tokenizer().unwrap()).unwrap();
        let text = |place, len| {
            let window = prose.window("needle", place, len).unwrap();
            prose.decode(window).unwrap()
        };
        assert_eq!(text(0.0, 4), "abcd");
        assert_eq!(text(0.999, 4), "cdef");
        assert_eq!(text(1.0, 4), "cdef");
        assert_eq!(text(0.5, 6), "abcdef");
        let error = prose.window("needle", 0.0, 7).unwrap_err().to_string();
        assert!(
            error.contains("at most 6") && error.contains("found 7"),
            "{error}"
        );
    }

    #[test]
    fn places_keep_a_distance() {
        let mut places: Vec<f64> = (0..20).map(|index| place(0.3, index)).collect();
        places.sort_by(f64::total_cmp);
        let least = places
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .fold(1.0, f64::min);
        assert!(least > 0.5 / 20.0, "{least}");
    }
}
