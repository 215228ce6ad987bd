//! What attention methods keep of a model's abilities: tasks with scores, the records of finished examples, and their statistics.
//!
//! The data flows one way: [`tasks`] make [`Passage`]s (a text and questions about it), an [`Evaluation`] reads each text once into a cache and lets every
//! [`Contender`] (a method at a budget) answer from there, each answer becomes a [`Record`], a line of a [`ResultsFile`] that is complete in itself, and [`summarize`]
//! makes rows of a table of them, with standard errors and with differences to dense attention by pairs of the same example.
#![deny(missing_docs)]

mod contender;
mod datasets;
mod error;
pub mod haystack;
mod lines;
mod passage;
pub mod prose;
mod record;
pub mod report;
mod results;
mod run;
pub mod score;
mod statistics;
pub mod steps;
mod summary;
pub mod tasks;

pub use contender::Contender;
pub use error::EvalError;
pub use passage::{Passage, Question, Work};
pub use prose::Prose;
pub use record::{Better, FORMAT, Kind, Metric, Record, TaskName};
pub use results::{ResultsFile, Setup, read_records};
pub use run::{Ending, Evaluation, Job};
pub use statistics::Estimate;
pub use summary::{REFERENCE, SummaryRow, summarize};
