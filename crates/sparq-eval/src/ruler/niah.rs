//! Needles in a haystack: values of keys, hidden in a text.

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::seq::index::sample;
use serde_json::Map;
use sparq_models::text::TextTokenizer;

use super::words::Token;
use super::{NOISE, all_of};
use crate::filler::Filler;
use crate::prose::PLAYS;
use crate::sample::{self, Sample};
use crate::tasks::TaskOptions;
use crate::{EvalError, Passage, TaskName};

/// The tokens of an answer.
pub(super) const ANSWER_TOKENS: usize = 128;

/// The number of places where a needle may stand in an essay.
const PLACES: usize = 40;

/// The text that hides the needles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Haystack {
    /// The same few sentences again and again.
    Noise,
    /// Prose.
    Essay,
    /// Needles of other keys.
    Needles,
}

/// A variant of the task.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Niah {
    /// The text.
    pub haystack: Haystack,
    /// The kind of the keys.
    pub keys: Token,
    /// The kind of the values.
    pub values: Token,
    /// The number of keys.
    pub key_count: usize,
    /// The number of values of each key.
    pub value_count: usize,
    /// The number of keys asked for.
    pub asked: usize,
}

impl Niah {
    /// One number of one key in prose, the simplest variant in words of content.
    pub(crate) const SINGLE: Self = Self {
        haystack: Haystack::Essay,
        keys: Token::Words,
        values: Token::Numbers,
        key_count: 1,
        value_count: 1,
        asked: 1,
    };

    /// Makes the examples.
    ///
    /// # Errors
    /// If a context is too long or too short, or the text cannot be read.
    pub(crate) fn passages(
        &self,
        task: TaskName,
        options: &TaskOptions,
        tokenizer: &TextTokenizer,
    ) -> Result<Vec<Passage>, EvalError> {
        let filler = Filler::new(options.text.as_deref(), PLAYS)?;
        // Every needle in noise and among needles has a sentence of its own.
        let least = self.key_count * self.value_count;
        sample::passages(task, options, tokenizer, least, &|_, rng, size| {
            Ok(self.sample(&filler, rng, size))
        })
    }

    fn needle(&self, key: &str, value: &str) -> String {
        let values = self.values.plural();
        format!("One of the special magic {values} for {key} is: {value}.")
    }

