//! The tasks of RULER (Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context
//! Language Models?", COLM 2024), with its prompts for base models, answer lengths and scores.
//!
//! The texts differ from RULER's in two ways. Its essays are replaced by the embedded plays or
//! `--text`, from a random place instead of the beginning. Its words come from other lists.

pub(crate) mod common;
pub(crate) mod documents;
pub(crate) mod frequent;
pub(crate) mod lines;
pub(crate) mod niah;
pub(crate) mod variables;
pub(crate) mod words;

use crate::Work;
use crate::score::Judge;

/// The sentences of texts without content.
const NOISE: &str =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

/// Returns the work of an answer that has to contain all references.
fn all_of(max_tokens: usize, references: Vec<String>) -> Work {
    Work::Answer {
        max_tokens,
        judge: Judge::AllOf(references),
    }
}
