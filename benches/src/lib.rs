//! Benchmarks of decode steps, prefill and the start of the program, and the tables and plots of
//! their results.
//!
//! The measurements are in [`sparq_measure`]. The data flows one way: a preset names shapes and
//! settings, `sparq-measure` times them, and a [`report`] holds the rows as a JSON file beside
//! the [`baselines`] of PyTorch. [`tables`] shows a report on the terminal; [`render`] makes the
//! tables and plots of the documentation from committed reports. [`make_model`] writes checkpoints
//! with random weights, and [`start`] times the program on them. [`load`] asks a running server.
#![deny(missing_docs)]

pub mod baselines;
pub mod cli;
mod goals;
pub mod load;
pub mod make_model;
mod presets;
mod provenance;
pub mod render;
pub mod report;
pub mod start;
pub mod tables;
