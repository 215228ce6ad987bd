//! RULER's `niah_multivalue`: four numbers of one key in prose.

use super::Task;
use crate::ruler::niah::Niah;
use crate::{Metric, TaskName};

const NIAH: Niah = Niah {
    value_count: 4,
    ..Niah::SINGLE
};

pub(super) const TASK: Task = Task {
    title: "RULER: four values of one key",
    about: "The share of hidden values in the answer; more is better.",
    metric: Metric::StringMatch,
    passages: |options, tokenizer| NIAH.passages(TaskName::NiahMultivalue, options, tokenizer),
};
