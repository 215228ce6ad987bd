//! What a decode step of a model costs on a machine, predicted without running it: time, memory, and the batch that fits.
//!
//! The data flows one way: a configuration gives a [`ModelShape`], a name or a measurement a [`Machine`], and a [`Setup`] of both says what a step with
//! a [`Method`](sparq::Method) takes. Attention is the cost model of [`sparq::cost`], layer by layer; to it come the weights, which every step reads once
//! for all sequences, and what each layer takes beside both:
//!
//! ```text
//! step = layers * (attention(B, S) + layer_us) + max(weights / weight rate, 2 B weights / flops) + sums between GPUs
//! ```
//!
//! Left out are: the prefill, the choice of the token on the host, waiting for requests, batches whose sequences differ in length (S is then their mean),
//! setting the ranges of a sketch again when a cache has doubled, and anything that a kernel of another shape does better or worse than its line says.
#![deny(missing_docs)]

mod machine;
mod model;
mod roofline;
mod setup;

pub use machine::{MANY_PRODUCTS_REACHED, MANY_SEQUENCES, Machine, MachineError, PRODUCTS_REACHED};
pub use model::ModelShape;
pub use roofline::Work;
pub use setup::{PlanError, Setup, StepTime};
