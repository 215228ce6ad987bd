//! The types that a cache holds: read as they are, widened to fp32 in registers.

use burn::backend::Flex;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{bf16, f16};

use super::simd::{MOST_LANES, Simd};

/// An element of K, V and a full sketch.
pub(super) trait Element: Copy + Default + Send + Sync + 'static {
    /// The elements of a tensor of this type, if they lie without a gap.
    fn slice(tensor: &FloatTensor<Flex>) -> Option<&[Self]>;
    /// The whole storage of a tensor of this type for writing. Copies it first if another tensor shares it.
    fn storage_mut(tensor: &mut FloatTensor<Flex>) -> &mut [Self];
    fn widen(self) -> f32;
    /// The first lanes of a slice.
    fn load<S: Simd>(simd: S, from: &[Self]) -> S::F;

    /// A slice of fewer elements than lanes, followed by zeros.
    #[inline(always)]
    fn load_rest<S: Simd>(simd: S, from: &[Self]) -> S::F {
        let mut padded = [Self::default(); MOST_LANES];
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
