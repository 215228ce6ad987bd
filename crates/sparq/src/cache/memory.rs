//! The memory of a cache, and whether its buffers are shared.

use burn::tensor::Tensor;
use burn::tensor::kind::Basic;
use serde::{Deserialize, Serialize};

use super::{KvCache, SketchTensors};

/// Bytes allocated by a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheMemory {
    /// K.
    pub keys: usize,
    /// V.
    pub values: usize,
    /// The key sketch with its ranges.
    pub sketch: usize,
    /// The sum of V, and the attention received by each position if a method records it.
    pub sums: usize,
}

impl CacheMemory {
    /// All bytes.
    pub fn total(&self) -> usize {
        self.keys + self.values + self.sketch + self.sums
    }
}

impl std::iter::Sum for CacheMemory {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), |all, part| Self {
            keys: all.keys + part.keys,
            values: all.values + part.values,
            sketch: all.sketch + part.sketch,
            sums: all.sums + part.sums,
        })
    }
}

impl KvCache {
    /// Bytes allocated.
    pub fn memory(&self) -> CacheMemory {
        fn bytes<const D: usize, K: Basic>(tensor: &Tensor<D, K>) -> usize {
            tensor.shape().num_elements() * tensor.dtype().size()
        }
        let tensors = self.tensors();
        CacheMemory {
            keys: tensors.k.bytes(),
            values: tensors.v.bytes(),
            sketch: match &tensors.sketch {
                SketchTensors::None => 0,
                SketchTensors::Full(kt) => bytes(kt),
                SketchTensors::Codes {
                    codes,
                    zero_point,
                    scale,
                    ..
                } => bytes(codes) + bytes(zero_point) + bytes(scale),
            },
            sums: bytes(&tensors.v_sum) + self.states.bytes(),
        }
    }

    /// Returns whether the cache alone owns its buffers, so that the next append writes in place.
    ///
    /// False if the backend does not know.
    pub(crate) fn owns_buffers(&self) -> bool {
        let tensors = self.tensors();
        let sketch = match &tensors.sketch {
            SketchTensors::None => true,
            SketchTensors::Full(kt) => kt.can_mut(),
            SketchTensors::Codes {
                codes,
                zero_point,
                scale,
                ..
            } => codes.can_mut() && zero_point.can_mut() && scale.can_mut(),
        };
        let rest = tensors.k.can_mut() && tensors.v.can_mut();
        rest && sketch && tensors.v_sum.can_mut() && tensors.spans.can_mut()
    }
}
