//! Tests of checkpoints, in one binary. `checkpoint_memory` is apart, since its allocator counts
//! the memory of the whole process.

/// Configurations, by family and by kind of error.
mod config;
/// Converted models and the way back to safetensors.
mod conversion;
/// Opening: folders, indices of shards, headers, and their errors.
mod files;
/// Modules that a loader makes.
mod loader;
/// Weights in 8 and 4 bits.
mod quantized;
/// Random bytes and numbers, which must never cause a panic.
mod random_input;
/// Output matrices of models with tied embeddings.
mod tied;
/// Values of tensors in every stored and computed type.
mod values;

/// Checkpoints for the tests.
#[path = "../checkpoint_support/mod.rs"]
mod support;
