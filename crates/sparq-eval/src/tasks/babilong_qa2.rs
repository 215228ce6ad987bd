//! BABILong's qa2: the place of an object that persons carry.

use super::Task;
use crate::babi::Kind;
use crate::{Metric, TaskName};

pub(super) const TASK: Task = Task {
    title: "BABILong: two facts",
    about: "The share of questions answered with the right word and no other; more is better.",
    metric: Metric::Accuracy,
    passages: |options, tokenizer| {
        Kind::TwoFacts.passages(TaskName::BabilongQa2, options, tokenizer)
    },
};
