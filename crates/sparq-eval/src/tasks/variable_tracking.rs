//! RULER: a chain of assignments, hidden in noise.

use super::Task;
use crate::Metric;
use crate::ruler::variables;

pub(super) const TASK: Task = Task {
    title: "RULER: variable tracking",
    about: "The share of the variables with a value in the answer; more is better.",
    metric: Metric::StringMatch,
    passages: variables::passages,
};
