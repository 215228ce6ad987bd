//! [`Haystack`]: prose with hidden facts, in the words that the embedded model was trained on.

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use serde::Serialize;

use crate::{EvalError, Prose};

/// The names that have a secret code.
const NAMES: [&str; 24] = [
    "Abraham", "Babylon", "Caleb", "Daniel", "Egypt", "Esther", "Gideon", "Hebron", "Isaac",
    "Jacob", "Jericho", "Jonathan", "Joshua", "Lebanon", "Moses", "Nathan", "Pharaoh", "Rachel",
    "Samson", "Samuel", "Sarah", "Solomon", "Tarshish", "Zion",
];

/// The largest number of needles: the number of names.
pub const MAX_NEEDLES: usize = NAMES.len();

/// A fact: the secret code of a name.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Needle {
    /// The name.
    pub name: String,
    /// The code, six digits.
    pub code: String,
    /// The byte offset of the fact in the text.
    pub position: usize,
}

impl Needle {
    /// Draws a code for a name. The needle has no position yet.
    pub fn new(name: impl Into<String>, rng: &mut SmallRng) -> Self {
        Self {
            name: name.into(),
            code: format!("{:06}", rng.random_range(0..1_000_000)),
            position: 0,
        }
    }

    /// Returns the fact as it stands in the text.
    pub fn fact(&self) -> String {
        format!(" The secret code of {} is {}. ", self.name, self.code)
    }

    /// Returns the question after the text.
    pub fn question(&self) -> String {
        format!(
            "\nQuestion: What is the secret code of {}?\nAnswer:",
            self.name
        )
    }

    /// Returns the correct answer.
    pub fn answer(&self) -> String {
        format!(" {}.", self.code)
    }

    /// Returns the correct answer as a sentence, the way models trained on conversations answer.
    pub fn sentence(&self) -> String {
        self.fact().trim_end().to_owned()
    }
}

/// Returns the tokens that an answer as a sentence takes beyond the code alone, for the longest
/// name.
///
/// # Errors
/// If the tokenizer refuses the sentence.
pub fn sentence_excess(prose: &Prose) -> Result<usize, EvalError> {
    let mut most = 0;
    for name in NAMES {
        let needle = Needle {
            name: name.into(),
            code: "123456".into(),
            position: 0,
        };
        let sentence = prose.encode(&needle.sentence())?.len();
        most = most.max(sentence.saturating_sub(prose.encode(&needle.answer())?.len()));
    }
    Ok(most)
}

/// The places of needles.
#[derive(Clone, Copy, Debug)]
pub enum Depths<'a> {
    /// This many random places.
    Random(usize),
    /// One needle at each of these depths, from 0 (the beginning of the text) to 1 (its end).
    At(&'a [f64]),
}

/// A text with its needles.
#[derive(Clone, Debug)]
pub struct Haystack {
    /// The whole text.
    pub text: String,
    /// The facts, in the order of the given depths or in random order.
    pub needles: Vec<Needle>,
}

impl Haystack {
    /// Makes a text for a context of `context` tokens, with room for any question, its answer and
    /// `reserved` more tokens. Uses at most [`MAX_NEEDLES`] needles. The same draws of `rng` give
    /// the same text.
    ///
    /// # Errors
    /// If the context is too short for the needles or longer than the prose.
    pub fn new(
        prose: &Prose,
        rng: &mut SmallRng,
        context: usize,
        reserved: usize,
        depths: Depths<'_>,
    ) -> Result<Self, EvalError> {
        let mut names = NAMES;
        names.shuffle(rng);
        let count = match depths {
            Depths::Random(count) => count,
            Depths::At(depths) => depths.len(),
        };
        let mut needles: Vec<Needle> = names[..count.min(MAX_NEEDLES)]
            .iter()
            .map(|&name| Needle::new(name, rng))
            .collect();
        let (mut facts, mut tail) = (0, 0);
        for needle in &needles {
            facts += prose.encode(&needle.fact())?.len();
            let asked = prose.encode(&needle.question())?.len();
            tail = tail.max(asked + prose.encode(&needle.answer())?.len());
        }
        tail += prose.opening().len() + reserved;
        // At least half of the text has to be prose, or there is nothing to search.
        let least = 2 * facts + tail;
        let most = prose.tokens().len();
        if context < least || context > most {
            return Err(room(&needles, least, most, context));
        }
        let length = context - facts - tail;
        let start = rng.random_range(0..=most - length);
        let window = &prose.tokens()[start..start + length];
        // Words beside a fact may be split into other tokens. Cuts the excess from the end.
        let mut kept = length;
        while kept > 0 {
            let text = prose.decode(&window[..kept])?;
            let mut haystack = Self::of(&text, &mut needles, rng, depths);
            let found = prose.encode(&haystack.text)?.len() + tail;
            if found <= context {
                if let Depths::Random(_) = depths {
                    haystack.needles.shuffle(rng);
                }
                return Ok(haystack);
            }
            kept = kept.saturating_sub(found - context);
        }
        Err(room(&needles, least, most, context))
    }

