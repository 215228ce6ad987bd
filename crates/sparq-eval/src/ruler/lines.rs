//! RULER's own examples, read from the JSON lines that its scripts write.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};
use sparq_models::text::TextTokenizer;

use super::{common, documents, frequent, niah, variables};
use crate::datasets::{self, Row};
use crate::sample::Sample;
use crate::score::Judge;
use crate::tasks::{TaskOptions, choose};
use crate::{EvalError, Passage, TaskName, Work};

/// A line. The other fields (`index`, `length`, ...) are not needed.
#[derive(Clone, Debug, Deserialize)]
struct Line {
    /// The text and the question.
    input: String,
    /// The references.
    outputs: Vec<String>,
    /// The beginning of the answer. Older versions have it at the end of the input.
    #[serde(default)]
    answer_prefix: String,
}

impl Row for Line {
    const COLUMNS: &'static [&'static str] = &[];

    fn from_document(_document: Value, _path: &Path) -> Result<Vec<Self>, String> {
        Err("expected JSON lines with input and outputs, found one document".into())
    }
}

/// The words of a task of RULER, where its question begins, the tokens of its answer, and whether
/// any reference is enough.
const FORMS: [(&str, &[&str], usize, bool); 5] = [
    (
        "special magic",
        &["What are all the special", "What is the special"],
        niah::ANSWER_TOKENS,
        false,
    ),
    (
        "chain(s) of variable assignment",
        &["Question: Find all variables"],
        variables::ANSWER_TOKENS,
        false,
    ),
    (
        "most common words in the above list",
        &["Question: What are the 10"],
        common::ANSWER_TOKENS,
        false,
    ),
    (
        "most frequently appeared words",
        &["Question: Do not provide"],
        frequent::ANSWER_TOKENS,
        false,
    ),
    (
        "based on the given documents",
        &["Answer the question based on the given documents."],
        documents::ANSWER_TOKENS,
        true,
    ),
];

impl Line {
    /// Splits the input at its last question.
    fn sample(&self) -> Result<Sample, String> {
        let input = &self.input;
        if self.outputs.is_empty() {
            return Err("outputs: expected at least one reference, found none".into());
        }
        let split = FORMS.iter().find_map(|(words, questions, tokens, any)| {
            let at = questions
                .iter()
                .filter_map(|begin| input.rfind(begin))
                .max()?;
            let is_of_form = input[at..].contains(words) || input[..at].contains(words);
            is_of_form.then_some((at, *tokens, *any))
        });
        let Some((at, max_tokens, any)) = split else {
            let first: String = input.chars().take(60).collect();
            return Err(format!(
                "input: expected a question of RULER, found a text that begins with {first:?}"
            ));
        };
        // White space between text and question belongs to the question.
        let text = input[..at].trim_end();
        let references = self.outputs.clone();
        let judge = match any {
            true => Judge::AnyOf(references),
            false => Judge::AllOf(references),
        };
        Ok(Sample {
            text: text.to_owned(),
            question: format!("{}{}", &input[text.len()..], self.answer_prefix.trim_end()),
            work: Work::Answer { max_tokens, judge },
            detail: Map::new(),
        })
    }
}

/// Makes the examples, of lines in an order that depends on the seed.
///
/// # Errors
/// If the file cannot be read or a line has another form.
pub(crate) fn passages(
    options: &TaskOptions,
    tokenizer: &TextTokenizer,
) -> Result<Vec<Passage>, EvalError> {
    let task = TaskName::RulerFile;
    let path = options.data(task)?;
    let lines: Vec<Line> = datasets::rows(path)?;
    let samples = lines.iter().enumerate().map(|(index, line)| {
        let wrong = |reason| datasets::wrong(path, format!("row {index}"), reason);
        line.sample().map_err(wrong)
    });
    let samples: Vec<Sample> = samples.collect::<Result<_, _>>()?;
    choose(options, tokenizer, task, samples.len(), |index, _| {
        Ok(Some((format!("row={index}"), samples[index].clone())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(input: &str, answer_prefix: &str) -> Result<Sample, String> {
        let line = Line {
            input: input.into(),
            outputs: vec!["1".into(), "2".into()],
            answer_prefix: answer_prefix.into(),
        };
        line.sample()
    }

    #[test]
    fn inputs_are_split_at_their_questions() {
        let niah = "A special magic number is hidden. What is the special day?\nWhat is the \
                    special magic number for x mentioned in the provided text?";
        let sample = line(niah, " The special magic number is").unwrap();
        assert_eq!(
            sample.text,
            "A special magic number is hidden. What is the special day?"
        );
        assert!(
            sample
                .question
                .starts_with("\nWhat is the special magic number for x")
        );
        assert!(
            sample
                .question
                .ends_with("text? The special magic number is")
        );
        assert!(matches!(
            sample.work,
            Work::Answer {
                max_tokens: 128,
                judge: Judge::AllOf(_)
            }
        ));
        let answer = "Answer the question based on the given documents. Only give me the answer";
        let qa = format!("{answer}.\n\nDocument 1:\nA.\n\n{answer}.\n\nQuestion: Who? Answer: ");
        let sample = line(&qa, "").unwrap();
        assert!(sample.text.ends_with("Document 1:\nA."));
        assert!(sample.question.starts_with("\n\nAnswer the question"));
        assert!(matches!(
            sample.work,
            Work::Answer {
                max_tokens: 32,
                judge: Judge::AnyOf(_)
            }
        ));
    }

    #[test]
    fn other_inputs_are_refused() {
        let error = line("Once upon a time", "").err().unwrap();
        assert!(error.contains("Once upon a time"), "{error}");
    }
}
