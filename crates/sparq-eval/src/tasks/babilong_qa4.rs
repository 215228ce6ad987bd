//! BABILong's qa4: a room in a direction from another.

use super::Task;
use crate::babi::Kind;
use crate::{Metric, TaskName};

pub(super) const TASK: Task = Task {
    title: "BABILong: two relations",
    about: "The share of questions answered with the right word and no other; more is better.",
    metric: Metric::Accuracy,
    passages: |options, tokenizer| {
        Kind::TwoRooms.passages(TaskName::BabilongQa4, options, tokenizer)
    },
};
