//! SparQ attention (Ribar et al., "SparQ Attention: Bandwidth-Efficient LLM Inference", ICML 2024) for [burn](https://burn.dev).
//!
//! A decode step of a language model reads its whole KV cache to write one token. SparQ reads a fraction of it: r components of every key give approximate
//! scores, and the k positions with the best scores are attended to exactly. Nothing is trained and nothing is evicted.
//!
//! The data flows one way: [`SparqAttention`] projects and rotates, a [`KvCache`] holds keys, values and the *key sketch* (the copy of K that scores are
//! read from, in the cache's type or in 8 or 4 bits), a [`Method`] attends, and the [`op`] module carries the step to the backend. The module
//! [`reference`](mod@reference) is the algorithm in plain tensor operations, next to which the paper can be read.
//!
//! ```
//! use burn::tensor::{Device, Distribution, FloatDType, Tensor};
//! use sparq::{KvCache, KvCacheConfig, Method, SparqConfig};
//!
//! let device = Device::default();
//! let method = Method::from(SparqConfig::new(16, 32)); // r = 16, k = 32
//! let mut cache = KvCache::new(
//!     &KvCacheConfig { batch: 1, kv_heads: 2, head_dim: 64, capacity: 256, dtype: FloatDType::F32, sketch: method.sketch(), window: None },
//!     &device,
//! )?;
//! let random = |shape: [usize; 4]| Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &device);
//! cache.append(random([1, 2, 200, 64]), random([1, 2, 200, 64]))?;
//! let output = method.decode(random([1, 8, 1, 64]), &mut cache)?;
//! assert_eq!(output.dims(), [1, 8, 1, 64]);
//! # Ok::<(), sparq::SparqError>(())
//! ```
//!
//! # Features
//!
//! | feature | |
//! |---|---|
//! | `flex` (default) | burn's CPU backend, with a native implementation of the operations |
//! | `ndarray` | burn's older CPU backend, on which the operations are those of [`reference`](mod@reference) |
//! | `cuda`, `vulkan`, `wgpu`, `metal`, `rocm` | GPUs, with the kernels of this crate |
//! | `cube` | those kernels; comes with any of the five |
//! | `autodiff` | training: [`SparqAttention::forward`] without a cache is differentiable |
//!
//! Several may be on: `Device::default()` takes the first that there is, and `BURN_DEVICE` names another. Without any of them there is no device. `cuda` and `rocm` link
//! `cubecl-llvm`, whose build downloads a toolchain that these kernels, compiled by NVRTC and HIPRTC, do not use; the workspace of this crate has a stand-in for it under
//! `[patch.crates-io]`, which a program that depends on the crate can copy.
#![deny(missing_docs)]

mod attention;
mod backends;
mod cache;
mod config;
pub mod cost;
mod error;
mod graph;
pub mod methods;
pub mod ops;
pub mod sketch;

pub use attention::rotary::{Rotary, RotaryConfig, RotaryScaling};
pub use attention::{SparqAttention, SparqAttentionConfig};
pub use cache::buffers::{CacheTensors, SketchTensors};
pub use cache::spans::RowSpans;
pub use cache::{CacheMemory, KvCache, KvCacheConfig};
pub use config::{Components, GroupScore, MeanValue, Sketch, SparqConfig};
pub use cost::transfers::{CacheShape, Transfers};
pub use error::SparqError;
pub use graph::{CapturedStep, StepTensors};
pub use methods::baselines::{
    Directions, ExactTopK, FlexGen, H2o, Hybrid, KeyPrecision, LmInfinite, Oracle, Projection,
    Quest, SparqVariant, Temperature,
};
pub use methods::{Auto, Budget, Dense, Method, Setting, Settings, Strategy};
pub use ops::reference;

/// The code of the README.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
