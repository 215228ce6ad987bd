//! TriviaQA, zero shot, open book: a page of Wikipedia and a question on it.

use std::path::{Path, PathBuf};

use rand::seq::IndexedRandom;
use serde::Deserialize;
use serde_json::Value;
use sparq_models::text::TextTokenizer;

use super::{LENGTHS, Task, TaskOptions, choose, short_answer};
use crate::datasets::{self, Row};
use crate::sample::Sample;
use crate::{EvalError, Metric, Passage, TaskName};

/// A question. The fields are named as the columns of the data set `rc` on the Hugging Face Hub.
#[derive(Clone, Debug, Deserialize)]
struct QuestionRow {
    question_id: String,
    question: String,
    answer: Answer,
    #[serde(default)]
    entity_pages: Pages,
}

#[derive(Clone, Debug, Deserialize)]
struct Answer {
    aliases: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Pages {
    /// The text of the pages.
    #[serde(default)]
    wiki_context: Vec<String>,
    /// The files of the pages, if the row holds no text.
    #[serde(skip)]
    files: Vec<PathBuf>,
}

/// The document published by the authors of TriviaQA (`qa/wikipedia-dev.json`). The pages are
/// separate files.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    data: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    question_id: String,
    question: String,
    answer: Aliases,
    #[serde(default)]
    entity_pages: Vec<Page>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Aliases {
    aliases: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    filename: String,
}

/// The folder of the pages, relative to that of the document.
const EVIDENCE: &str = "../evidence/wikipedia";

impl Row for QuestionRow {
    const COLUMNS: &'static [&'static str] = &[
        "question_id",
        "question",
        "answer.aliases",
        "entity_pages.wiki_context",
    ];

    fn from_document(document: Value, path: &Path) -> Result<Vec<Self>, String> {
        let document: Document = datasets::parse(document)?;
        let folder = path.parent().unwrap_or(Path::new(".")).join(EVIDENCE);
        let row = |entry: Entry| QuestionRow {
            question_id: entry.question_id,
            question: entry.question,
            answer: Answer {
                aliases: entry.answer.aliases,
            },
            entity_pages: Pages {
                wiki_context: Vec::new(),
                files: entry
                    .entity_pages
                    .iter()
                    .map(|page| folder.join(&page.filename))
                    .collect(),
            },
        };
        Ok(document.data.into_iter().map(row).collect())
    }

    fn trim(&mut self) -> bool {
        self.entity_pages.wiki_context.retain(|page| is_page(page));
        let pages = &self.entity_pages;
        let has_page = !pages.wiki_context.is_empty() || !pages.files.is_empty();
        has_page && !self.answer.aliases.is_empty()
    }
}

/// Returns whether a page is neither too short for a test nor too long for the paper's models.
fn is_page(page: &str) -> bool {
    LENGTHS.contains(&page.chars().count())
}

impl QuestionRow {
    /// Returns the pages of a suitable length.
    fn pages(&self) -> Result<Vec<String>, EvalError> {
        let mut pages = self.entity_pages.wiki_context.clone();
        for path in &self.entity_pages.files {
            let page = std::fs::read_to_string(path).map_err(EvalError::read(path))?;
            pages.extend(is_page(&page).then_some(page));
        }
        Ok(pages)
    }
}

pub(super) const TASK: Task = Task {
    title: "TriviaQA, zero shot",
    about: "The share of questions whose answer begins with a correct one; more is better.",
    metric: Metric::PrefixMatch,
    passages,
};

/// Makes examples of questions in an order that depends on the seed, each with one of its pages.
fn passages(options: &TaskOptions, tokenizer: &TextTokenizer) -> Result<Vec<Passage>, EvalError> {
    let task = TaskName::TriviaQa;
    let path = options.data(task)?;
    let rows: Vec<QuestionRow> = datasets::rows(path)?;
    choose(options, tokenizer, task, rows.len(), |index, rng| {
        let row = &rows[index];
        let Some(page) = row.pages()?.choose(rng).cloned() else {
            return Ok(None);
        };
        let sample = Sample {
            text: page,
            question: format!("\nQuestion: {}\nAnswer:", row.question),
            work: short_answer(tokenizer, &row.answer.aliases)?,
            detail: serde_json::Map::new(),
        };
        // The data may contain a question twice.
        Ok(Some((format!("{} row={index}", row.question_id), sample)))
    })
}
