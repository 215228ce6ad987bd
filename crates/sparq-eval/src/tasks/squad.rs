//! SQuAD v1.1, one shot: the paragraph that has the answer is among seven others.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use serde::Deserialize;
use serde_json::Value;
use sparq_models::text::TextTokenizer;

use super::{TaskOptions, choose};
use crate::datasets::{self, Row};
use crate::{EvalError, Passage, TaskName};

/// Other paragraphs beside the one that has the answer.
const OTHERS: usize = 7;

/// The most tokens of an answer.
const MAX_TOKENS: usize = 30;

/// Tokens of an answer beyond its longest right one.
const SPARE_TOKENS: usize = 5;

/// A question, as the columns of the data set on the Hugging Face hub are named.
#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Asked {
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

/// The document that the authors of SQuAD publish (`dev-v1.1.json`).
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

impl Row for Asked {
    const COLUMNS: &'static [&'static str] =
        &["id", "title", "context", "question", "answers.text"];

    fn from_document(document: Value, _path: &Path) -> Result<Vec<Self>, String> {
        let document: Document =
            serde_json::from_value(document).map_err(|error| error.to_string())?;
        let mut rows = Vec::new();
        for article in document.data {
            for paragraph in article.paragraphs {
                rows.extend(paragraph.qas.into_iter().map(|entry| {
                    Asked {
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

    /// A question without an answer can't be scored.
    fn trim(&mut self) -> bool {
        !self.answers.text.is_empty()
    }
}

/// Questions in an order of the seed's.
pub(super) fn passages(
    options: &TaskOptions,
    tokenizer: &TextTokenizer,
) -> Result<Vec<Passage>, EvalError> {
    let path = options.data(TaskName::Squad)?;
    let rows: Vec<Asked> = datasets::rows(path)?;
    let contexts: Vec<String> = rows
        .iter()
        .map(paragraph)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let mut of_context: HashMap<&str, Vec<&Asked>> = HashMap::new();
    for row in &rows {
        of_context.entry(&row.context).or_default().push(row);
    }
    if contexts.len() <= OTHERS || rows.len() < 2 {
        return Err(EvalError::Data {
            path: path.to_owned(),
            place: "rows".into(),
            reason: format!(
                "expected more than {OTHERS} paragraphs and 2 questions, found {} and {}",
                contexts.len(),
                rows.len()
            ),
        });
    }
    choose(options, TaskName::Squad, path, rows.len(), |index, rng| {
        let row = &rows[index];
        let Some(shot) = shot(row, &of_context[row.context.as_str()], &rows, rng) else {
            return Ok(None);
        };
        let prompt = prompt(row, shot, &contexts, rng);
        Ok(Some(super::answered(
            tokenizer,
            row.id.clone(),
            &prompt,
            &row.answers.text,
            MAX_TOKENS,
            SPARE_TOKENS,
        )?))
    })
}

fn paragraph(row: &Asked) -> String {
    format!(
        "Title: {}. Background: {}",
        row.title.replace('_', " "),
        row.context
    )
}

/// The question that is shown with its answer: another one about the same paragraph, or else any other.
fn shot<'a>(
    row: &Asked,
    near: &[&'a Asked],
    all: &'a [Asked],
    rng: &mut SmallRng,
) -> Option<&'a Asked> {
    let near: Vec<&Asked> = near
        .iter()
        .copied()
        .filter(|other| other.id != row.id)
        .collect();
    if let Some(other) = near.choose(rng) {
        return Some(other);
    }
    // Nearly every draw is another one.
    (0..100)
        .filter_map(|_| all.choose(rng))
        .find(|other| other.id != row.id)
}

/// The paragraphs, shuffled, an answered question and the question.
fn prompt(row: &Asked, shot: &Asked, contexts: &[String], rng: &mut SmallRng) -> String {
    let own = paragraph(row);
    // One more than needed, in case the own one is among them.
    let drawn = contexts.choose_multiple(rng, OTHERS + 1);
    let mut paragraphs: Vec<&String> = drawn.filter(|&other| *other != own).take(OTHERS).collect();
    paragraphs.push(&own);
    paragraphs.shuffle(rng);
    let paragraphs: Vec<&str> = paragraphs.into_iter().map(String::as_str).collect();
    let shortest = shot
        .answers
        .text
        .iter()
        .min_by_key(|answer| answer.chars().count());
    format!(
        "{}\nFrom what you've just read about {}, please answer the following questions.\nQuestion: {}\nAnswer: {}\nQuestion: {}\nAnswer:",
        paragraphs.join("\n"),
        row.title.replace('_', " "),
        shot.question,
        shortest.map_or("", String::as_str),
        row.question,
    )
}
