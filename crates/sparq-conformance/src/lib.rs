//! The conformance check: runs reference cases and random cases on a device and judges the results.
//!
//! A reference case is one decode step: settings, inputs and all expected results, including the
//! selected components of the query and the selected positions. Reference cases are safetensors
//! files of two kinds: steps of the code published by the paper's authors, and steps with a key
//! sketch of 8 or 4 bits. The READMEs in `fixtures/authors` and `fixtures/sketch` describe both
//! formats.
//!
//! [`run_prefills`] runs cases of causal attention of many queries, with inputs of fixed seeds.
//!
//! A [`Random`] case is drawn from a seed and judged by float64 arithmetic.
//!
//! Selections are compared for equality, because one wrong position in a hundred hardly changes the
//! output. The inputs of the files were searched so that every selection has a clear margin: fp32
//! sums in another order select the same.
//!
//! ```
//! use burn::tensor::{Device, FloatDType};
//! use sparq_conformance::{embedded_cases, run};
//!
//! let cases = embedded_cases()?;
//! let outcome = run(&cases[0], &Device::default(), FloatDType::F32);
//! assert!(outcome.passed, "{:?}", outcome.reason);
//! # Ok::<(), sparq_conformance::ConformanceError>(())
//! ```

mod array;
mod case;
mod embedded;
mod error;
mod float64;
mod folder;
mod format;
mod judge;
mod observe;
mod prefill;
mod problem;
mod random;
mod report;
mod runner;

pub use array::Array;
pub use case::{Case, Expected, ExpectedSketch, Inputs, Kind};
pub use embedded::embedded_cases;
pub use error::ConformanceError;
pub use folder::read_folder;
pub use prefill::run_prefills;
pub use problem::Problem;
pub use random::{Random, Size};
pub use report::{Differences, Outcome, Report};
pub use runner::{run, run_all};
