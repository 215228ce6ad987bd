//! Layers whose weights are floats or blocks.

/// Implements `Module` for an enum `Float | Packed` that forwards everything to the layer it holds.
///
/// A derived implementation would put the name of the variant into the names of parameters.
macro_rules! transparent_module {
    ($layer:ident) => {
        impl burn::module::Module for $layer {
            fn visit<V: burn::module::ModuleVisitor>(&self, visitor: &mut V) {
                match self {
                    Self::Float(layer) => layer.visit(visitor),
                    Self::Packed(layer) => layer.visit(visitor),
                }
            }

            fn map<M: burn::module::ModuleMapper>(self, mapper: &mut M) -> Self {
                match self {
                    Self::Float(layer) => Self::Float(layer.map(mapper)),
                    Self::Packed(layer) => Self::Packed(layer.map(mapper)),
                }
            }

            fn to_device(self, device: &burn::tensor::Device) -> Self {
                match self {
                    Self::Float(layer) => Self::Float(layer.to_device(device)),
                    Self::Packed(layer) => Self::Packed(layer.to_device(device)),
                }
            }

            fn fork(self, device: &burn::tensor::Device) -> Self {
                match self {
                    Self::Float(layer) => Self::Float(layer.fork(device)),
                    Self::Packed(layer) => Self::Packed(layer.fork(device)),
                }
            }

            fn collect_devices(&self, devices: burn::module::Devices) -> burn::module::Devices {
                match self {
                    Self::Float(layer) => layer.collect_devices(devices),
                    Self::Packed(layer) => layer.collect_devices(devices),
                }
            }

            fn materialize(self) -> Self {
                match self {
                    Self::Float(layer) => Self::Float(layer.materialize()),
                    Self::Packed(layer) => Self::Packed(layer.materialize()),
                }
            }

            fn valid(&self) -> Self {
                match self {
                    Self::Float(layer) => Self::Float(layer.valid()),
                    Self::Packed(layer) => Self::Packed(layer.valid()),
                }
            }

            fn train(self) -> Self {
                match self {
                    Self::Float(layer) => Self::Float(layer.train()),
                    Self::Packed(layer) => Self::Packed(layer.train()),
                }
            }
        }

        impl burn::module::ModuleDisplayDefault for $layer {
            fn content(&self, content: burn::module::Content) -> Option<burn::module::Content> {
                match self {
                    Self::Float(layer) => layer.content(content),
                    Self::Packed(layer) => layer.content(content),
                }
            }
        }

        impl burn::module::ModuleDisplay for $layer {}
    };
}

mod embedding;
mod linear;

pub use embedding::{EmbeddingLayer, PackedEmbedding};
pub use linear::{LinearLayer, PackedLinear};
