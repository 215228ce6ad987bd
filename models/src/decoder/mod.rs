//! The decoder-only transformer that every family maps into: [`Decoder`] and its [`DecoderConfig`].
//!
//! Each part exists once: the norms, the MLP, the layer, the head, and attention in
//! [`sparq::SparqAttention`].

mod config;
mod keys;
mod layer;
mod mlp;
mod model;
mod norm;

pub use config::{DecoderConfig, NormKind, Residual};
pub use keys::{Keys, MlpKeys, QkvKeys};
pub use model::Decoder;
