//! An embedding table as floats or blocks: [`EmbeddingLayer`].

use burn::module::Module;
use burn::nn::Embedding;
use burn::tensor::{Device, FloatDType, Int, Tensor};

use crate::ops::{PackedWeight, Projection, Weight};

/// An embedding table [vocab, dim] as floats that can be trained, or in blocks of a few bits whose
/// rows become floats when they are looked up.
///
/// Records name its parameters as those of burn's [`Embedding`]. A packed table is in none.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "a few handles in a large model")]
pub enum EmbeddingLayer {
    /// A table of floats.
    Float(Embedding),
    /// A table in blocks.
    Packed(PackedEmbedding),
}

/// An embedding table in blocks.
#[derive(Module, Debug)]
pub struct PackedEmbedding {
    /// The table, [vocab, dim].
    pub weight: PackedWeight,
    /// The type of the rows that are looked up.
    #[module(skip)]
    pub dtype: FloatDType,
}

transparent_module!(EmbeddingLayer);

impl EmbeddingLayer {
    /// Makes a layer of a table in blocks, whose rows are looked up in `dtype`.
    pub fn packed(weight: PackedWeight, dtype: FloatDType) -> Self {
        Self::Packed(PackedEmbedding { weight, dtype })
    }

    /// Returns [vocab, dim].
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Float(embedding) => embedding.weight.dims(),
            Self::Packed(embedding) => embedding.weight.dims(),
        }
    }

    /// Returns the device of the table.
    pub fn device(&self) -> Device {
        match self {
            Self::Float(embedding) => embedding.weight.device(),
            Self::Packed(embedding) => embedding.weight.device(),
        }
    }

    /// Returns the layer of floats; `None` if the table is packed.
    pub fn float(&self) -> Option<&Embedding> {
        match self {
            Self::Float(embedding) => Some(embedding),
            Self::Packed(_) => None,
        }
    }

    /// Maps tokens [B, T] to their rows, [B, T, dim].
    ///
    /// # Panics
    /// If a token is not below vocab, on CPUs. A GPU reads an arbitrary row.
    pub fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        match self {
            Self::Float(embedding) => embedding.forward(tokens),
            Self::Packed(embedding) => {
                let ([batch, len], [_, dim]) = (tokens.dims(), self.dims());
                let tokens = tokens.reshape([batch * len]);
                let rows = embedding.weight.dequantize_rows(tokens, embedding.dtype);
                rows.reshape([batch, len, dim])
            }
        }
    }
}

/// The output projection of a model with tied embeddings.
impl From<&EmbeddingLayer> for Projection {
    fn from(layer: &EmbeddingLayer) -> Self {
        let weight = match layer {
            EmbeddingLayer::Float(embedding) => Weight::Float(embedding.weight.val()),
            EmbeddingLayer::Packed(embedding) => Weight::Packed(embedding.weight.clone()),
        };
        Self { weight, bias: None }
    }
}
