//! LongBench v2 (Bai et al., 2024): questions with four choices on long texts, without examples.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};
use sparq_models::text::TextTokenizer;

use super::{Task, TaskOptions, choose};
use crate::datasets::{self, Row};
use crate::sample::Sample;
use crate::score::Judge;
use crate::{EvalError, Metric, Passage, TaskName, Work};

/// A question. The fields are named as in the published file, `data.json`.
#[derive(Clone, Debug, Deserialize)]
struct QuestionRow {
    #[serde(rename = "_id")]
    id: String,
    question: String,
    #[serde(rename = "choice_A")]
    a: String,
    #[serde(rename = "choice_B")]
    b: String,
    #[serde(rename = "choice_C")]
    c: String,
    #[serde(rename = "choice_D")]
    d: String,
    answer: Choice,
    context: String,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Choice {
    A,
    B,
    C,
    D,
}

impl Row for QuestionRow {
    const COLUMNS: &'static [&'static str] = &[
        "_id", "question", "choice_A", "choice_B", "choice_C", "choice_D", "answer", "context",
    ];

    fn from_document(_document: Value, _path: &Path) -> Result<Vec<Self>, String> {
        Err("expected an array of rows with question, choice_A, ..., found something else".into())
    }
}

pub(super) const TASK: Task = Task {
    title: "LongBench v2",
    about: "The share of right choices among four; more is better.",
    metric: Metric::Accuracy,
    passages,
};

/// Makes examples of questions in an order that depends on the seed. Base models answer after the
/// words that chat models are asked to begin with.
fn passages(options: &TaskOptions, tokenizer: &TextTokenizer) -> Result<Vec<Passage>, EvalError> {
    let task = TaskName::LongbenchV2;
    let rows: Vec<QuestionRow> = datasets::rows(options.data(task)?)?;
    choose(options, tokenizer, task, rows.len(), |index, _| {
        let row = &rows[index];
        let letter = match row.answer {
            Choice::A => 'A',
            Choice::B => 'B',
            Choice::C => 'C',
            Choice::D => 'D',
        };
        let sample = Sample {
            text: format!(
                "Please read the following text and answer the question below.\n\n<text>\n{}\n</text>",
                row.context.trim()
            ),
            question: format!(
                "\n\nWhat is the correct answer to this question: {}\nChoices:\n(A) {}\n(B) \
                 {}\n(C) {}\n(D) {}\n\nThe correct answer is (",
                row.question.trim(),
                row.a.trim(),
                row.b.trim(),
                row.c.trim(),
                row.d.trim()
            ),
            work: Work::Answer {
                max_tokens: 2,
                judge: Judge::Letter(letter),
            },
            detail: Map::new(),
        };
        Ok(Some((row.id.clone(), sample)))
    })
}
