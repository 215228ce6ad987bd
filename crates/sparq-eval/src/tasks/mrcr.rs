//! OpenAI's MRCR: one of several alike texts in a long conversation, to be repeated.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};
use sparq_models::text::TextTokenizer;

use super::{Task, TaskOptions, choose};
use crate::datasets::{self, Row, wrong};
use crate::sample::Sample;
use crate::score::Judge;
use crate::{EvalError, Metric, Passage, TaskName, Work};

/// The tokens of an answer beyond the reference.
const SPARE_TOKENS: usize = 16;

/// A conversation. The fields are named as the columns of the published parquet files.
#[derive(Clone, Debug, Deserialize)]
struct Conversation {
    /// The messages as JSON. The last one is the question.
    prompt: String,
    answer: String,
    random_string_to_prepend: String,
}

#[derive(Debug, Deserialize)]
struct Message {
    role: Role,
    content: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    System,
    User,
    Assistant,
}

impl Row for Conversation {
    const COLUMNS: &'static [&'static str] = &["prompt", "answer", "random_string_to_prepend"];

    fn from_document(_document: Value, _path: &Path) -> Result<Vec<Self>, String> {
        Err("expected an array of rows with prompt and answer, found something else".into())
    }
}

pub(super) const TASK: Task = Task {
    title: "MRCR",
    about: "The similarity of the repeated text to the reference; more is better.",
    metric: Metric::Similarity,
    passages,
};

/// Writes messages as a text, each after the name of its role.
fn written(messages: &[Message]) -> String {
    let written = messages.iter().map(|message| {
        let role = match message.role {
            Role::System => "System",
            Role::User => "User",
            Role::Assistant => "Assistant",
        };
        format!("{role}: {}", message.content)
    });
    written.collect::<Vec<_>>().join("\n\n")
}

/// Makes examples of conversations in an order that depends on the seed.
fn passages(options: &TaskOptions, tokenizer: &TextTokenizer) -> Result<Vec<Passage>, EvalError> {
    let task = TaskName::Mrcr;
    let path = options.data(task)?;
    let rows: Vec<Conversation> = datasets::rows(path)?;
    choose(options, tokenizer, task, rows.len(), |index, _| {
        let row = &rows[index];
        let bad = |reason: String| wrong(path, format!("row {index}"), format!("prompt: {reason}"));
        let messages = serde_json::from_str(&row.prompt).map_err(|error| bad(error.to_string()))?;
        let messages: Vec<Message> = datasets::parse(messages).map_err(bad)?;
        let Some((last, before)) = messages.split_last() else {
            return Err(bad("expected at least one message, found none".into()));
        };
        let prefix = &row.random_string_to_prepend;
        let reference = row
            .answer
            .strip_prefix(prefix.as_str())
            .unwrap_or(&row.answer);
        let sample = Sample {
            text: written(before),
            question: format!("\n\nUser: {}\n\nAssistant:", last.content),
            work: Work::Answer {
                max_tokens: tokenizer.encode(&row.answer, false)?.len() + SPARE_TOKENS,
                judge: Judge::Similar {
                    prefix: prefix.clone(),
                    reference: reference.to_owned(),
                },
            },
            detail: Map::new(),
        };
        Ok(Some((format!("row={index}"), sample)))
    })
}
