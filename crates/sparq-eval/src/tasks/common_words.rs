//! RULER: the ten most common words of a list.

use super::Task;
use crate::Metric;
use crate::ruler::common;

pub(super) const TASK: Task = Task {
    title: "RULER: common words",
    about: "The share of the ten most common words in the answer; more is better.",
    metric: Metric::StringMatch,
    passages: common::passages,
};
