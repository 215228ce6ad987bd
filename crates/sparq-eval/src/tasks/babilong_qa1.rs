//! BABILong's qa1: the place of a person.

use super::Task;
use crate::babi::Kind;
use crate::{Metric, TaskName};

pub(super) const TASK: Task = Task {
    title: "BABILong: one fact",
    about: "The share of questions answered with the right word and no other; more is better.",
    metric: Metric::Accuracy,
    passages: |options, tokenizer| {
        Kind::OneFact.passages(TaskName::BabilongQa1, options, tokenizer)
    },
};
