//! The decoder-only transformer that every family maps into: [`Decoder`] and its [`DecoderConfig`].
//!
//! Each part exists once: the norms, the MLP, the experts, the layer, the head, and attention in
//! [`sparq::SparqAttention`].

mod branch;
mod config;
mod experts;
mod keys;
mod layer;
mod mlp;
mod model;
mod norm;
mod pass;

pub use config::{DecoderConfig, Experts, NormKind, QkNorm, Residual};
pub use keys::{ExpertKeys, Keys, MlpKeys, QkvKeys};
pub use model::Decoder;
