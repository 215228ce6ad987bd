//! The commands: one file or folder each, with its arguments, its `run` and its JSON document.

pub mod attention;
pub mod cache;
pub mod check;
pub mod completions;
pub mod convert;
pub mod demo;
pub mod eval;
pub mod generate;
pub mod inspect;
pub mod logits;
pub mod plan;
pub mod report;
pub mod serve;
