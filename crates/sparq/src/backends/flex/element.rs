//! The element types of a cache. Elements are widened to fp32 in registers.

use burn::backend::Flex;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{bf16, f16};

use super::simd::{MAX_LANES, Simd};

/// An element of K, V and a full sketch.
pub(super) trait Element: Copy + Default + Send + Sync + 'static {
    /// Returns the elements of a tensor of this type if they are contiguous.
    fn slice(tensor: &FloatTensor<Flex>) -> Option<&[Self]>;
    /// Returns the whole storage of a tensor of this type for writing. Copies it first if another
    /// tensor shares it.
    fn storage_mut(tensor: &mut FloatTensor<Flex>) -> &mut [Self];
    fn widen(self) -> f32;
    /// Loads the first lanes of a slice.
    fn load<S: Simd>(simd: S, from: &[Self]) -> S::F;

    /// Loads a slice of fewer elements than lanes, padded with zeros.
    #[inline(always)]
    fn load_partial<S: Simd>(simd: S, from: &[Self]) -> S::F {
        let mut padded = [Self::default(); MAX_LANES];
        padded[..from.len()].copy_from_slice(from);
        Self::load(simd, &padded)
    }
}

macro_rules! element {
    ($element:ty, $load:ident, $widen:expr) => {
        impl Element for $element {
            fn slice(tensor: &FloatTensor<Flex>) -> Option<&[Self]> {
                tensor.as_slice::<Self>()
            }
            fn storage_mut(tensor: &mut FloatTensor<Flex>) -> &mut [Self] {
                tensor.storage_mut::<Self>()
            }
            #[inline(always)]
            fn widen(self) -> f32 {
                $widen(self)
            }
            #[inline(always)]
            fn load<S: Simd>(simd: S, from: &[Self]) -> S::F {
                simd.$load(from)
            }
        }
    };
}

element!(f32, load, std::convert::identity);
element!(f16, load_f16, f16::to_f32);
element!(bf16, load_bf16, bf16::to_f32);
