//! Tables, for a terminal and in Markdown, and the numbers in them.

pub use sparq_output::numbers::{bytes, digits, or_dash, percent, positions};
pub use sparq_output::table::Table;