    /// Inserts the needles into the text.
    fn of(prose: &str, needles: &mut [Needle], rng: &mut SmallRng, depths: Depths<'_>) -> Self {
        let mut places: Vec<usize> = match depths {
            Depths::Random(_) => needles
                .iter()
                .map(|_| rng.random_range(0..prose.len()))
                .collect(),
            Depths::At(depths) => depths
                .iter()
                .map(|depth| (depth * prose.len() as f64) as usize)
                .collect(),
        };
        for place in &mut places {
            *place = word_end(prose, *place);
        }
        if let Depths::Random(_) = depths {
            places.sort_unstable();
        }
        let mut order: Vec<usize> = (0..needles.len()).collect();
        order.sort_by_key(|&index| places[index]);
        let (mut text, mut from) = (String::with_capacity(2 * prose.len()), 0);
        for index in order {
            text.push_str(&prose[from..places[index]]);
            needles[index].position = text.len();
            text.push_str(&needles[index].fact());
            from = places[index];
        }
        text.push_str(&prose[from..]);
        Self {
            text,
            needles: needles.to_vec(),
        }
    }
}

fn room(needles: &[Needle], least: usize, most: usize, found: usize) -> EvalError {
    EvalError::Context {
        task: "needle",
        expected: format!("{least} (for {} needles) to {most} tokens", needles.len()),
        found,
    }
}

/// Returns the end of the word at a place, so that facts stand between words.
fn word_end(prose: &str, mut place: usize) -> usize {
    while !prose.is_char_boundary(place) {
        place += 1;
    }
    prose[place..]
        .find(char::is_whitespace)
        .map_or(prose.len(), |offset| place + offset)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use sparq_models::embedded;

    use super::*;
    use crate::prose::BIBLE;

    fn bible() -> Prose {
        Prose::new(BIBLE, &embedded::tokenizer().unwrap()).unwrap()
    }

    fn haystack(seed: u64, context: usize, depths: Depths<'_>) -> Result<Haystack, EvalError> {
        Haystack::new(
            &bible(),
            &mut SmallRng::seed_from_u64(seed),
            context,
            0,
            depths,
        )
    }

    #[test]
    fn questions_fit_the_context() {
        for seed in 0..20 {
            let haystack = haystack(seed, 2048, Depths::Random(8)).unwrap();
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
    fn needles_are_at_the_given_depths() {
        let depths = [1.0, 0.0, 0.5];
        let haystack = haystack(1, 2048, Depths::At(&depths)).unwrap();
        for (needle, depth) in haystack.needles.iter().zip(depths) {
            let found = needle.position as f64 / haystack.text.len() as f64;
            // A word and two facts may lie between the place and its depth.
            assert!((found - depth).abs() < 0.05, "{found} for {depth}");
            assert!(haystack.text[needle.position..].starts_with(&needle.fact()));
        }
    }

    #[test]
    fn text_depends_on_the_seed() {
        let text = |seed| haystack(seed, 1024, Depths::Random(2)).unwrap().text;
        assert_eq!(text(3), text(3));
        assert_ne!(text(3), text(4));
    }

    #[test]
    fn contexts_that_are_too_short_are_refused() {
        let error = haystack(0, 200, Depths::Random(4)).unwrap_err().to_string();
        assert!(
            error.contains("context") && error.contains("found 200"),
            "{error}"
        );
        assert!(haystack(0, BIBLE.len() + 1, Depths::Random(1)).is_err());
    }
}
