//! The tasks: each is a file of its own that makes [`Passage`]s, and a line in the table [`passages`].

mod bpc;
mod cnn_dailymail;
mod key_value;
mod needle;
mod repetition;
mod squad;
mod trivia_qa;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use sparq_models::text::TextTokenizer;

use crate::score::Judge;
use crate::{EvalError, Passage, Question, TaskName, Work};

/// What examples are made of.
#[derive(Clone, Debug)]
pub struct TaskOptions {
    /// What they are drawn from.
    pub seed: u64,
    /// How many, of every task and context. The first ones are the same however many there are.
    pub examples: usize,
    /// Positions to fill, for the tasks whose data do not give the length.
    pub contexts: Vec<usize>,
    /// Facts in a text, each of which is asked for (needle, key_value).
    pub needles: usize,
    /// Places in a text where needles are put, from its beginning to its end (needle).
    pub depths: usize,
    /// A text in UTF-8 to take the place of the one inside the program (repetition, needle, bpc).
    pub text: Option<PathBuf>,
    /// The file of the data set (squad, trivia_qa, cnn_dailymail).
    pub data: Option<PathBuf>,
    /// The most positions that a question may take: the model's context.
    pub most: usize,
}

/// Makes the examples of a task.
///
/// # Errors
/// When a context is longer than the model's or too short for the task, the text is too short, or a file is not what the task reads.
pub fn passages(
    task: TaskName,
    options: &TaskOptions,
    tokenizer: &TextTokenizer,
) -> Result<Vec<Passage>, EvalError> {
    match task {
        TaskName::Repetition => repetition::passages(options, tokenizer),
        TaskName::Needle => needle::passages(options, tokenizer),
        TaskName::Bpc => bpc::passages(options, tokenizer),
        TaskName::KeyValue => key_value::passages(options, tokenizer),
        TaskName::Squad => squad::passages(options, tokenizer),
        TaskName::TriviaQa => trivia_qa::passages(options, tokenizer),
        TaskName::CnnDailymail => cnn_dailymail::passages(options, tokenizer),
    }
}

impl TaskOptions {
    /// The contexts, none longer than the model's.
    fn checked_contexts(&self, task: TaskName) -> Result<&[usize], EvalError> {
        match self.contexts.iter().find(|&&context| context > self.most) {
            Some(&found) => Err(EvalError::Context {
                task: task.name(),
                expected: format!("at most {} tokens (the model's context)", self.most),
                found,
            }),
            None => Ok(&self.contexts),
        }
    }

    /// Refuses no needles and more than `most`.
    fn check_needles(&self, most: usize) -> Result<(), EvalError> {
        match self.needles {
            found if found == 0 || found > most => Err(EvalError::Needles { most, found }),
            _ => Ok(()),
        }
    }

    /// The file of the data set.
    fn data(&self, task: TaskName) -> Result<&Path, EvalError> {
        self.data
            .as_deref()
            .ok_or(EvalError::NoData { task: task.name() })
    }

    /// Draws for the example `index` of a task at a context, independent of those for others.
    fn rng(&self, task: TaskName, context: usize, index: usize) -> SmallRng {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(task.name().as_bytes());
        for number in [context, index] {
            hasher.update(&(number as u64).to_le_bytes());
        }
        SmallRng::seed_from_u64(self.seed.rotate_left(32) ^ u64::from(hasher.finalize()))
    }
}

/// Characters of a page or article: long enough to be a test, short enough for the models of the paper.
const LENGTHS: RangeInclusive<usize> = 4000..=8000;

/// The tokens of a whole prompt.
fn opened(tokenizer: &TextTokenizer, prompt: &str) -> Result<Vec<u32>, EvalError> {
    Ok(tokenizer.encode(prompt, true)?)
}

/// A question whose answer begins with one of `answers`. It may take a few tokens more than the longest of them.
fn answered(
    tokenizer: &TextTokenizer,
    example: String,
    prompt: &str,
    answers: &[String],
    max_tokens: usize,
    spare: usize,
) -> Result<Question, EvalError> {
    let mut longest = 0;
    for answer in answers {
        longest = longest.max(tokenizer.encode(answer, false)?.len());
    }
    Ok(Question {
        example,
        prompt: opened(tokenizer, prompt)?,
        work: Work::Answer {
            max_tokens: max_tokens.min(longest + spare),
            judge: Judge::Answers(answers.to_vec()),
        },
        detail: serde_json::Map::new(),
    })
}

