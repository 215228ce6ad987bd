//! RULER's `niah_multikey_2`: the number of one key among needles of other keys.

use super::Task;
use crate::ruler::niah::{Haystack, Niah};
use crate::{Metric, TaskName};

const NIAH: Niah = Niah {
    haystack: Haystack::Needles,
    ..Niah::SINGLE
};

pub(super) const TASK: Task = Task {
    title: "RULER: one of many keys",
    about: "The share of hidden values in the answer; more is better.",
    metric: Metric::StringMatch,
    passages: |options, tokenizer| NIAH.passages(TaskName::NiahMultikey2, options, tokenizer),
};
