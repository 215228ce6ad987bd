//! CNN/DailyMail 3.0.0, zero shot: an article to summarise.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use sparq_models::text::TextTokenizer;

use super::{LENGTHS, Task, TaskOptions, choose};
use crate::datasets::{self, Row};
use crate::sample::Sample;
use crate::score::Judge;
use crate::{EvalError, Metric, Passage, TaskName, Work};

/// The most tokens of a summary.
const MAX_TOKENS: usize = 128;

/// An article. The fields are named as the columns of the data set on the Hugging Face Hub.
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

pub(super) const TASK: Task = Task {
    title: "CNN/DailyMail summaries",
    about: "ROUGE-L F of a summary, from 0 to 1; more is better.",
    metric: Metric::RougeL,
    passages,
};

/// Makes examples of articles in an order that depends on the seed.
fn passages(options: &TaskOptions, tokenizer: &TextTokenizer) -> Result<Vec<Passage>, EvalError> {
    let task = TaskName::CnnDailymail;
    let path = options.data(task)?;
    let rows: Vec<Story> = datasets::rows(path)?;
    choose(options, tokenizer, task, rows.len(), |index, _| {
        let row = &rows[index];
        let reference = tokenizer.encode(&row.highlights, false)?;
        let sample = Sample {
            text: format!("Article: {}", row.article),
            question: "\nSummary:".into(),
            work: Work::Answer {
                max_tokens: reference.len().clamp(1, MAX_TOKENS),
                judge: Judge::Summary(row.highlights.clone()),
            },
            detail: serde_json::Map::new(),
        };
        Ok(Some((row.id.clone(), sample)))
    })
}
