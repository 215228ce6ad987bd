//! RULER's `niah_single_1`: one number in repeated sentences.

use super::Task;
use crate::ruler::niah::{Haystack, Niah};
use crate::{Metric, TaskName};

const NIAH: Niah = Niah {
    haystack: Haystack::Noise,
    ..Niah::SINGLE
};

pub(super) const TASK: Task = Task {
    title: "RULER: one needle in noise",
    about: "The share of hidden values in the answer; more is better.",
    metric: Metric::StringMatch,
    passages: |options, tokenizer| NIAH.passages(TaskName::NiahSingle1, options, tokenizer),
};
