//! RULER's `niah_multikey_1`: the number of one of four keys in prose.

use super::Task;
use crate::ruler::niah::Niah;
use crate::{Metric, TaskName};

const NIAH: Niah = Niah {
    key_count: 4,
    ..Niah::SINGLE
};

pub(super) const TASK: Task = Task {
    title: "RULER: one of four keys in prose",
    about: "The share of hidden values in the answer; more is better.",
    metric: Metric::StringMatch,
    passages: |options, tokenizer| NIAH.passages(TaskName::NiahMultikey1, options, tokenizer),
};
