//! BABILong's qa5: a giver, a receiver or a gift.

use super::Task;
use crate::babi::Kind;
use crate::{Metric, TaskName};

pub(super) const TASK: Task = Task {
    title: "BABILong: three roles",
    about: "The share of questions answered with the right word and no other; more is better.",
    metric: Metric::Accuracy,
    passages: |options, tokenizer| {
        Kind::ThreeRoles.passages(TaskName::BabilongQa5, options, tokenizer)
    },
};
