//! The text of the demo: seeded prose with needles in it, in the words that the model inside the program was trained on.

use anyhow::{Result, bail};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde::Serialize;

/// The end of the King James Bible (Hebrews to Revelation), which the model has not seen in training.
const PROSE: &str = include_str!("../../../assets/haystack.txt");

/// Who has a secret code.
const NAMES: [&str; 24] = [
    "Abraham", "Babylon", "Caleb", "Daniel", "Egypt", "Esther", "Gideon", "Hebron", "Isaac",
    "Jacob", "Jericho", "Jonathan", "Joshua", "Lebanon", "Moses", "Nathan", "Pharaoh", "Rachel",
    "Samson", "Samuel", "Sarah", "Solomon", "Tarshish", "Zion",
];

/// The most needles that there are names for.
pub const MAX_NEEDLES: usize = NAMES.len();

/// A fact hidden in the text.
#[derive(Clone, Debug, Serialize)]
pub struct Needle {
    /// Whose code it is.
    pub name: &'static str,
    /// Six digits.
    pub code: String,
    /// Where in the text the fact begins, in bytes.
    pub position: usize,
}

impl Needle {
    fn fact(&self) -> String {
        format!(" The secret code of {} is {}. ", self.name, self.code)
    }

    /// What the model is asked, behind the text.
    pub fn question(&self) -> String {
        format!(
            "\nQuestion: What is the secret code of {}?\nAnswer:",
            self.name
        )
    }

    /// What it should say.
    pub fn answer(&self) -> String {
        format!(" {}.", self.code)
    }
}

/// The text with its needles.
#[derive(Clone, Debug)]
pub struct Haystack {
    /// All of it.
    pub text: String,
    /// The facts, in the order that they are asked for.
    pub needles: Vec<Needle>,
}

impl Haystack {
    /// A text that leaves room in `context` bytes for each question and its answer, the same for the same seed.
    ///
    /// # Errors
    /// When the context is too short for the needles, or longer than the prose.
    pub fn new(seed: u64, context: usize, needles: usize) -> Result<Self> {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut names = NAMES;
        names.shuffle(&mut rng);
        let mut needles: Vec<Needle> = names[..needles.min(MAX_NEEDLES)]
            .iter()
            .map(|name| Needle {
                name,
                code: format!("{:06}", rng.random_range(0..1_000_000)),
                position: 0,
            })
            .collect();
        let facts: usize = needles.iter().map(|needle| needle.fact().len()).sum();
        let tail = needles
            .iter()
            .map(|needle| needle.question().len() + needle.answer().len())
            .max()
            .unwrap_or(0);
        // Half of the text has to be prose, or there is nothing to search.
        let least = 2 * facts + tail;
        if context < least || context > PROSE.len() {
            bail!(
                "--context: expected {least} (for {} needles) to {} bytes, found {context}",
                needles.len(),
                PROSE.len()
            );
        }
        let length = context - facts - tail;
        let start = rng.random_range(0..=PROSE.len() - length);
        let prose = &PROSE[start..start + length];
        let mut places: Vec<usize> = needles
            .iter()
            .map(|_| word_end(prose, rng.random_range(0..length)))
            .collect();
        places.sort_unstable();
        let (mut text, mut from) = (String::with_capacity(context), 0);
        for (needle, place) in needles.iter_mut().zip(places) {
            text.push_str(&prose[from..place]);
            needle.position = text.len();
            text.push_str(&needle.fact());
            from = place;
        }
        text.push_str(&prose[from..]);
        needles.shuffle(&mut rng);
        Ok(Self { text, needles })
    }
}

/// The end of the word at a place, so that facts stand between words.
fn word_end(prose: &str, place: usize) -> usize {
    prose[place..]
        .find(char::is_whitespace)
        .map_or(prose.len(), |offset| place + offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prose_is_ascii_so_that_a_byte_is_a_token_and_any_cut_is_a_character() {
        assert!(PROSE.is_ascii());
    }

    #[test]
    fn every_question_fits_the_context_and_every_fact_is_where_it_is_said_to_be() {
        for seed in 0..20 {
            let haystack = Haystack::new(seed, 2048, 8).unwrap();
            assert_eq!(haystack.needles.len(), 8);
            let longest = haystack
                .needles
                .iter()
                .map(|needle| haystack.text.len() + needle.question().len() + needle.answer().len())
                .max();
            assert_eq!(longest, Some(2048));
            for needle in &haystack.needles {
                assert!(
                    haystack.text[needle.position..].starts_with(&needle.fact()),
                    "seed {seed}, {}",
                    needle.name
                );
            }
        }
    }

    #[test]
    fn a_seed_is_a_text() {
        let text = |seed| Haystack::new(seed, 1024, 2).unwrap().text;
        assert_eq!(text(3), text(3));
        assert_ne!(text(3), text(4));
    }

    #[test]
    fn a_context_without_room_is_refused() {
        let error = Haystack::new(0, 200, 4).unwrap_err().to_string();
        assert!(
            error.contains("--context") && error.contains("found 200"),
            "{error}"
        );
        assert!(Haystack::new(0, PROSE.len() + 1, 1).is_err());
    }
}
