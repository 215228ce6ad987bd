//! Integration tests of `sparq` that can share a process. Two test files are binaries of their own:
//! `captured.rs`, since a device that captures a graph tolerates no other work, and `memory.rs`,
//! since it counts the allocations of the whole process.
//!
//! Every test runs on all available devices of the build; BURN_DEVICE selects one.

// The most probable tokens of logits against a search on the host.
mod argmax;
// Prefill and decode steps of `SparqAttention` against dense attention over the whole sequence.
mod attention;
// The method `auto`: dense attention or SparQ, whichever the cost model predicts to be faster.
mod auto;
// The KV cache: growth, ragged batches, truncation, sketch ranges, memory, refused arguments.
mod cache;
#[path = "../common/mod.rs"]
mod common;
// Inputs at the edges of arithmetic: zeros, ties, NaN, infinities, a single position.
mod edge_cases;
// Prefills of few tokens equal decode steps, bit for bit on `flex`; rolling a cache back.
mod few_tokens;
// The native kernels of the `flex` backend against fp64 and against tensor operations.
#[cfg(feature = "flex")]
mod flex;
// Gradients of the attention module against finite differences; detached caches.
#[cfg(feature = "autodiff")]
mod gradients;
// Linear layers with a norm, an activation and the residual stream against fp64.
mod linear;
// SparQ's baselines: worked examples, properties, and the bytes that each method moves.
mod methods;
// Attention over positions that another layer selected, against fp64 and against SparQ.
mod positions;
// Causal attention of many queries against fp64: shapes, types, windows, padding, ragged batches.
mod prefill;
// Preparing a token: RoPE and append, against tensor operations.
mod prepare;
// Properties of SparQ for random shapes and settings.
mod properties;
// Steps that attend to the positions of another layer, against fp64.
mod reuse;
// K rows and V rows in codes of 8 bits: the same steps as on the rounded rows in floats.
mod rows;
// Sequences that join and leave a cache of several.
mod sequences;
// Sliding windows: a windowed cache behaves like a cache of the window's positions alone.
mod window;
