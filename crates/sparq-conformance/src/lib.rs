//! Reference cases for SparQ attention, and a runner that holds a device to them.
//!
//! A case is one decode step: its settings, its input, and everything that must come out, down to which components of the query were chosen
//! and which positions were kept. Cases are safetensors files of two kinds, told apart by their metadata: steps of the paper's authors'
//! published code, and steps with a key sketch of 8 or 4 bits. The READMEs in `fixtures/authors` and `fixtures/sketch` describe both formats.
//!
//! Beside these cases there are [`Random`] ones, drawn from a seed and judged by float64 arithmetic.
//!
//! The discrete results are compared for equality and not by their effect, because a wrong position among a hundred right ones hardly shows in
//! the output: the files were chosen so that no choice is closer than rounding in another order could turn.
//!
//! ```
//! use burn::tensor::{Device, FloatDType};
//! use sparq_conformance::{embedded_cases, run};
//!
//! let cases = embedded_cases()?;
//! let outcome = run(&cases[0], &Device::default(), FloatDType::F32);
//! assert!(outcome.passed, "{:?}", outcome.reason);
//! # Ok::<(), sparq_conformance::GoldenError>(())
//! ```

mod array;
mod case;
mod embedded;
mod error;
mod folder;
mod format;
mod host;
mod judge;
mod observe;
mod problem;
mod random;
mod report;
mod runner;

pub use array::Array;
pub use case::{Case, Expected, ExpectedSketch, Inputs, Kind};
pub use embedded::embedded_cases;
pub use error::GoldenError;
pub use folder::read_folder;
pub use problem::Problem;
pub use random::{Random, Size};
pub use report::{Differences, Outcome, Report};
pub use runner::{run, run_all};
