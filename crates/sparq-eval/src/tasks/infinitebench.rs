//! InfiniteBench (Zhang et al., 2024): questions on texts of 100k tokens and more, with its prompts
//! for base models.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};
use sparq_models::text::TextTokenizer;

use super::{Task, TaskOptions, choose};
use crate::datasets::{self, Row, wrong};
use crate::sample::Sample;
use crate::score::Judge;
use crate::{EvalError, Metric, Passage, TaskName, Work};

/// A question. The fields are named as in the published files.
#[derive(Clone, Debug, Deserialize)]
struct QuestionRow {
    id: u64,
    context: String,
    input: String,
    answer: Value,
    #[serde(default)]
    options: Vec<String>,
}

impl Row for QuestionRow {
    const COLUMNS: &'static [&'static str] = &[];

    fn from_document(_document: Value, _path: &Path) -> Result<Vec<Self>, String> {
        Err("expected rows with id, context, input and answer, found something else".into())
    }
}

pub(super) const TASK: Task = Task {
    title: "InfiniteBench",
    about: "The data set's own score of an answer; more is better.",
    metric: Metric::Accuracy,
    passages,
};

/// The part of the data set that a file holds. Two parts are left out: `math_calc`, whose answers
/// take 30000 tokens, and `longbook_qa_chn`, whose words need a segmentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Passkey,
    NumberString,
    KvRetrieval,
    LongbookQaEng,
    LongbookChoiceEng,
    LongbookSumEng,
    LongdialogueQaEng,
    MathFind,
    CodeDebug,
}

const PARTS: [(&str, Part); 9] = [
    ("passkey", Part::Passkey),
    ("number_string", Part::NumberString),
    ("kv_retrieval", Part::KvRetrieval),
    ("longbook_qa_eng", Part::LongbookQaEng),
    ("longbook_choice_eng", Part::LongbookChoiceEng),
    ("longbook_sum_eng", Part::LongbookSumEng),
    ("longdialogue_qa_eng", Part::LongdialogueQaEng),
    ("math_find", Part::MathFind),
    ("code_debug", Part::CodeDebug),
];

impl Part {
    /// Returns the part that the name of a file begins with.
    fn of(path: &Path) -> Result<Self, EvalError> {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let found = PARTS.iter().find(|(part, _)| name.starts_with(part));
        found.map(|(_, part)| *part).ok_or_else(|| {
            let names = PARTS.map(|(part, _)| part).join(", ");
            let reason = format!("expected one that begins with {names}, found {name}");
            wrong(path, "file name", reason)
        })
    }

    /// Returns the tokens of an answer.
    fn max_tokens(self) -> usize {
        match self {
            Self::Passkey => 6,
            Self::NumberString => 12,
            Self::KvRetrieval => 50,
            Self::LongbookSumEng => 1200,
            Self::LongbookQaEng | Self::LongbookChoiceEng | Self::LongdialogueQaEng => 40,
            Self::MathFind => 3,
            Self::CodeDebug => 5,
        }
    }