    /// Makes a sample with `size` sentences of haystack.
    fn sample(&self, filler: &Filler, rng: &mut SmallRng, size: usize) -> Sample {
        let mut keys: Vec<String> = Vec::new();
        while keys.len() < self.key_count {
            let key = self.keys.draw(rng);
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        let values: Vec<Vec<String>> = keys
            .iter()
            .map(|_| {
                (0..self.value_count)
                    .map(|_| self.values.draw(rng))
                    .collect()
            })
            .collect();
        let pairs = keys.iter().zip(&values);
        let of_key = pairs.flat_map(|(key, values)| values.iter().map(move |value| (key, value)));
        let mut needles: Vec<String> = of_key.map(|(key, value)| self.needle(key, value)).collect();
        needles.shuffle(rng);
        let asked = sample(rng, keys.len(), self.asked).into_vec();
        let context = self.context(filler, rng, size, &keys, needles);
        let references = asked.iter().flat_map(|&key| values[key].clone()).collect();
        let queries: Vec<&str> = asked.iter().map(|&key| keys[key].as_str()).collect();
        self.asked(&context, &queries, references)
    }

    /// Hides needles in a haystack.
    fn context(
        &self,
        filler: &Filler,
        rng: &mut SmallRng,
        size: usize,
        keys: &[String],
        needles: Vec<String>,
    ) -> String {
        let other = |rng: &mut SmallRng| {
            let key = loop {
                let key = self.keys.draw(rng);
                if !keys.contains(&key) {
                    break key;
                }
            };
            self.needle(&key, &self.values.draw(rng))
        };
        let (mut sentences, separator): (Vec<String>, &str) = match self.haystack {
            Haystack::Noise => (vec![NOISE.into(); size], "\n"),
            Haystack::Needles => ((0..size).map(|_| other(rng)).collect(), "\n"),
            Haystack::Essay => {
                let drawn = filler.draw(rng, size);
                (drawn.into_iter().map(str::to_owned).collect(), " ")
            }
        };
        let mut places: Vec<usize> = match self.haystack {
            Haystack::Essay => {
                let places = sample(rng, PLACES, needles.len()).into_iter();
                let last = PLACES - 1;
                places.map(|place| sentences.len() * place / last).collect()
            }
            _ => sample(rng, sentences.len(), needles.len()).into_vec(),
        };
        places.sort_unstable();
        // From the end, so that the earlier places stay.
        for (place, needle) in places.into_iter().zip(needles).rev() {
            sentences.insert(place, needle);
        }
        sentences.join(separator)
    }

    /// Writes the prompt. One value is asked for in the singular.
    fn asked(&self, context: &str, queries: &[&str], references: Vec<String>) -> Sample {
        let values = self.values.plural();
        let query = match queries {
            [one] => (*one).to_owned(),
            [first @ .., last] => format!("{}, and {last}", first.join(", ")),
            [] => String::new(),
        };
        let one = references.len() == 1;
        let (some, are, all, values) = match one {
            true => ("A", "is", "is", &values[..values.len() - 1]),
            false => ("Some", "are", "are all", values),
        };
        Sample {
            text: format!(
                "{some} special magic {values} {are} hidden within the following text. Make sure \
                 to memorize it. I will quiz you about the {values} afterwards.\n{context}"
            ),
            question: format!(
                "\nWhat {all} the special magic {values} for {query} mentioned in the provided \
                 text? The special magic {values} for {query} mentioned in the provided text {are}"
            ),
            work: all_of(ANSWER_TOKENS, references),
            detail: Map::from_iter([("query".to_owned(), query.into())]),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::Work;
    use crate::score::Judge;

    fn made(niah: Niah, seed: u64, size: usize) -> (Sample, Vec<String>) {
        let filler = Filler::new(None, PLAYS).unwrap();
        let made = niah.sample(&filler, &mut SmallRng::seed_from_u64(seed), size);
        let Work::Answer {
            judge: Judge::AllOf(references),
            max_tokens: ANSWER_TOKENS,
        } = made.work.clone()
        else {
            panic!("{:?}", made.work);
        };
        (made, references)
    }

    #[test]
    fn one_value_is_asked_for_in_the_singular() {
        let (sample, references) = made(Niah::SINGLE, 3, 20);
        let key = sample.detail["query"].as_str().unwrap();
        let needle = format!(
            " One of the special magic numbers for {key} is: {}.",
            references[0]
        );
        assert_eq!(sample.text.matches(&needle).count(), 1, "{}", sample.text);
        let begins = "A special magic number is hidden within the following text. Make sure to \
                      memorize it. I will quiz you about the number afterwards.\n";
        assert!(sample.text.starts_with(begins), "{}", sample.text);
        let question = format!(
            "\nWhat is the special magic number for {key} mentioned in the provided text? The \
             special magic number for {key} mentioned in the provided text is"
        );
        assert_eq!(sample.question, question);
    }

    #[test]
    fn several_values_are_asked_for_in_the_plural() {
        let niah = Niah {
            key_count: 4,
            asked: 3,
            ..Niah::SINGLE
        };
        let (sample, references) = made(niah, 4, 60);
        assert_eq!(references.len(), 3);
        assert!(
            sample
                .text
                .starts_with("Some special magic numbers are hidden")
        );
        let query = sample.detail["query"].as_str().unwrap();
        let [first, second, third] = query.split(", ").collect::<Vec<_>>()[..] else {
            panic!("{query}");
        };
        let third = third.strip_prefix("and ").unwrap();
        for (key, value) in [first, second, third].into_iter().zip(&references) {
            let needle = format!("numbers for {key} is: {value}.");
            assert!(sample.text.contains(&needle), "{needle}");
        }
        assert!(sample.question.ends_with("in the provided text are"));
    }

    #[test]
    fn references_occur_once_in_every_haystack() {
        for haystack in [Haystack::Noise, Haystack::Essay, Haystack::Needles] {
            for (keys, values) in [(Token::Words, Token::Numbers), (Token::Uuids, Token::Uuids)] {
                let niah = Niah {
                    haystack,
                    keys,
                    values,
                    value_count: 4,
                    ..Niah::SINGLE
                };
                for seed in 0..5 {
                    let (sample, references) = made(niah, seed, 40);
                    assert_eq!(references.len(), 4);
                    for reference in references {
                        let count = sample.text.matches(&reference).count();
                        assert_eq!(count, 1, "{haystack:?} {seed} {reference}");
                    }
                    let key = sample.detail["query"].as_str().unwrap();
                    assert_eq!(sample.text.matches(key).count(), 4, "{haystack:?} {key}");
                }
            }
        }
    }

    #[test]
    fn sizes_of_a_seed_share_their_needles() {
        for size in [10, 100] {
            let (sample, references) = made(Niah::SINGLE, 7, size);
            let (least, expected) = made(Niah::SINGLE, 7, 2);
            assert_eq!(
                (&sample.question, &references),
                (&least.question, &expected)
            );
        }
    }
}
