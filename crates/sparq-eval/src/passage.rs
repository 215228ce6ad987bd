//! [`Passage`]: what a task asks of a model.

use serde_json::{Map, Value};

use crate::score::Judge;

/// A text and the questions about it. The text is read once, for all questions and methods.
#[derive(Clone, Debug, PartialEq)]
pub struct Passage {
    /// Positions that text, question and answer were made to fill; `None` where the data give the length.
    pub context: Option<usize>,
    /// The tokens before every question, which may be none.
    pub text: Vec<u32>,
    /// What is asked.
    pub questions: Vec<Question>,
}

/// An example: a question about a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// The example within its task.
    pub example: String,
    /// The tokens behind the text, at least one. The last is the first that is read with the method.
    pub prompt: Vec<u32>,
    /// What follows.
    pub work: Work,
    /// What is known of the example beforehand and goes into the record.
    pub detail: Map<String, Value>,
}

/// What is done behind a prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// The most probable tokens are taken, and their text is judged.
    Answer {
        /// The most tokens that are taken.
        max_tokens: usize,
        /// What it is held to.
        judge: Judge,
    },
    /// Given tokens are read, and it is noted how probable they were.
    Predict {
        /// The tokens.
        tokens: Vec<u32>,
        /// How many characters they stand for.
        characters: usize,
    },
}

impl Work {
    /// The most decode steps that it takes.
    pub fn max_steps(&self) -> usize {
        match self {
            Work::Answer { max_tokens, .. } => *max_tokens,
            Work::Predict { tokens, .. } => tokens.len(),
        }
    }
}

impl Passage {
    /// The most positions that a question takes, its answer included. The last token of an answer is not read.
    pub fn positions(&self, question: &Question) -> usize {
        self.text.len() + question.prompt.len() + question.work.max_steps().saturating_sub(1)
    }

    /// CRC-32 of the tokens of a question, as [`Record::prompt_crc32`](crate::Record::prompt_crc32) has it.
    pub fn crc32(&self, question: &Question) -> u32 {
        let reference: &[u32] = match &question.work {
            Work::Answer { .. } => &[],
            Work::Predict { tokens, .. } => tokens,
        };
        let mut hasher = crc32fast::Hasher::new();
        for token in self.text.iter().chain(&question.prompt).chain(reference) {
            hasher.update(&token.to_le_bytes());
        }
        hasher.finalize()
    }
}