    /// Returns the words before the text, and those after it.
    fn prompt(self, row: &QuestionRow) -> Result<(String, String), String> {
        let input = &row.input;
        let choices = || -> Result<String, String> {
            let options = row.options.iter().zip('A'..='D');
            let lines: Vec<String> = options
                .map(|(text, name)| format!("{name}. {text}"))
                .collect();
            match lines.len() {
                4 => Ok(lines.join("\n")),
                found => Err(format!("options: expected 4, found {found}")),
            }
        };
        let (before, after) = match self {
            Self::Passkey => (IMPORTANT, format!("{input}\n\nThe pass key is")),
            Self::NumberString => (IMPORTANT, format!("{input}\n\nThe sequence of digits is")),
            Self::KvRetrieval => (
                "Extract the value corresponding to the specified key in the JSON object below.",
                input.clone(),
            ),
            Self::LongbookQaEng => (
                "Read the book and answer the question. Be very concise in your answer.",
                format!("Question: {input}\nAnswer:"),
            ),
            Self::LongbookChoiceEng => (
                "Read the book and answer the question.",
                format!(
                    "Question: {input}\n{}\n\nThe letter of the correct answer is",
                    choices()?
                ),
            ),
            Self::LongbookSumEng => ("Summarize the book below.", "Summary:".into()),
            Self::LongdialogueQaEng => (
                "Below is a dialogue script where one random occurrence of a character name is \
                 replaced with \"$$MASK$$\", and you should try to guess who that character is.",
                "The name that has been replaced with $$MASK$$ is likely".into(),
            ),
            Self::MathFind => {
                let target = input
                    .split_once(" of")
                    .map_or(input.as_str(), |(target, _)| target);
                let target = target.to_lowercase();
                let before = format!("What is {target} in the following list?");
                return Ok((before, format!("\n\n{input}")));
            }
            Self::CodeDebug => (
                "Following is a Python code where exactly one of the functions/methods has a \
                 deliberate error that makes it crash.",
                format!("Options:\n{}\n\nThe correct option is:", choices()?),
            ),
        };
        Ok((before.into(), format!("\n\n{after}")))
    }

    fn judge(self, row: &QuestionRow) -> Result<Judge, String> {
        let texts = texts(&row.answer);
        let one = || {
            let found = || format!("answer: expected a text, found {}", row.answer);
            texts.first().cloned().ok_or_else(found)
        };
        let number = |text: String| {
            let wrong = |_| format!("answer: expected a number, found {text:?}");
            text.parse().map(Judge::Number).map_err(wrong)
        };
        match self {
            Self::Passkey | Self::NumberString | Self::MathFind => number(one()?),
            Self::KvRetrieval | Self::LongdialogueQaEng => Ok(Judge::Words(vec![one()?])),
            Self::LongbookQaEng => one().map(|_| Judge::Tokens(texts)),
            Self::LongbookSumEng => one().map(Judge::Summary),
            Self::LongbookChoiceEng | Self::CodeDebug => {
                let answer = one()?;
                let mut options = row.options.iter().zip('A'..='D');
                let letter = options.find(|(option, _)| **option == answer);
                let missing = || format!("answer: expected one of the options, found {answer:?}");
                letter
                    .map(|(_, letter)| Judge::Letter(letter))
                    .ok_or_else(missing)
            }
        }
    }
}

const IMPORTANT: &str = "There is an important info hidden inside a lot of irrelevant text. Find \
                         it and memorize it. I will quiz you about the important information.";

/// Returns the texts and numbers of an answer: one, or a list.
fn texts(answer: &Value) -> Vec<String> {
    match answer {
        Value::Array(values) => values.iter().flat_map(texts).collect(),
        Value::String(text) => vec![text.clone()],
        Value::Number(number) => vec![number.to_string()],
        _ => Vec::new(),
    }
}

/// Makes examples of questions in an order that depends on the seed.
fn passages(options: &TaskOptions, tokenizer: &TextTokenizer) -> Result<Vec<Passage>, EvalError> {
    let task = TaskName::Infinitebench;
    let path = options.data(task)?;
    let part = Part::of(path)?;
    let rows: Vec<QuestionRow> = datasets::rows(path)?;
    choose(options, tokenizer, task, rows.len(), |index, _| {
        let row = &rows[index];
        let bad = |reason| wrong(path, format!("row {index}"), reason);
        let (before, question) = part.prompt(row).map_err(bad)?;
        let sample = Sample {
            text: format!("{before}\n\n{}", row.context),
            question,
            work: Work::Answer {
                max_tokens: part.max_tokens(),
                judge: part.judge(row).map_err(bad)?,
            },
            detail: Map::new(),
        };
        Ok(Some((format!("id={}", row.id), sample)))
    })
}
