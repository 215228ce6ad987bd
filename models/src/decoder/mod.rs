//! The decoder-only transformer that every family is a form of: [`Decoder`], set apart by its [`DecoderConfig`].
//!
//! What families share exists once: norms, MLPs, the order of a block, attention ([`sparq::SparqAttention`]) and the head.

mod base;
mod config;
mod keys;
mod layer;
mod mlp;
mod norm;

pub use base::Decoder;
pub use config::{DecoderConfig, NormKind, Residual};
pub use keys::{Keys, MlpKeys, QkvKeys};
