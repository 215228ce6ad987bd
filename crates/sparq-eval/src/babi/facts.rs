//! [`Facts`]: a small story and a question about it.

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

/// Sentences with a question.
#[derive(Debug)]
pub(super) struct Facts {
    /// The sentences, in order.
    pub sentences: Vec<String>,
    /// The question.
    pub question: String,
    /// The answer, one of the labels.
    pub answer: String,
    /// All possible answers.
    pub labels: &'static [&'static str],
}

/// The words before the text.
pub(super) struct Prompt {
    /// The task.
    pub instruction: &'static str,
    /// Two examples.
    pub examples: &'static str,
    /// The form of the answer.
    pub format: &'static str,
}

/// The rooms, one label each.
pub(super) const ROOMS: &[&str] = &[
    "bathroom", "bedroom", "garden", "hallway", "kitchen", "office",
];

/// Draws one of a list that is not empty.
pub(super) fn one(rng: &mut SmallRng, list: &[&'static str]) -> &'static str {
    list.choose(rng).expect("the list is not empty")
}
