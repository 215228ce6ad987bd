//! RULER: examples that RULER's scripts wrote.

use super::Task;
use crate::Metric;
use crate::ruler::lines;

pub(super) const TASK: Task = Task {
    title: "RULER: its own JSON lines",
    about: "The share of references in the answer; more is better.",
    metric: Metric::StringMatch,
    passages: lines::passages,
};
