//! RULER's `niah_single_2`: one number in prose.

use super::Task;
use crate::ruler::niah::Niah;
use crate::{Metric, TaskName};

const NIAH: Niah = Niah::SINGLE;

pub(super) const TASK: Task = Task {
    title: "RULER: one needle in prose",
    about: "The share of hidden values in the answer; more is better.",
    metric: Metric::StringMatch,
    passages: |options, tokenizer| NIAH.passages(TaskName::NiahSingle2, options, tokenizer),
};
