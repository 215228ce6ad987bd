//! Words, numbers and identifiers of generated tasks.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::LazyLock;

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

use crate::prose::{BIBLE, PLAYS};

/// The numbers of letters of words.
const LETTERS: RangeInclusive<usize> = 4..=10;

const ADJECTIVES: [&str; 40] = [
    "amber", "ancient", "bitter", "bold", "brave", "bright", "broad", "calm", "careful", "clever",
    "cold", "curious", "deep", "eager", "early", "faint", "fierce", "gentle", "golden", "grand",
    "happy", "hidden", "hollow", "humble", "kind", "late", "lively", "lonely", "mellow", "narrow",
    "noble", "patient", "plain", "proud", "quiet", "rapid", "silver", "steady", "tender", "wild",
];

const NOUNS: [&str; 60] = [
    "anchor", "apple", "arrow", "barley", "basket", "beacon", "bridge", "candle", "canyon",
    "carpet", "castle", "cedar", "chapel", "cherry", "circle", "cliff", "clock", "cottage",
    "cradle", "desert", "eagle", "engine", "falcon", "feather", "forest", "garden", "glacier",
    "hammer", "harbor", "island", "jacket", "kettle", "ladder", "lantern", "maple", "marble",
    "meadow", "mirror", "mountain", "needle", "ocean", "orchard", "palace", "pebble", "pepper",
    "pillow", "planet", "quarry", "ribbon", "river", "saddle", "shadow", "shelter", "spindle",
    "temple", "thunder", "tunnel", "valley", "window", "yard",
];

/// The words in lower case of the embedded texts, sorted.
pub(crate) static WORDS: LazyLock<Vec<&str>> = LazyLock::new(|| {
    let texts = [BIBLE, PLAYS].into_iter();
    let words = texts.flat_map(|text| text.split(|c: char| !c.is_ascii_alphabetic()));
    let is_word = |word: &&str| {
        LETTERS.contains(&word.len()) && word.bytes().all(|letter| letter.is_ascii_lowercase())
    };
    let words: BTreeSet<&str> = words.filter(is_word).collect();
    words.into_iter().collect()
});

/// A kind of key or value of a needle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// Numbers of seven digits.
    Numbers,
    /// An adjective and a noun with a hyphen.
    Words,
    /// Universally unique identifiers, version 4.
    Uuids,
}

impl Token {
    /// Returns the name in templates, in the plural.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Self::Numbers => "numbers",
            Self::Words => "words",
            Self::Uuids => "uuids",
        }
    }

    /// Draws a token.
    pub(crate) fn draw(self, rng: &mut SmallRng) -> String {
        match self {
            Self::Numbers => rng.random_range(1_000_000..10_000_000).to_string(),
            Self::Words => {
                let of = |words: &[&'static str], rng: &mut SmallRng| {
                    *words.choose(rng).expect("the list is not empty")
                };
                format!("{}-{}", of(&ADJECTIVES, rng), of(&NOUNS, rng))
            }
            Self::Uuids => {
                let bits: u128 = rng.random();
                // RFC 9562, section 5.4: version 4 and the variant 10.
                let bits = bits & !(0xf << 76) & !(0b11 << 62) | 4 << 76 | 0b10 << 62;
                let hex = format!("{bits:032x}");
                let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &hex[part]);
                parts.join("-")
            }
        }
    }
}

/// Returns a word of random letters from `first` on.
pub(crate) fn letters(rng: &mut SmallRng, first: u8, count: usize) -> String {
    let letters = (0..count).map(|_| char::from(first + rng.random_range(0..26)));
    letters.collect()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn words_are_many_and_distinct() {
        assert!(WORDS.len() > 6000);
        for list in [&ADJECTIVES[..], &NOUNS[..], &WORDS[..]] {
            assert!(list.is_sorted_by(|a, b| a < b));
        }
    }

    #[test]
    fn identifiers_name_version_and_variant() {
        let mut rng = SmallRng::seed_from_u64(0);
        for _ in 0..50 {
            let uuid = Token::Uuids.draw(&mut rng);
            let lengths: Vec<usize> = uuid.split('-').map(str::len).collect();
            assert_eq!(lengths, [8, 4, 4, 4, 12]);
            assert_eq!(&uuid[14..15], "4");
            assert!("89ab".contains(&uuid[19..20]), "{uuid}");
            assert_eq!(Token::Numbers.draw(&mut rng).len(), 7);
            assert_eq!(letters(&mut rng, b'A', 5).len(), 5);
        }
    }
}
