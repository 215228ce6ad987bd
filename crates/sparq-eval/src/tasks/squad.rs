//! SQuAD v1.1, one shot: the paragraph with the answer stands among seven others.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use serde::Deserialize;
use serde_json::Value;
use sparq_models::text::TextTokenizer;

use super::{Task, TaskOptions, choose, short_answer};
use crate::datasets::{self, Row};
use crate::sample::Sample;
use crate::{EvalError, Metric, Passage, TaskName};

/// The number of paragraphs beside the one with the answer.
const OTHERS: usize = 7;

/// A question. The fields are named as the columns of the data set on the Hugging Face Hub.
#[derive(Clone, Debug, PartialEq, Deserialize)]
struct QuestionRow {
    id: String,
    title: String,
    context: String,
    question: String,
    answers: Answers,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Answers {
    text: Vec<String>,
}

/// The document published by the authors of SQuAD (`dev-v1.1.json`).
#[derive(Deserialize)]
struct Document {
    data: Vec<Article>,
}

#[derive(Deserialize)]
struct Article {
    title: String,
    paragraphs: Vec<Paragraph>,
}

#[derive(Deserialize)]
struct Paragraph {
    context: String,
    qas: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    id: String,
    question: String,
    answers: Vec<Text>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
}

impl Row for QuestionRow {
    const COLUMNS: &'static [&'static str] =
        &["id", "title", "context", "question", "answers.text"];

    fn from_document(document: Value, _path: &Path) -> Result<Vec<Self>, String> {
        let document: Document = datasets::parse(document)?;
        let mut rows = Vec::new();
        for article in document.data {
            for paragraph in article.paragraphs {
                rows.extend(paragraph.qas.into_iter().map(|entry| {
                    QuestionRow {
                        id: entry.id,
                        title: article.title.clone(),
                        context: paragraph.context.clone(),
                        question: entry.question,
                        answers: Answers {
                            text: entry
                                .answers
                                .into_iter()
                                .map(|answer| answer.text)
                                .collect(),
                        },
                    }
                }));
            }
        }
        Ok(rows)
    }

    // A question without an answer cannot be scored.
    fn trim(&mut self) -> bool {
        !self.answers.text.is_empty()
    }
}

pub(super) const TASK: Task = Task {
    title: "SQuAD, one shot",
    about: "The share of questions whose answer begins with a correct one; more is better.",
    metric: Metric::PrefixMatch,
    passages,
};

/// Makes examples of questions in an order that depends on the seed.
fn passages(options: &TaskOptions, tokenizer: &TextTokenizer) -> Result<Vec<Passage>, EvalError> {
    let path = options.data(TaskName::Squad)?;
    let rows: Vec<QuestionRow> = datasets::rows(path)?;
    let contexts: BTreeSet<String> = rows.iter().map(paragraph).collect();
    let contexts = Vec::from_iter(contexts);
    let mut of_context: HashMap<&str, Vec<&QuestionRow>> = HashMap::new();
    for row in &rows {
        of_context.entry(&row.context).or_default().push(row);
    }
    if contexts.len() <= OTHERS || rows.len() < 2 {
        let reason = format!(
            "expected more than {OTHERS} paragraphs and 2 questions, found {} and {}",
            contexts.len(),
            rows.len()
        );
        return Err(datasets::wrong(path, "rows", reason));
    }
    let task = TaskName::Squad;
    choose(options, tokenizer, task, rows.len(), |index, rng| {
        let row = &rows[index];
        let Some(shot) = shot(row, &of_context[row.context.as_str()], &rows, rng) else {
            return Ok(None);
        };
        let sample = Sample {
            text: text(row, &contexts, rng),
            question: question(row, shot),
            work: short_answer(tokenizer, &row.answers.text)?,
            detail: serde_json::Map::new(),
        };
        Ok(Some((row.id.clone(), sample)))
    })
}

fn paragraph(row: &QuestionRow) -> String {
    format!(
        "Title: {}. Background: {}",
        row.title.replace('_', " "),
        row.context
    )
}

/// Chooses the question shown with its answer: another one on the same paragraph, or any other.
fn shot<'a>(
    row: &QuestionRow,
    near: &[&'a QuestionRow],
    all: &'a [QuestionRow],
    rng: &mut SmallRng,
) -> Option<&'a QuestionRow> {
    let is_other = |other: &&QuestionRow| other.id != row.id;
    let near: Vec<&QuestionRow> = near.iter().copied().filter(is_other).collect();
    if let Some(other) = near.choose(rng) {
        return Some(other);
    }
    // Nearly every draw succeeds.
    (0..100).filter_map(|_| all.choose(rng)).find(is_other)
}

/// Writes the paragraphs, shuffled.
fn text(row: &QuestionRow, contexts: &[String], rng: &mut SmallRng) -> String {
    let own = paragraph(row);
    // One more than needed, because the own one may be among them.
    let drawn = contexts.choose_multiple(rng, OTHERS + 1);
    let mut paragraphs: Vec<&String> = drawn.filter(|&other| *other != own).take(OTHERS).collect();
    paragraphs.push(&own);
    paragraphs.shuffle(rng);
    let paragraphs: Vec<&str> = paragraphs.into_iter().map(String::as_str).collect();
    paragraphs.join("\n")
}

/// Writes a question with its answer, and the question.
fn question(row: &QuestionRow, shot: &QuestionRow) -> String {
    let shortest = shot
        .answers
        .text
        .iter()
        .min_by_key(|answer| answer.chars().count());
    format!(
        "\nFrom what you've just read about {}, please answer the following questions.\n\
         Question: {}\nAnswer: {}\nQuestion: {}\nAnswer:",
        row.title.replace('_', " "),
        shot.question,
        shortest.map_or("", String::as_str),
        row.question,
    )
}
