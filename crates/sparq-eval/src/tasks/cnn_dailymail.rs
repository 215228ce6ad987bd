//! CNN/DailyMail 3.0.0, zero shot: an article is summed up.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use sparq_models::text::TextTokenizer;

use super::{LENGTHS, TaskOptions, choose, opened};
use crate::datasets::{self, Row};
use crate::score::Judge;
use crate::{EvalError, Passage, Question, TaskName, Work};

/// The most tokens of a summary.
const MAX_TOKENS: usize = 128;

/// An article, as the columns of the data set on the Hugging Face hub are named.
#[derive(Clone, Debug, Deserialize)]
struct Story {
    id: String,
    article: String,
    highlights: String,
}

impl Row for Story {
    const COLUMNS: &'static [&'static str] = &["id", "article", "highlights"];

    fn from_document(_document: Value, _path: &Path) -> Result<Vec<Self>, String> {
        Err(
            "expected an array of rows with id, article and highlights, found something else"
                .into(),
        )
    }

    fn trim(&mut self) -> bool {
        LENGTHS.contains(&self.article.chars().count())
    }
}

/// Articles in an order of the seed's.
pub(super) fn passages(
    options: &TaskOptions,
    tokenizer: &TextTokenizer,
) -> Result<Vec<Passage>, EvalError> {
    let path = options.data(TaskName::CnnDailymail)?;
    let rows: Vec<Story> = datasets::rows(path)?;
    choose(
        options,
        TaskName::CnnDailymail,
        path,
        rows.len(),
        |index, _| {
            let row = &rows[index];
            let prompt = format!("Article: {}\nSummary:", row.article);
            let reference = tokenizer.encode(&row.highlights, false)?;
            Ok(Some(Question {
                example: row.id.clone(),
                prompt: opened(tokenizer, &prompt)?,
                work: Work::Answer {
                    max_tokens: reference.len().clamp(1, MAX_TOKENS),
                    judge: Judge::Summary(row.highlights.clone()),
                },
                detail: serde_json::Map::new(),
            }))
        },
    )
}
