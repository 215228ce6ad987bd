//! RULER's `niah_single_3`: one identifier in prose.

use super::Task;
use crate::ruler::niah::Niah;
use crate::ruler::words::Token;
use crate::{Metric, TaskName};

const NIAH: Niah = Niah {
    values: Token::Uuids,
    ..Niah::SINGLE
};

pub(super) const TASK: Task = Task {
    title: "RULER: one identifier in prose",
    about: "The share of hidden values in the answer; more is better.",
    metric: Metric::StringMatch,
    passages: |options, tokenizer| NIAH.passages(TaskName::NiahSingle3, options, tokenizer),
};
