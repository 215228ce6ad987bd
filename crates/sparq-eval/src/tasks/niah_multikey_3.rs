//! RULER's `niah_multikey_3`: the identifier of one identifier among needles of other ones.

use super::Task;
use crate::ruler::niah::{Haystack, Niah};
use crate::ruler::words::Token;
use crate::{Metric, TaskName};

const NIAH: Niah = Niah {
    haystack: Haystack::Needles,
    keys: Token::Uuids,
    values: Token::Uuids,
    ..Niah::SINGLE
};

pub(super) const TASK: Task = Task {
    title: "RULER: one of many identifiers",
    about: "The share of hidden values in the answer; more is better.",
    metric: Metric::StringMatch,
    passages: |options, tokenizer| NIAH.passages(TaskName::NiahMultikey3, options, tokenizer),
};
