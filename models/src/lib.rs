//! Language models that decode with SparQ attention, from Hugging Face checkpoints, without training.
//!
//! The data flows one way: a [`checkpoint`] folder (local, from the [`hub`], or the [`embedded`] one) gives a configuration and weights, a model file builds
//! its layers from [`sparq::SparqAttention`], and [`text`] turns its logits into text. Every model offers itself through [`CausalLm`], so that
//! generation, evaluation and benchmarks are written once.
#![deny(missing_docs)]

pub mod calibration;
pub mod checkpoint;
pub mod config;
pub mod embedded;
#[cfg(feature = "hub")]
pub mod hub;
mod llama;
mod lm;
pub mod progress;
pub mod text;
mod weights;

pub use llama::Llama;
pub use lm::{CapturedLm, CausalLm, ModelCache};
