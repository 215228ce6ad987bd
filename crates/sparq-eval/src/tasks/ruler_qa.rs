//! RULER: a question on documents of SQuAD or HotpotQA, among others.

use super::Task;
use crate::Metric;
use crate::ruler::documents;

pub(super) const TASK: Task = Task {
    title: "RULER: question answering",
    about: "The share of questions with a correct answer in the output; more is better.",
    metric: Metric::StringMatch,
    passages: documents::passages,
};
