//! What the programs write: charts as SVG and files that are complete or absent.
#![deny(missing_docs)]

pub mod charts;
pub mod files;
