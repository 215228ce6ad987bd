//! Reports as tables, for the terminal and for the documentation.

pub mod e2e;
pub mod fit;
pub mod linear;
pub mod op;
pub mod prefill;
pub mod program;
pub mod start;
pub mod summary;
