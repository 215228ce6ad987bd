//! RULER's `niah_multiquery`: the numbers of four keys in prose.

use super::Task;
use crate::ruler::niah::Niah;
use crate::{Metric, TaskName};

const NIAH: Niah = Niah {
    key_count: 4,
    asked: 4,
    ..Niah::SINGLE
};

pub(super) const TASK: Task = Task {
    title: "RULER: four keys at once",
    about: "The share of hidden values in the answer; more is better.",
    metric: Metric::StringMatch,
    passages: |options, tokenizer| NIAH.passages(TaskName::NiahMultiquery, options, tokenizer),
};
