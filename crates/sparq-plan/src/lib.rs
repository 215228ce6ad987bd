//! Predicts the decode steps of a model on a machine without running them: time, memory, and the
//! batch that fits.
//!
//! The data flows one way: a configuration gives a [`ModelShape`], a name or a measurement gives a
//! [`Machine`], and a [`Setup`] of both predicts the step of a [`Method`](sparq::Method). Attention
//! follows the cost model of [`sparq::cost`], layer by layer. The weights are read once per step
//! for all sequences, and each layer adds a fixed time:
//!
//! ```text
//! step = layers * (attention(B, S) + layer_us)
//!        + max(weights / weight rate, 2 B weights / flops)
//!        + all-reduces between GPUs
//! ```
//!
//! Left out are the prefill, token selection on the host, waiting for requests, sequences of
//! different lengths (S is then their mean), recomputing the ranges of a sketch after a cache has
//! doubled, and deviations of the kernels from the cost model.
#![deny(missing_docs)]

mod machine;
mod memory;
mod model;
mod roofline;
mod setup;

pub use machine::{MANY_PRODUCTS_REACHED, MANY_SEQUENCES, Machine, MachineError, PRODUCTS_REACHED};
pub use memory::{Demand, Memory};
pub use model::ModelShape;
pub use roofline::Work;
pub use setup::{Lossless, PlanError, Setup, StepTime};
