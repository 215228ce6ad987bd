//! Language models that decode with SparQ attention, from Hugging Face checkpoints, without
//! training.
//!
//! Load a model and generate text with SparQ:
//!
//! ```
//! use std::ops::ControlFlow;
//!
//! use burn::tensor::{Device, FloatDType};
//! use sparq::{Method, SparqConfig};
//! use sparq_models::text::{GenerateOptions, Session};
//! use sparq_models::{CausalLm, Decoder, DecoderConfig, embedded};
//!
//! // Other models: `Checkpoint::open(path)` and `TextTokenizer::from_folder(path)`.
//! let (checkpoint, tokenizer) = (embedded::checkpoint()?, embedded::tokenizer()?);
//! let config = DecoderConfig::from_checkpoint(&checkpoint)?;
//! let model = Decoder::load(&checkpoint, &config, FloatDType::F32, &Device::default())?;
//!
//! // Each decode step reads 16 of 64 components to select 128 positions.
//! let method = Method::from(SparqConfig::new(16, 128));
//! let cache = model.new_cache(1, 256, FloatDType::F32, &method)?;
//! let prompt = tokenizer.encode("And it came to pass", true)?;
//! let options = GenerateOptions { method, max_new_tokens: 20, ..Default::default() };
//! let mut session = Session::new(cache, tokenizer);
//! let mut on_event = |_: sparq_models::text::GenerateEvent<'_>| ControlFlow::Continue(());
//! let generated = session.generate(&model, &prompt, &options, &mut on_event)?;
//! println!("{}", generated.text);
//! # assert_eq!(generated.tokens.len(), 20);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # From a checkpoint to text
//!
//! | module or type | task |
//! |---|---|
//! | [`checkpoint`] | reads weights and `config.json` from a folder or a file |
//! | `hub` | downloads a checkpoint from the Hugging Face hub |
//! | [`embedded`] | a small model in the binary, for tests and demonstrations |
//! | [`config`] | maps the `config.json` of a model family to a [`DecoderConfig`] |
//! | [`Decoder`] | the model, with [`sparq::SparqAttention`] in every layer |
//! | [`CausalLm`] | the interface of models for generation, evaluation and benchmarks |
//! | [`CapturedLm`] | decode steps captured as a graph and replayed |
//! | [`MostProbable`] | the most probable tokens of logits, on the device |
//! | [`text`] | chat templates, tokenizers, sampling and sessions |
//! | [`calibration`] | measures the attention probability that SparQ keeps |
//!
//! # Features
//!
//! | feature | effect |
//! |---|---|
//! | `hub` (default) | the module `hub` |
//! | `flex` (default), `ndarray`, `cuda`, `vulkan`, `wgpu`, `metal`, `rocm` | backends of [`sparq`] |
//! | `autodiff` | gradients |
#![deny(missing_docs)]

pub mod calibration;
pub mod checkpoint;
pub mod config;
mod decoder;
mod drafted;
pub mod embedded;
mod families;
#[cfg(feature = "hub")]
pub mod hub;
mod linear;
mod lm;
mod most_probable;
pub mod progress;
mod sharing;
pub mod text;
mod weights;

pub use decoder::{Decoder, DecoderConfig};
pub use drafted::DraftedLm;
#[doc(hidden)]
pub use linear::linear;
pub use lm::{CapturedLm, CausalLm, ModelCache, ModelMark, SequenceStep};
pub use most_probable::MostProbable;
pub use sharing::{LayerSharing, SharingPlan};
