//! The texts that tasks are made of: [`Prose`].

use std::borrow::Cow;
use std::path::Path;

use sparq_models::text::TextTokenizer;

use crate::EvalError;

/// The end of the King James Bible (Hebrews to Revelation), which the model inside the program has not seen in training.
pub const BIBLE: &str = include_str!("../assets/bible.txt");

/// Hamlet, Coriolanus and The Winter's Tale, which the model inside the program has not seen in training.
pub const PLAYS: &str = include_str!("../assets/plays.txt");

/// A text as the tokens of a model.
#[derive(Clone, Debug)]
pub struct Prose {
    tokens: Vec<u32>,
    /// What stands before a text: the token that begins a sequence, or nothing.
    opening: Vec<u32>,
    tokenizer: TextTokenizer,
}

impl Prose {
    /// The tokens of a text.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn new(text: &str, tokenizer: &TextTokenizer) -> Result<Self, EvalError> {
        Ok(Self {
            tokens: tokenizer.encode(text, false)?,
            opening: tokenizer.encode("", true)?,
            tokenizer: tokenizer.clone(),
        })
    }

    /// The tokens of all of it.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// What stands before every text that a model reads.
    pub fn opening(&self) -> &[u32] {
        &self.opening
    }

    /// The tokens of a text that goes on from another.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, EvalError> {
        Ok(self.tokenizer.encode(text, false)?)
    }

    /// The text of tokens.
    ///
    /// # Errors
    /// When the tokenizer refuses them.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, EvalError> {
        Ok(self.tokenizer.decode(tokens, false)?)
    }

    /// `len` tokens, from a `place` between 0 (the beginning of the text) and 1 (the last place where so many tokens follow).
    ///
    /// # Errors
    /// When the text has fewer tokens.
    pub fn window(&self, task: &'static str, place: f64, len: usize) -> Result<&[u32], EvalError> {
        let Some(last) = self.tokens.len().checked_sub(len) else {
            return Err(EvalError::Context {
                task,
                expected: format!("at most {} tokens, which the text has", self.tokens.len()),
                found: len,
            });
        };
        let start = ((place * (last + 1) as f64) as usize).min(last);
        Ok(&self.tokens[start..start + len])
    }
}

/// The text of a file, or the one inside the program.
///
/// # Errors
/// When the file can't be read or is no UTF-8.
pub fn text_or(path: Option<&Path>, inside: &'static str) -> Result<Cow<'static, str>, EvalError> {
    let Some(path) = path else {
        return Ok(Cow::Borrowed(inside));
    };
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Cow::Owned(text)),
        Err(source) => Err(EvalError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// The place of the example `index` of many, from 0 to 1: steps by the golden ratio from `first`.
///
/// However many there are, no two are close while there is room elsewhere, and none moves when more are asked for.
pub fn place(first: f64, index: usize) -> f64 {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    (first + index as f64 * GOLDEN).fract()
}

#[cfg(test)]
mod tests {
    use sparq_models::embedded;

    use super::*;

    #[test]
    fn the_texts_are_ascii_so_that_a_byte_is_a_token_and_any_cut_is_a_character() {
        assert!(BIBLE.is_ascii() && PLAYS.is_ascii());
    }

    #[test]
    fn windows_reach_both_ends_of_the_text_and_not_beyond() {
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
    fn places_keep_apart() {
        let mut places: Vec<f64> = (0..20).map(|index| place(0.3, index)).collect();
        places.sort_by(f64::total_cmp);
        let least = places
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .fold(1.0, f64::min);
        assert!(least > 0.5 / 20.0, "{least}");
    }
}
