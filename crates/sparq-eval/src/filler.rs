//! [`Filler`]: sentences of a text, to hide facts among.

use std::path::Path;

use rand::Rng;
use rand::rngs::SmallRng;

use crate::EvalError;
use crate::prose::text_or;

/// The sentences of a text, each in one line.
pub(crate) struct Filler {
    sentences: Vec<String>,
}

impl Filler {
    /// Splits the text of a file, or the embedded text if there is no file.
    ///
    /// # Errors
    /// If the file cannot be read, is not UTF-8, or has no words.
    pub(crate) fn new(path: Option<&Path>, embedded: &'static str) -> Result<Self, EvalError> {
        let sentences = sentences(&text_or(path, embedded)?);
        match (sentences.is_empty(), path) {
            (true, Some(path)) => {
                let reason = "expected at least one word, found none";
                Err(crate::datasets::wrong(path, "text", reason))
            }
            _ => Ok(Self { sentences }),
        }
    }

    /// Returns `count` sentences in a row from a random place. A text that ends begins again.
    pub(crate) fn draw(&self, rng: &mut SmallRng, count: usize) -> Vec<&str> {
        let start = rng.random_range(0..self.sentences.len());
        let sentences = self.sentences.iter().cycle();
        let drawn = sentences.skip(start).take(count);
        drawn.map(String::as_str).collect()
    }
}

/// Splits a text at the ends of sentences. White space becomes single spaces.
fn sentences(text: &str) -> Vec<String> {
    let (mut sentences, mut sentence) = (Vec::new(), String::new());
    for word in text.split_whitespace() {
        if !sentence.is_empty() {
            sentence.push(' ');
        }
        sentence.push_str(word);
        let word = word.trim_end_matches(['"', '\'', ')', ']']);
        if word.ends_with(['.', '!', '?']) {
            sentences.push(std::mem::take(&mut sentence));
        }
    }
    sentences.extend((!sentence.is_empty()).then_some(sentence));
    sentences
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::prose::PLAYS;

    #[test]
    fn sentences_end_with_their_marks() {
        let text = "It is\n one.  (Is it?) \"Yes!\"\nAn end";
        let expected = ["It is one.", "(Is it?)", "\"Yes!\"", "An end"];
        assert_eq!(sentences(text), expected);
        assert!(sentences(" \n").is_empty());
    }

    #[test]
    fn text_begins_again_at_its_end() {
        let sentences = vec!["A.".to_owned(), "B.".to_owned(), "C.".to_owned()];
        let filler = Filler { sentences };
        let drawn = filler.draw(&mut SmallRng::seed_from_u64(1), 7);
        assert_eq!(drawn.len(), 7);
        assert_eq!(drawn[..3], drawn[3..6]);
        assert_ne!(drawn[0], drawn[1]);
    }

    #[test]
    fn empty_texts_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Filler::new(Some(file.path()), PLAYS).err().unwrap();
        assert!(error.to_string().contains("at least one word"), "{error}");
        assert!(Filler::new(None, PLAYS).unwrap().sentences.len() > 5000);
    }
}
