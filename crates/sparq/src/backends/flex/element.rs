//! The element types of caches and weights. Elements are widened to fp32 in registers.

use burn::backend::Flex;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{bf16, f16};

use super::simd::{Kernel, Level, MAX_LANES, Simd};
use super::threads::Threads;

/// An element of K, V and a full sketch, or of the weights and activations of linear layers.
pub(super) trait Element: Copy + Default + Send + Sync + 'static {
    /// Returns the elements of a tensor of this type if they are contiguous.
    fn slice(tensor: &FloatTensor<Flex>) -> Option<&[Self]>;
    /// Returns the whole storage of a tensor of this type for writing. Copies it first if another
    /// tensor shares it.
    fn storage_mut(tensor: &mut FloatTensor<Flex>) -> &mut [Self];
    fn widen(self) -> f32;
    /// Loads the first lanes of a slice.
    fn load<S: Simd>(simd: S, from: &[Self]) -> S::F;
    /// Stores to the first lanes of a slice, rounded to the nearest element, ties to even.
    fn store<S: Simd>(simd: S, value: S::F, to: &mut [Self]);

    /// Loads a slice of fewer elements than lanes, padded with zeros.
    #[inline(always)]
    fn load_partial<S: Simd>(simd: S, from: &[Self]) -> S::F {
        let mut padded = [Self::default(); MAX_LANES];
        padded[..from.len()].copy_from_slice(from);
        Self::load(simd, &padded)
    }

    /// Loads from an index as many elements as there are, at most one vector. Other lanes are 0.
    #[inline(always)]
    fn load_at<S: Simd>(simd: S, from: &[Self], index: usize) -> S::F {
        let from = &from[index..];
        match from.len() >= S::LANES {
            true => Self::load(simd, from),
            false => Self::load_partial(simd, from),
        }
    }

    /// Stores to an index as many lanes as there is room for.
    #[inline(always)]
    fn store_at<S: Simd>(simd: S, value: S::F, to: &mut [Self], index: usize) {
        let to = &mut to[index..];
        if to.len() >= S::LANES {
            return Self::store(simd, value, to);
        }
        let mut padded = [Self::default(); MAX_LANES];
        Self::store(simd, value, &mut padded);
        to.copy_from_slice(&padded[..to.len()]);
    }
}

/// Elements that a thread converts at a time.
const PART: usize = 1 << 15;

/// Converts elements to another type, rounded to the nearest.
pub(super) fn convert<A: Element, B: Element>(level: Level, from: &[A]) -> Vec<B> {
    let mut to = vec![B::default(); from.len()];
    let parts = from.chunks(PART).zip(to.chunks_mut(PART));
    let parts: Vec<Convert<'_, A, B>> = parts.map(|(from, to)| Convert { from, to }).collect();
    let threads = Threads::new(parts.len(), size_of_val(from));
    threads.for_each(parts, |part| level.run(part));
    to
}

struct Convert<'a, A, B> {
    from: &'a [A],
    to: &'a mut [B],
}

impl<A: Element, B: Element> Kernel for Convert<'_, A, B> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for index in (0..self.from.len()).step_by(S::LANES) {
            B::store_at(simd, A::load_at(simd, self.from, index), self.to, index);
        }
    }
}

macro_rules! element {
    ($element:ty, $load:ident, $store:ident, $widen:expr) => {
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
            #[inline(always)]
            fn store<S: Simd>(simd: S, value: S::F, to: &mut [Self]) {
                simd.$store(value, to)
            }
        }
    };
}

element!(f32, load, store, std::convert::identity);
element!(f16, load_f16, store_f16, f16::to_f32);
element!(bf16, load_bf16, store_bf16, bf16::to_f32);
