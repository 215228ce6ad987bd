//! [`Sample`]: a generated text with a question, made as long as a context allows.

use rand::rngs::SmallRng;
use serde_json::{Map, Value};
use sparq_models::text::TextTokenizer;

use crate::tasks::TaskOptions;
use crate::{EvalError, Passage, Question, TaskName, Work};

/// A text and a question about it, not yet encoded.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// The text, which is read densely.
    pub text: String,
    /// The question after it, which begins with a line break, and the beginning of the answer.
    pub question: String,
    /// The work after the question.
    pub work: Work,
    /// Details for the record.
    pub detail: Map<String, Value>,
}

impl Sample {
    /// Encodes the sample.
    ///
    /// # Errors
    /// If the tokenizer refuses a text.
    pub(crate) fn passage(
        self,
        tokenizer: &TextTokenizer,
        context: Option<usize>,
        example: String,
    ) -> Result<Passage, EvalError> {
        Ok(Passage {
            context,
            text: tokenizer.encode(&self.text, true)?,
            questions: vec![Question {
                example,
                prompt: tokenizer.encode(&self.question, false)?,
                work: self.work,
                detail: self.detail,
            }],
        })
    }
}

/// The place of an example among those of a task.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// The number of positions to fill.
    pub context: usize,
    /// The number of the example at this context.
    pub index: usize,
}

/// Makes the examples of a generated task: for each the longest sample that fits its context with
/// the answer.
///
/// `make` makes the sample of a place and a size in units of its own, such as sentences, from the
/// same random numbers for every size. Sizes begin at `least`.
///
/// # Errors
/// If a context is longer than the model's or too short for a sample of size `least`.
pub(crate) fn passages(
    task: TaskName,
    options: &TaskOptions,
    tokenizer: &TextTokenizer,
    least: usize,
    make: &dyn Fn(Place, &mut SmallRng, usize) -> Result<Sample, EvalError>,
) -> Result<Vec<Passage>, EvalError> {
    let mut passages = Vec::new();
    for &context in options.checked_contexts(task)? {
        for index in 0..options.examples {
            let rng = options.rng(task, context, index);
            let sample = |size| {
                let example = format!("context={context} text={index}");
                let sample = make(Place { context, index }, &mut rng.clone(), size)?;
                sample.passage(tokenizer, Some(context), example)
            };
            passages.push(longest(task, context, least, &sample)?);
        }
    }
    Ok(passages)
}

/// Returns the passage of the largest size that fits a context, by doubling and bisection.
fn longest(
    task: TaskName,
    context: usize,
    least: usize,
    sample: &dyn Fn(usize) -> Result<Passage, EvalError>,
) -> Result<Passage, EvalError> {
    let positions = |passage: &Passage| passage.positions(&passage.questions[0]);
    let mut best = sample(least)?;
    if positions(&best) > context {
        return Err(EvalError::Context {
            task: task.name(),
            expected: format!("at least {} tokens", positions(&best)),
            found: context,
        });
    }
    let (mut low, mut high) = (least, None);
    loop {
        let size = match high {
            None => 2 * low + 1,
            Some(high) if high - low > 1 => low.midpoint(high),
            Some(_) => return Ok(best),
        };
        let passage = sample(size)?;
        // Some texts end.
        if high.is_none() && positions(&passage) == positions(&best) {
            return Ok(best);
        }
        if positions(&passage) <= context {
            (low, best) = (size, passage);
        } else {
            high = Some(size);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a passage whose text has two tokens per unit.
    fn passage(size: usize) -> Result<Passage, EvalError> {
        Ok(Passage {
            context: None,
            text: vec![1; 2 * size],
            questions: vec![Question {
                example: size.to_string(),
                prompt: vec![2; 3],
                work: Work::Predict {
                    tokens: vec![3; 2],
                    characters: 1,
                },
                detail: Map::new(),
            }],
        })
    }

    #[test]
    fn texts_that_end_are_whole() {
        let ending = |size: usize| passage(size.min(20));
        let found = longest(TaskName::Bpc, 500, 1, &ending).unwrap();
        assert_eq!(found.text.len(), 40);
    }

    #[test]
    fn passages_fill_the_context() {
        for context in 6..80 {
            let found = longest(TaskName::Bpc, context, 1, &passage).unwrap();
            let expected = (context - 4) / 2;
            assert_eq!(found.questions[0].example, expected.to_string());
        }
        let error = longest(TaskName::Bpc, 5, 1, &passage).unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains("at least 6") && message.contains("found 5"),
            "{message}"
        );
    }
}
