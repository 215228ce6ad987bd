//! TriviaQA, zero shot, open book: a page of Wikipedia and a question.

use std::path::{Path, PathBuf};

use rand::seq::IndexedRandom;
use serde::Deserialize;
use serde_json::Value;
use sparq_models::text::TextTokenizer;

use super::{LENGTHS, TaskOptions, choose};
use crate::datasets::{self, Row};
use crate::{EvalError, Passage, TaskName};

/// The most tokens of an answer.
const MAX_TOKENS: usize = 30;

/// Tokens of an answer beyond its longest right one.
const SPARE_TOKENS: usize = 5;

/// A question, as the columns of the data set on the Hugging Face hub are named (`rc`).
#[derive(Clone, Debug, Deserialize)]
struct Asked {
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
    /// The pages' text.
    #[serde(default)]
    wiki_context: Vec<String>,
    /// The pages' files, where the text is not at hand.
    #[serde(skip)]
    files: Vec<PathBuf>,
}

/// The document that the authors of TriviaQA publish (`qa/wikipedia-dev.json`), with the pages in files beside it.
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

/// Where the pages are, from the folder of the document.
const EVIDENCE: &str = "../evidence/wikipedia";

impl Row for Asked {
    const COLUMNS: &'static [&'static str] = &[
        "question_id",
        "question",
        "answer.aliases",
        "entity_pages.wiki_context",
    ];

    fn from_document(document: Value, path: &Path) -> Result<Vec<Self>, String> {
        let document: Document =
            serde_json::from_value(document).map_err(|error| error.to_string())?;
        let folder = path.parent().unwrap_or(Path::new(".")).join(EVIDENCE);
        let row = |entry: Entry| Asked {
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
        !self.answer.aliases.is_empty()
            && !(pages.wiki_context.is_empty() && pages.files.is_empty())
    }
}

/// Whether a page is neither too short to be a test nor too long for the models of the paper.
fn is_page(page: &str) -> bool {
    LENGTHS.contains(&page.chars().count())
}

impl Asked {
    /// The pages of a fitting length.
    fn pages(&self) -> Result<Vec<String>, EvalError> {
        let mut pages = self.entity_pages.wiki_context.clone();
        for path in &self.entity_pages.files {
            let page = std::fs::read_to_string(path).map_err(|source| EvalError::Read {
                path: path.clone(),
                source,
            })?;
            pages.extend(is_page(&page).then_some(page));
        }
        Ok(pages)
    }
}

/// Questions in an order of the seed's, each with one of its pages.
pub(super) fn passages(
    options: &TaskOptions,
    tokenizer: &TextTokenizer,
) -> Result<Vec<Passage>, EvalError> {
    let path = options.data(TaskName::TriviaQa)?;
    let rows: Vec<Asked> = datasets::rows(path)?;
    choose(
        options,
        TaskName::TriviaQa,
        path,
        rows.len(),
        |index, rng| {
            let row = &rows[index];
            let Some(page) = row.pages()?.choose(rng).cloned() else {
                return Ok(None);
            };
            let prompt = format!("{page}\nQuestion: {}\nAnswer:", row.question);
            // The same question may stand in the data twice.
            let example = format!("{} row={index}", row.question_id);
            Ok(Some(super::answered(
                tokenizer,
                example,
                &prompt,
                &row.answer.aliases,
                MAX_TOKENS,
                SPARE_TOKENS,
            )?))
        },
    )
}
