//! BABILong's qa3: the place of an object before another.

use super::Task;
use crate::babi::Kind;
use crate::{Metric, TaskName};

pub(super) const TASK: Task = Task {
    title: "BABILong: three facts",
    about: "The share of questions answered with the right word and no other; more is better.",
    metric: Metric::Accuracy,
    passages: |options, tokenizer| {
        Kind::ThreeFacts.passages(TaskName::BabilongQa3, options, tokenizer)
    },
};
