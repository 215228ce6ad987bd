//! SparQ attention for [burn](https://burn.dev): decode steps that read a fraction of the KV cache.
//!
//! A decode step of a language model reads its whole KV cache to generate one token. SparQ (Ribar
//! et al., "SparQ Attention: Bandwidth-Efficient LLM Inference", ICML 2024) reads r of the d
//! components of every key and the complete keys and values of k positions. It trains nothing and
//! evicts nothing.
//!
//! ```text
//!                       query q, d components                             elements read
//!                               |
//! 1  approximate scores         |  select the r largest components
//!                               v
//!      key sketch, r of d  ->  s_hat = softmax(q[i1] . K[i1] / tau)       S r
//!                               |
//! 2  top-k selection            |  select the k largest scores, which
//!                               v  sum to alpha
//!                              i2, k of S positions
//!                               |
//! 3  exact attention            v
//!      K and V rows of i2  ->  y = softmax(q . K[i2] / sqrt(d)) . V[i2]   2 k d
//!                              output = alpha y + (1 - alpha) mean(V)
//! ```
//!
//! All of this happens per KV head over S positions. The key sketch is a copy of K with contiguous
//! positions, in full or in codes of 8 or 4 bits. The l most recent positions are always selected.
//!
//! Dense attention reads 2 S d elements. With d = 128, r = 32 and k = 128, SparQ reads about an
//! eighth of that over long contexts.
//!
//! # Example
//!
//! ```
//! use burn::tensor::{Device, Distribution, Tensor};
//! use sparq::{Method, SparqAttentionConfig, SparqConfig};
//!
//! let device = Device::default();
//! // Inputs of 64 elements, 4 query heads, 2 KV heads, head_dim 16.
//! let attention = SparqAttentionConfig::new(64, 4, 2, 16).init(&device)?;
//! let method = Method::from(SparqConfig::new(4, 12)); // r = 4, k = 12
//! let mut cache = attention.new_cache(1, 64, &method)?;
//!
//! let prompt = Tensor::<3>::random([1, 40, 64], Distribution::Default, &device);
//! attention.forward(prompt, Some(&mut cache))?; // prefill with dense attention
//! let token = Tensor::<3>::random([1, 1, 64], Distribution::Default, &device);
//! let output = attention.decode(token, &mut cache, &method)?; // one decode step
//! assert_eq!((output.dims(), cache.len()), ([1, 1, 64], 41));
//! # Ok::<(), sparq::SparqError>(())
//! ```
//!
//! # Map
//!
//! Data flows one way:
//!
//! 1. [`SparqAttention`] projects its input and rotates queries and keys.
//! 2. [`KvCache`] holds keys, values and the key sketch in the form that [`Sketch`] names.
//! 3. [`Method`] attends: dense, SparQ or a baseline of [`methods`].
//! 4. [`ops`] carries the step to the backend.
//!
//! [`reference`](mod@reference) is the algorithm in plain tensor operations, in the order of the
//! paper. [`cost`] counts the bytes of a step and predicts its time. [`CapturedStep`] replays a
//! decode step as one graph of GPU launches.
//!
//! # Features
//!
//! | feature | |
//! |---|---|
//! | `flex` (default) | burn's CPU backend, with a native implementation of the operations |
//! | `ndarray` | burn's older CPU backend, which runs the [`reference`](mod@reference) |
//! | `cuda`, `vulkan`, `wgpu`, `metal`, `rocm` | GPUs, with the kernels of this crate |
//! | `cube` | the kernels alone; each of the five GPU features enables it |
//! | `autodiff` | training: [`SparqAttention::forward`] without a cache is differentiable |
//!
//! Several features can be enabled together. `Device::default()` takes the first device that is
//! available, and `BURN_DEVICE` names another. Without any backend feature there is no device.
//!
//! `cuda` and `rocm` link `cubecl-llvm`, whose build downloads a toolchain. The kernels are
//! compiled by NVRTC and HIPRTC and do not use it. The workspace of this crate replaces it by a
//! stand-in under `[patch.crates-io]`, which a dependent program can copy.
#![deny(missing_docs)]

mod attention;
mod backends;
mod cache;
pub mod cost;
mod error;
mod graph;
mod layers;
pub mod methods;
pub mod ops;
mod sketch;

pub use attention::rotary::RotaryConfig;
pub use attention::{SparqAttention, SparqAttentionConfig};
pub use cache::{CacheMark, KvCache, KvCacheConfig};
pub use cost::Transfers;
pub use error::SparqError;
pub use graph::CapturedStep;
pub use layers::{EmbeddingLayer, LinearLayer, PackedEmbedding, PackedLinear};
pub use methods::{Method, SparqConfig};
pub use ops::reference;
pub use sketch::Sketch;

/// The code of the README.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
