//! Question answering: the documents of a question among others, from SQuAD or HotpotQA.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use serde::Deserialize;
use serde_json::{Map, Value};
use sparq_models::text::TextTokenizer;

use crate::datasets::{self, Row};
use crate::sample::{self, Sample};
use crate::score::Judge;
use crate::tasks::TaskOptions;
use crate::{EvalError, Passage, TaskName, Work};

/// The tokens of an answer.
pub(super) const ANSWER_TOKENS: usize = 32;

const INSTRUCTION: &str = "Answer the question based on the given documents. Only give me the \
                           answer and do not output any other words.";

/// A question with its documents.
#[derive(Clone, Debug, Deserialize)]
struct Entry {
    #[serde(alias = "_id")]
    id: String,
    question: String,
    /// A text (HotpotQA), or texts.
    answer: Value,
    /// Titles with sentences. All are shown.
    context: Vec<(String, Vec<String>)>,
    /// Documents of the same article, the first to be added.
    #[serde(skip)]
    near: Vec<String>,
}

impl Entry {
    fn answers(&self) -> Vec<String> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        match &self.answer {
            Value::Array(values) => values.iter().filter_map(text).collect(),
            value => text(value).into_iter().collect(),
        }
    }

    /// Returns the documents of the question.
    fn documents(&self) -> Vec<String> {
        let document = |(title, sentences): &(String, Vec<String>)| match title.is_empty() {
            true => sentences.concat(),
            false => format!("{title}\n{}", sentences.concat()),
        };
        self.context.iter().map(document).collect()
    }
}

/// The document of SQuAD 1.1 and 2.0.
#[derive(Deserialize)]
struct Squad {
    data: Vec<Article>,
}

#[derive(Deserialize)]
struct Article {
    paragraphs: Vec<Paragraph>,
}

#[derive(Deserialize)]
struct Paragraph {
    context: String,
    qas: Vec<Asked>,
}

#[derive(Deserialize)]
struct Asked {
    id: String,
    question: String,
    answers: Vec<Answer>,
}

#[derive(Deserialize)]
struct Answer {
    text: String,
}

impl Row for Entry {
    const COLUMNS: &'static [&'static str] = &[];

    fn from_document(document: Value, _path: &Path) -> Result<Vec<Self>, String> {
        let document: Squad = datasets::parse(document)?;
        let mut entries = Vec::new();
        for article in document.data {
            let texts: Vec<String> = article
                .paragraphs
                .iter()
                .map(|paragraph| paragraph.context.clone())
                .collect();
            for paragraph in article.paragraphs {
                let own = paragraph.context;
                let near = texts.iter().filter(|text| **text != own);
                let near: Vec<String> = near.cloned().collect();
                entries.extend(paragraph.qas.into_iter().map(|asked| {
                    Entry {
                        id: asked.id,
                        question: asked.question,
                        answer: asked
                            .answers
                            .into_iter()
                            .map(|answer| answer.text)
                            .collect(),
                        context: vec![(String::new(), vec![own.clone()])],
                        near: near.clone(),
                    }
                }));
            }
        }
        Ok(entries)
    }

    // A question without an answer cannot be scored.
    fn trim(&mut self) -> bool {
        !self.answers().is_empty()
    }
}

/// Makes the examples, of questions in an order that depends on the seed.
///
/// # Errors
/// If the file cannot be read, has too few questions or another form, or if a context is too long
/// or too short.
pub(crate) fn passages(
    options: &TaskOptions,
    tokenizer: &TextTokenizer,
) -> Result<Vec<Passage>, EvalError> {
    let task = TaskName::RulerQa;
    let path = options.data(task)?;
    let entries: Vec<Entry> = datasets::rows(path)?;
    let (expected, found) = (options.examples, entries.len());
    if found < expected {
        let reason = format!("expected at least {expected} (--examples), found {found}");
        return Err(datasets::wrong(path, "questions", reason));
    }
    let all: BTreeSet<String> = entries.iter().flat_map(Entry::documents).collect();
    let all = Vec::from_iter(all);
    let mut order: Vec<usize> = (0..found).collect();
    order.shuffle(&mut options.rng(task, 0, 0));
    sample::passages(task, options, tokenizer, 0, &|place, rng, size| {
        Ok(of_size(&entries[order[place.index]], &all, rng, size))
    })
}

/// Makes a sample with `size` documents beside those of the question, at most all.
fn of_size(entry: &Entry, all: &[String], rng: &mut SmallRng, size: usize) -> Sample {
    let mut documents = entry.documents();
    let mut others: Vec<String> = entry.near.choose_multiple(rng, size).cloned().collect();
    if others.len() < size {
        let known: HashSet<&String> = documents.iter().chain(&entry.near).collect();
        let far: Vec<&String> = all.iter().filter(|text| !known.contains(text)).collect();
        let missing = size - others.len();
        let drawn = far.choose_multiple(rng, missing);
        others.extend(drawn.map(|&text| text.clone()));
    }
    documents.extend(others);
    documents.shuffle(rng);
    let documents: Vec<String> = documents
        .iter()
        .enumerate()
        .map(|(index, text)| format!("Document {}:\n{text}", index + 1))
        .collect();
    Sample {
        text: format!(
            "{INSTRUCTION}\n\nThe following are given documents.\n\n{}",
            documents.join("\n\n")
        ),
        question: format!("\n\n{INSTRUCTION}\n\nQuestion: {} Answer:", entry.question),
        work: Work::Answer {
            max_tokens: ANSWER_TOKENS,
            judge: Judge::AnyOf(entry.answers()),
        },
        detail: Map::from_iter([("id".to_owned(), entry.id.clone().into())]),
    }
}
