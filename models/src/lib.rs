//! Language models that decode with SparQ attention, from Hugging Face checkpoints, without training.
//!
//! The data flows one way: a [`checkpoint`] folder (local, from the [`hub`], or the [`embedded`] one) gives a configuration and weights; the file of
//! its family says what they mean for a [`Decoder`], whose layers attend with [`sparq::SparqAttention`]; and [`text`] turns its logits into text. Models offer
//! themselves through [`CausalLm`], so that generation, evaluation and benchmarks are written once.
//!
//! # Features
//!
//! | feature | |
//! |---|---|
//! | `hub` (default) | downloads from the Hugging Face hub: the module `hub` |
//! | `flex` (default), `ndarray`, `cuda`, `vulkan`, `wgpu`, `metal`, `rocm`, `autodiff` | as in [`sparq`] |
#![deny(missing_docs)]

pub mod calibration;
pub mod checkpoint;
pub mod config;
mod decoder;
pub mod embedded;
mod families;
#[cfg(feature = "hub")]
pub mod hub;
mod linear;
mod lm;
pub mod progress;
pub mod text;
mod weights;

pub use decoder::{Decoder, DecoderConfig, Keys, MlpKeys, NormKind, QkvKeys, Residual};
pub use families::Llama;
pub use linear::linear;
pub use lm::{CapturedLm, CausalLm, ModelCache};
