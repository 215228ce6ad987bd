//! The element types of caches and weights. Elements are widened to fp32 in registers.
//!
//! [`Rows`] are the K rows or V rows of a cache.

use burn::backend::Flex;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{bf16, f16};

use super::simd::{Kernel, Level, MAX_LANES, Simd};
use super::threads::Threads;

/// An element of K rows and V rows: a float, or a byte that holds a code in two's complement.
pub(super) trait RowElement: Copy + Default + Send + Sync + 'static {
    /// Each row has a scale.
    const SCALED: bool = false;
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

impl RowElement for u8 {
    const SCALED: bool = true;
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from(self as i8)
    }
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self]) -> S::F {
        simd.load_i8(from)
    }
}

/// An element of a full sketch and of rows in floats, or of the weights and activations of linear
/// layers.
pub(super) trait Element: RowElement {
    /// Returns the elements of a tensor of this type if they are contiguous.
    fn slice(tensor: &FloatTensor<Flex>) -> Option<&[Self]>;
    /// Returns the whole storage of a tensor of this type for writing. Copies it first if another
    /// tensor shares it.
    fn storage_mut(tensor: &mut FloatTensor<Flex>) -> &mut [Self];
    /// Stores to the first lanes of a slice, rounded to the nearest element, ties to even.
    fn store<S: Simd>(simd: S, value: S::F, to: &mut [Self]);

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

/// K rows or V rows, [.., S_max, d].
#[derive(Clone, Copy)]
pub(super) struct Rows<'a, T> {
    pub(super) elements: &'a [T],
    /// [.., S_max], or empty for floats.
    pub(super) scales: &'a [f32],
    pub(super) kv_heads: usize,
    pub(super) capacity: usize,
    pub(super) dim: usize,
}

impl<'a, T: RowElement> Rows<'a, T> {
    /// Returns `count` rows from row `first` on.
    pub(super) fn part(self, first: usize, count: usize) -> Self {
        let scales = match T::SCALED {
            true => &self.scales[first..first + count],
            false => self.scales,
        };
        Self {
            elements: &self.elements[first * self.dim..(first + count) * self.dim],
            scales,
            ..self
        }
    }

    #[inline(always)]
    pub(super) fn row(self, position: usize) -> Row<'a, T> {
        let at = position * self.dim;
        Row {
            elements: &self.elements[at..at + self.dim],
            scale: match T::SCALED {
                true => self.scales[position],
                false => 1.0,
            },
        }
    }

    /// Bytes of a row.
    pub(super) fn row_bytes(self) -> usize {
        self.dim * size_of::<T>() + if T::SCALED { size_of::<f32>() } else { 0 }
    }
}

/// One K row or V row.
#[derive(Clone, Copy)]
pub(super) struct Row<'a, T> {
    pub(super) elements: &'a [T],
    /// The factor of each element; 1 for floats.
    scale: f32,
}

impl<T: RowElement> Row<'_, T> {
    /// Loads a vector from an element on.
    #[inline(always)]
    pub(super) fn load<S: Simd>(self, simd: S, at: usize) -> S::F {
        self.scaled(simd, T::load(simd, &self.elements[at..at + S::LANES]))
    }

    /// Loads the elements from one on, fewer than lanes, padded with zeros.
    #[inline(always)]
    pub(super) fn load_partial<S: Simd>(self, simd: S, at: usize) -> S::F {
        self.scaled(simd, T::load_partial(simd, &self.elements[at..]))
    }

    #[inline(always)]
    pub(super) fn widen(self, at: usize) -> f32 {
        let element = self.elements[at].widen();
        if T::SCALED {
            element * self.scale
        } else {
            element
        }
    }

    #[inline(always)]
    fn scaled<S: Simd>(self, simd: S, elements: S::F) -> S::F {
        match T::SCALED {
            true => simd.mul(elements, simd.splat(self.scale)),
            false => elements,
        }
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
        impl RowElement for $element {
            #[inline(always)]
            fn widen(self) -> f32 {
                $widen(self)
            }
            #[inline(always)]
            fn load<S: Simd>(simd: S, from: &[Self]) -> S::F {
                simd.$load(from)
            }
        }

        impl Element for $element {
            fn slice(tensor: &FloatTensor<Flex>) -> Option<&[Self]> {
                tensor.as_slice::<Self>()
            }
            fn storage_mut(tensor: &mut FloatTensor<Flex>) -> &mut [Self] {
                tensor.storage_mut::<Self>()
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
