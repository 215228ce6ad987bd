//! Variable tracking: a chain of assignments, hidden in noise.

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::index::sample;
use serde_json::Map;
use sparq_models::text::TextTokenizer;

use super::words::letters;
use super::{NOISE, all_of};
use crate::sample::{self, Sample};
use crate::tasks::TaskOptions;
use crate::{EvalError, Passage, TaskName};

/// The tokens of an answer.
pub(super) const ANSWER_TOKENS: usize = 30;

/// The assignments after the first.
const HOPS: usize = 4;

/// The sentences of noise in the example before the text. RULER fills 500 tokens.
const SHOT_NOISE: usize = 12;

/// A text about a chain of variables, and its question.
struct Chain {
    text: String,
    question: String,
    variables: Vec<String>,
}

impl Chain {
    /// Draws a chain of variables with names of `letter_count` letters in `size` sentences.
    fn new(rng: &mut SmallRng, letter_count: usize, size: usize) -> Self {
        let mut variables: Vec<String> = Vec::new();
        while variables.len() <= HOPS {
            let variable = letters(rng, b'A', letter_count);
            if !variables.contains(&variable) {
                variables.push(variable);
            }
        }
        let value = rng.random_range(10_000..99_999);
        let mut chain = vec![format!("VAR {} = {value}", variables[0])];
        let pairs = variables.windows(2);
        chain.extend(pairs.map(|pair| format!("VAR {} = VAR {}", pair[1], pair[0])));
        let mut sentences = vec![NOISE.to_owned(); size];
        let mut places = sample(rng, size, chain.len()).into_vec();
        places.sort_unstable();
        for (place, assignment) in places.into_iter().zip(chain).rev() {
            sentences.insert(place, assignment);
        }
        Self {
            text: format!(
                "Memorize and track the chain(s) of variable assignment hidden in the following \
                 text.\n\n{}",
                sentences.join("\n")
            ),
            question: format!(
                "\nQuestion: Find all variables that are assigned the value {value} in the text \
                 above. Answer: According to the chain(s) of variable assignment in the text \
                 above, {} variables are assigned the value {value}, they are:",
                HOPS + 1
            ),
            variables,
        }
    }
}

/// Makes the examples, each after one with its answer.
///
/// # Errors
/// If a context is too long or too short.
pub(crate) fn passages(
    options: &TaskOptions,
    tokenizer: &TextTokenizer,
) -> Result<Vec<Passage>, EvalError> {
    let task = TaskName::VariableTracking;
    sample::passages(task, options, tokenizer, HOPS + 1, &|_, rng, size| {
        Ok(of_size(rng, size))
    })
}

fn of_size(rng: &mut SmallRng, size: usize) -> Sample {
    let shot = Chain::new(rng, 3, SHOT_NOISE);
    let chain = Chain::new(rng, 5, size);
    Sample {
        text: format!(
            "{}{} {}\n\n{}",
            shot.text,
            shot.question,
            shot.variables.join(" "),
            chain.text
        ),
        question: chain.question,
        work: all_of(ANSWER_TOKENS, chain.variables),
        detail: Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn chains_lead_from_the_value_to_all_variables() {
        for seed in 0..20 {
            let chain = Chain::new(&mut SmallRng::seed_from_u64(seed), 5, 30);
            let lines: Vec<&str> = chain.text.lines().collect();
            let at = |line: &str| lines.iter().position(|other| *other == line);
            let value = chain.question.split("the value ").nth(1).unwrap();
            let value = value.split(' ').next().unwrap();
            let mut last = at(&format!("VAR {} = {value}", chain.variables[0])).unwrap();
            for pair in chain.variables.windows(2) {
                let line = at(&format!("VAR {} = VAR {}", pair[1], pair[0])).unwrap();
                assert!(line > last, "{}", chain.text);
                last = line;
            }
            assert_eq!(lines.iter().filter(|line| **line == NOISE).count(), 30);
        }
    }

    #[test]
    fn examples_begin_with_an_answered_one() {
        let sample = of_size(&mut SmallRng::seed_from_u64(5), 10);
        assert_eq!(sample.text.matches("Memorize and track").count(), 2);
        assert_eq!(sample.text.matches("they are: ").count(), 1);
        assert!(sample.question.ends_with("they are:"));
    }
}
