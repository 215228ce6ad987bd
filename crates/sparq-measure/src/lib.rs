//! Measures a device: its memory bandwidth, decode steps of attention and of whole models, and
//! prefill.
//!
//! A decode step does little arithmetic on many bytes. Two figures describe it: the share of the
//! memory bandwidth at which it moves the bytes it has to ([`sparq::Transfers`]), and its time
//! relative to dense attention. Both come from one process, so that they share one machine state.
//!
//! - [`bandwidth`] measures the memory bandwidth that every other figure is related to.
//! - [`attention`] times one decode step of attention, dense and SparQ, stage by stage.
//! - [`linear`] times the linear layers of a decode step.
//! - [`model`] times whole decode steps of models with random weights.
//! - [`prefill`] times the prefill of whole models, related to the rate of a large product
//!   ([`matrix`]).
//! - [`program`] times a checkpoint as the program `sparq` runs it.
//! - [`fit`] finds the figures of [`sparq::cost`] in measured steps.
//! - [`machine`] measures everything that [`sparq_plan`] has to know of a machine.
#![deny(missing_docs)]

pub mod attention;
pub mod bandwidth;
mod calls;
pub mod fit;
mod guard;
pub mod host;
pub mod linear;
pub mod machine;
pub mod matrix;
pub mod memory;
pub mod model;
pub mod prefill;
pub mod program;
pub mod shape;
pub mod stats;
pub mod timing;
