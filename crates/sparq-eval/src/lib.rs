//! Evaluation of attention methods: tasks with scores, records of results, and their statistics.
//!
//! The data flows one way:
//!
//! 1. [`tasks`] make [`Passage`]s, each a text and questions about it.
//! 2. An [`Evaluation`] reads each text once into a cache, densely. Every [`BudgetedMethod`] (a
//!    method at a budget) reads the questions from there and answers them; see [`Protocol`].
//! 3. Each answer becomes a [`Record`], a line of a [`ResultsFile`].
//! 4. [`summarize`] computes means with standard errors, and differences to dense attention over
//!    pairs of the same example. [`report`] turns them into tables, figures and a page.
#![deny(missing_docs)]

mod babi;
mod continuation;
mod datasets;
mod error;
mod filler;
pub mod haystack;
mod lines;
mod method;
mod passage;
pub mod prose;
mod protocol;
mod record;
pub mod report;
mod results;
mod ruler;
mod run;
mod sample;
pub mod score;
mod statistics;
pub mod steps;
mod summary;
pub mod tasks;

pub use error::EvalError;
pub use method::BudgetedMethod;
pub use passage::{Passage, Question, Work};
pub use prose::Prose;
pub use protocol::Protocol;
pub use record::{Better, FORMAT, Kind, Metric, Record};
pub use results::{ResultsFile, Setup, read_records};
pub use run::{Ending, Evaluation, Job};
pub use statistics::Estimate;
pub use summary::{REFERENCE, SummaryRow, summarize};
pub use tasks::TaskName;
