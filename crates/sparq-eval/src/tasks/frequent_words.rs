//! RULER: the three most frequent words of a coded text.

use super::Task;
use crate::Metric;
use crate::ruler::frequent;

pub(super) const TASK: Task = Task {
    title: "RULER: frequent words",
    about: "The share of the three most frequent words in the answer; more is better.",
    metric: Metric::StringMatch,
    passages: frequent::passages,
};
