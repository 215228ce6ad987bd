//! [`Passage`]: a text and the questions of a task about it.

use serde_json::{Map, Value};

use crate::score::Judge;

/// A text and the questions about it. The text is read once for all questions and methods.
#[derive(Clone, Debug, PartialEq)]
pub struct Passage {
    /// The positions that text, question and answer were made to fill. `None` if the data determine
    /// the length.
    pub context: Option<usize>,
    /// The tokens before every question. May be empty.
    pub text: Vec<u32>,
    /// The questions.
    pub questions: Vec<Question>,
}

/// An example: a question about a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// The name of the example within its task.
    pub example: String,
    /// The tokens after the text, at least one. The last one is the first that the method decodes.
    pub prompt: Vec<u32>,
    /// The work after the prompt.
    pub work: Work,
    /// Details of the example for the record.
    pub detail: Map<String, Value>,
}

/// The work after a prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// Generate the most probable tokens and score their text.
    Answer {
        /// The most tokens to generate.
        max_tokens: usize,
        /// The scoring of the text.
        judge: Judge,
    },
    /// Read given tokens and sum the negative log likelihood of each.
    Predict {
        /// The tokens.
        tokens: Vec<u32>,
        /// The number of characters they decode to.
        characters: usize,
    },
    /// Generate the most probable tokens of dense attention, and compare each with the method's.
    Continue {
        /// The most tokens to generate.
        tokens: usize,
    },
}

impl Work {
    /// Returns the most decode steps the work takes.
    pub fn max_steps(&self) -> usize {
        match self {
            Work::Answer { max_tokens, .. } => *max_tokens,
            Work::Predict { tokens, .. } => tokens.len(),
            Work::Continue { tokens } => *tokens,
        }
    }
}

impl Passage {
    /// Returns the most positions a question takes with its answer. The last token of an answer is
    /// not read.
    pub fn positions(&self, question: &Question) -> usize {
        self.text.len() + question.prompt.len() + question.work.max_steps().saturating_sub(1)
    }

    /// Returns the positions that a method's budget is counted for.
    pub fn budget_positions(&self, question: &Question) -> usize {
        self.context.unwrap_or_else(|| self.positions(question))
    }

    /// Returns the CRC-32 of the tokens of a question; see
    /// [`Record::prompt_crc32`](crate::Record::prompt_crc32).
    pub fn crc32(&self, question: &Question) -> u32 {
        let reference: &[u32] = match &question.work {
            Work::Answer { .. } | Work::Continue { .. } => &[],
            Work::Predict { tokens, .. } => tokens,
        };
        let mut hasher = crc32fast::Hasher::new();
        for token in self.text.iter().chain(&question.prompt).chain(reference) {
            hasher.update(&token.to_le_bytes());
        }
        hasher.finalize()
    }
}
