//! Common words: the ten words of a numbered list that occur most often.

use std::iter::repeat_n;

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use serde_json::Map;
use sparq_models::text::TextTokenizer;

use super::all_of;
use super::words::WORDS;
use crate::sample::{self, Sample};
use crate::tasks::TaskOptions;
use crate::{EvalError, Passage, TaskName};

/// The tokens of an answer.
pub(super) const ANSWER_TOKENS: usize = 120;

/// The number of common words.
const COMMON: usize = 10;

/// The context from which words are repeated more often.
const LONG: usize = 4096;

/// A list: how often its common and other words occur, and the number of the others.
#[derive(Clone, Copy)]
struct Shape {
    common: usize,
    other: usize,
    others: usize,
}

/// Makes the examples, each after one with its answer.
///
/// # Errors
/// If a context is too long or too short.
pub(crate) fn passages(
    options: &TaskOptions,
    tokenizer: &TextTokenizer,
) -> Result<Vec<Passage>, EvalError> {
    let task = TaskName::CommonWords;
    sample::passages(task, options, tokenizer, 1, &|place, rng, size| {
        Ok(of_size(rng, place.context, size))
    })
}

fn of_size(rng: &mut SmallRng, context: usize, others: usize) -> Sample {
    let (shot, shape) = match context < LONG {
        true => ([3, 1, 10], [6, 1]),
        false => ([10, 3, 30], [30, 3]),
    };
    let shot = Shape {
        common: shot[0],
        other: shot[1],
        others: shot[2],
    };
    let shape = Shape {
        common: shape[0],
        other: shape[1],
        others,
    };
    let (shot_text, shot_words) = list(rng, shot);
    let (text, words) = list(rng, shape);
    Sample {
        text: format!(
            "{shot_text}{QUESTION} {}\n{text}",
            numbered(shot_words.iter().map(String::as_str))
        ),
        question: QUESTION.into(),
        work: all_of(ANSWER_TOKENS, words),
        detail: Map::new(),
    }
}

const QUESTION: &str = "\nQuestion: What are the 10 most common words in the above list? Answer: \
                        The top 10 words that appear most often in the list are:";

/// Draws a list. Returns it with its common words.
fn list(rng: &mut SmallRng, shape: Shape) -> (String, Vec<String>) {
    let count = COMMON + shape.others;
    let known = WORDS.len().min(count);
    let drawn = rand::seq::index::sample(rng, WORDS.len(), known);
    let mut words: Vec<String> = drawn.iter().map(|index| WORDS[index].to_owned()).collect();
    // Long lists have more words than the embedded texts. Pairs of words are words then.
    while words.len() < count {
        let pair = [(); 2].map(|()| WORDS[rng.random_range(0..WORDS.len())]);
        words.push(pair.concat());
    }
    let (common, others) = words.split_at(COMMON);
    let mut all: Vec<&str> = Vec::new();
    for (words, times) in [(common, shape.common), (others, shape.other)] {
        let repeated = words.iter().flat_map(|word| repeat_n(word.as_str(), times));
        all.extend(repeated);
    }
    all.shuffle(rng);
    let text = format!(
        "Below is a numbered list of words. In these words, some appear more often than others. \
         Memorize the ones that appear most often.\n{}",
        numbered(all.iter().copied())
    );
    (text, common.to_vec())
}

fn numbered<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let numbered = words.enumerate();
    let numbered: Vec<String> = numbered
        .map(|(index, word)| format!("{}. {word}", index + 1))
        .collect();
    numbered.join(" ")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use rand::SeedableRng;

    use super::*;

    #[test]
    fn common_words_occur_most_often() {
        let shape = Shape {
            common: 30,
            other: 3,
            others: 9000,
        };
        let (text, common) = list(&mut SmallRng::seed_from_u64(2), shape);
        let list = text.split_once('\n').unwrap().1;
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for word in list.split(' ').skip(1).step_by(2) {
            *counts.entry(word).or_default() += 1;
        }
        assert_eq!(counts.values().sum::<usize>(), 10 * 30 + 9000 * 3);
        let rare = counts.values().filter(|&&count| count < 30).count();
        assert!(rare > 8900 && common.len() == 10);
        assert!(common.iter().all(|word| counts[word.as_str()] >= 30));
        assert!(list.starts_with("1. ") && list.contains(" 27300. "));
    }

    #[test]
    fn short_contexts_repeat_words_less() {
        let count = |context| {
            let sample = of_size(&mut SmallRng::seed_from_u64(0), context, 5);
            sample.text.matches(". ").count()
        };
        assert!(count(4096) > 3 * count(2048), "{}", count(2048));
    }
}
