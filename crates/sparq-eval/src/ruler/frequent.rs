//! Frequent words: the three words of a coded text that occur most often, after a zeta law.

use std::collections::BTreeSet;

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use serde_json::Map;
use sparq_models::text::TextTokenizer;

use super::all_of;
use super::words::letters;
use crate::sample::{self, Sample};
use crate::tasks::TaskOptions;
use crate::{EvalError, Passage, TaskName};

/// The tokens of an answer.
pub(super) const ANSWER_TOKENS: usize = 50;

/// The letters of a coded word.
const LETTERS: usize = 6;

/// The positions of the context for each word of the vocabulary.
const TOKENS_PER_WORD: usize = 50;

/// The least number of words in a text, so that the third word outnumbers the fourth.
const LEAST: usize = 40;

/// Makes the examples.
///
/// # Errors
/// If a context is too long or too short.
pub(crate) fn passages(
    options: &TaskOptions,
    tokenizer: &TextTokenizer,
) -> Result<Vec<Passage>, EvalError> {
    let task = TaskName::FrequentWords;
    sample::passages(task, options, tokenizer, LEAST, &|place, rng, size| {
        let tokens = place.context.saturating_sub(ANSWER_TOKENS);
        Ok(of_size(rng, (tokens / TOKENS_PER_WORD).max(8), size))
    })
}

/// Makes a text of about `size` words from a vocabulary. The most frequent word is noise, `...`.
fn of_size(rng: &mut SmallRng, vocabulary: usize, size: usize) -> Sample {
    let mut coded = BTreeSet::new();
    while coded.len() < vocabulary {
        coded.insert(letters(rng, b'a', LETTERS));
    }
    let mut coded = Vec::from_iter(coded);
    coded.shuffle(rng);
    coded[0] = "...".into();
    // The Riemann zeta function at 2.
    let zeta = std::f64::consts::PI.powi(2) / 6.0;
    let mut words: Vec<&str> = Vec::new();
    for (index, word) in coded.iter().enumerate() {
        let rank = (index + 1) as f64;
        let count = (size as f64 / (rank * rank) / zeta) as usize;
        words.extend(std::iter::repeat_n(word.as_str(), count));
    }
    words.shuffle(rng);
    Sample {
        text: format!(
            "Read the following coded text and track the frequency of each coded word. Find the \
             three most frequently appeared coded words. {}",
            words.join(" ")
        ),
        question:
            "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What \
                   are the three most frequently appeared words in the above coded text? Answer: \
                   According to the coded text above, the three most frequently appeared words are:"
                .into(),
        work: all_of(ANSWER_TOKENS, coded[1..4].to_vec()),
        detail: Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::Work;
    use crate::score::Judge;

    #[test]
    fn counts_fall_with_the_square_of_the_rank() {
        let sample = of_size(&mut SmallRng::seed_from_u64(1), 80, 1000);
        let Work::Answer {
            judge: Judge::AllOf(references),
            ..
        } = &sample.work
        else {
            panic!("{:?}", sample.work);
        };
        let count = |word: &str| {
            let words = sample.text.split(' ');
            words.filter(|other| *other == word).count()
        };
        assert_eq!(count("..."), 607);
        let counts: Vec<usize> = references.iter().map(|word| count(word)).collect();
        assert_eq!(counts, [151, 67, 37]);
    }
}
