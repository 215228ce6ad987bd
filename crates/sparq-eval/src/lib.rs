//! What attention methods keep of a model's abilities: tasks with scores, the records of finished examples, and their statistics.
//!
//! A [`Record`] is a line of a file of results, complete in itself.
#![deny(missing_docs)]

mod record;
pub mod report;

pub use record::{Better, FORMAT, Kind, Metric, Record, TaskName};