/// As many examples as are asked for of the `count` rows of a data set, in an order that the seed gives.
///
/// Rows of which `question` makes nothing are passed over, and so are those that are longer than the model's context: cutting them would take away what is
/// asked for.
fn choose(
    options: &TaskOptions,
    task: TaskName,
    path: &Path,
    count: usize,
    mut question: impl FnMut(usize, &mut SmallRng) -> Result<Option<Question>, EvalError>,
) -> Result<Vec<Passage>, EvalError> {
    let mut order: Vec<usize> = (0..count).collect();
    order.shuffle(&mut options.rng(task, 0, 0));
    let mut passages = Vec::new();
    for index in order {
        if passages.len() == options.examples {
            break;
        }
        let Some(question) = question(index, &mut options.rng(task, 0, index + 1))? else {
            continue;
        };
        let passage = Passage {
            context: None,
            text: Vec::new(),
            questions: vec![question],
        };
        if passage.positions(&passage.questions[0]) <= options.most {
            passages.push(passage);
        }
    }
    if passages.is_empty() {
        return Err(EvalError::Data {
            path: path.to_owned(),
            place: format!("{count} usable rows"),
            reason: format!(
                "expected one that fits the model's context of {} tokens, found none",
                options.most
            ),
        });
    }
    Ok(passages)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Options for the model inside the program.
    pub(super) fn options(contexts: &[usize], examples: usize) -> TaskOptions {
        TaskOptions {
            seed: 0,
            examples,
            contexts: contexts.to_vec(),
            needles: 4,
            depths: 17,
            text: None,
            data: None,
            most: 8192,
        }
    }

    /// The tasks that need no file.
    const OWN: [TaskName; 4] = [
        TaskName::Repetition,
        TaskName::Needle,
        TaskName::Bpc,
        TaskName::KeyValue,
    ];

    fn made(task: TaskName, options: &TaskOptions) -> Vec<Passage> {
        let tokenizer = sparq_models::embedded::tokenizer().unwrap();
        passages(task, options, &tokenizer).unwrap()
    }

    #[test]
    fn more_examples_begin_with_the_same_ones() {
        for task in OWN {
            let examples = |count| {
                let passages = made(task, &options(&[1536], count));
                let questions = passages.iter().flat_map(|passage| {
                    let of = |question| (passage.text.clone(), passage.crc32(question));
                    passage.questions.iter().map(of)
                });
                questions.collect::<Vec<_>>()
            };
            let (few, many) = (examples(3), examples(7));
            assert_eq!((few.len(), many.len()), (3, 7), "{task}");
            assert_eq!(few, many[..3], "{task}");
        }
    }

    #[test]
    fn every_example_has_a_name_of_its_own_and_fits_its_context() {
        for task in OWN {
            let passages = made(task, &options(&[1024, 2048], 9));
            let mut names: Vec<&str> = Vec::new();
            for passage in &passages {
                for question in &passage.questions {
                    names.push(&question.example);
                    let (positions, context) = (passage.positions(question), passage.context);
                    let context = context.unwrap();
                    assert!(positions <= context, "{task}: {positions} of {context}");
                    assert!(
                        positions + 120 > context,
                        "{task}: {positions} of {context}"
                    );
                }
            }
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), 18, "{task}");
        }
    }

    #[test]
    fn another_seed_is_another_text() {
        for task in OWN {
            let text = |seed| {
                let options = TaskOptions {
                    seed,
                    ..options(&[1024], 1)
                };
                let passage = made(task, &options).remove(0);
                passage.crc32(&passage.questions[0])
            };
            assert_ne!(text(0), text(1), "{task}");
        }
    }

    #[test]
    fn a_context_beyond_the_models_is_refused() {
        let tokenizer = sparq_models::embedded::tokenizer().unwrap();
        for task in OWN {
            let error = passages(task, &options(&[1024, 8193], 1), &tokenizer).unwrap_err();
            let message = error.to_string();
            assert!(
                message.contains("at most 8192") && message.contains("8193"),
                "{message}"
            );
        }
    }
}
