//! The tensors that a captured step takes and returns.

use burn::tensor::Tensor;
use burn::tensor::kind::Basic;

use crate::cache::buffers::{duplicate, overwrite};

/// The inputs or outputs of a step: a [`Tensor`], a `Vec` or tuple of them, or `()`.
pub trait StepTensors: Sized {
    /// Returns the same contents in new buffers.
    fn duplicate(&self) -> Self;

    /// Returns whether number, shapes, types and devices are those of `other`.
    fn is_like(&self, other: &Self) -> bool;

    /// Copies the contents of `from`, which [is like](StepTensors::is_like) this.
    ///
    /// Returns false if a buffer was shared. It has then been replaced by a new one.
    fn overwrite(&mut self, from: Self) -> bool;
}

impl<const D: usize, K: Basic> StepTensors for Tensor<D, K> {
    fn duplicate(&self) -> Self {
        duplicate(self)
    }

    fn is_like(&self, other: &Self) -> bool {
        self.dims() == other.dims()
            && self.dtype() == other.dtype()
            && self.device() == other.device()
    }

    fn overwrite(&mut self, from: Self) -> bool {
        let stays = self.can_mut();
        self.inplace(|tensor| overwrite(tensor, from));
        stays
    }
}

impl<T: StepTensors> StepTensors for Vec<T> {
    fn duplicate(&self) -> Self {
        self.iter().map(T::duplicate).collect()
    }

    fn is_like(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().zip(other).all(|(a, b)| a.is_like(b))
    }

    fn overwrite(&mut self, from: Self) -> bool {
        let pairs = self.iter_mut().zip(from);
        pairs.fold(true, |stay, (to, from)| to.overwrite(from) && stay)
    }
}

/// No inputs or outputs beside the state.
impl StepTensors for () {
    fn duplicate(&self) -> Self {}

    fn is_like(&self, _other: &Self) -> bool {
        true
    }

    fn overwrite(&mut self, _from: Self) -> bool {
        true
    }
}

/// Implements [`StepTensors`] for a tuple.
macro_rules! tuple {
    ($($part:ident $index:tt),*) => {
        impl<$($part: StepTensors),*> StepTensors for ($($part,)*) {
            fn duplicate(&self) -> Self {
                ($(self.$index.duplicate(),)*)
            }

            fn is_like(&self, other: &Self) -> bool {
                true $(&& self.$index.is_like(&other.$index))*
            }

            fn overwrite(&mut self, from: Self) -> bool {
                true $(& self.$index.overwrite(from.$index))*
            }
        }
    };
}

tuple!(A 0);
tuple!(A 0, B 1);
tuple!(A 0, B 1, C 2);
tuple!(A 0, B 1, C 2, D 3);
