//! Timings of decode steps, dense and SparQ, against the memory bandwidth of the same machine in the same run.
//!
//! A decode step does little arithmetic on many bytes, so the figure that tells how good a kernel is is the share of the bandwidth at which it moves
//! the bytes that it must ([`sparq::Transfers`]), and the figure that tells whether SparQ is worth it is the ratio to dense attention. Both are taken in
//! one process, minutes apart at most.
//!
//! The data flows one way: a [`preset`] names [`Case`](preset::Case)s, [`contender`]s run each of them on rotating [`buffers`], [`timing`] samples them,
//! and a [`report`] holds what came out, as a JSON file. [`render`] makes tables and plots of such files, and [`peers`] puts figures of other frameworks
//! beside them. [`e2e`] does the same for whole models, and [`fit`] finds the figures of the library's cost model in the results. [`plan`] measures what
//! planning needs to know of a machine.
#![deny(missing_docs)]

pub mod bandwidth;
pub mod buffers;
pub mod cli;
pub mod compare;
pub mod contender;
pub mod e2e;
pub mod fit;
mod guard;
pub mod machine;
pub mod op;
pub mod peers;
pub mod plan;
pub mod preset;
pub mod provenance;
pub mod render;
pub mod report;
pub mod shape;
pub mod stage;
pub mod stats;
pub mod table;
pub mod timing;
