//! Plain tensors from a backend's primitives and back, by moving handles.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch};
use burn::tensor::{Int, Tensor};

use crate::ops::{CacheBuffers, SketchBuffers};
use crate::{CacheTensors, SketchTensors};

/// A backend whose primitives plain tensors can hold.
pub(crate) trait Primitive: Backend {
    fn float<const D: usize>(primitive: FloatTensor<Self>) -> Tensor<D>;
    fn int<const D: usize>(primitive: IntTensor<Self>) -> Tensor<D, Int>;
    fn float_primitive<const D: usize>(tensor: Tensor<D>) -> FloatTensor<Self>;
    fn int_primitive<const D: usize>(tensor: Tensor<D, Int>) -> IntTensor<Self>;
}

impl Primitive for Dispatch {
    fn float<const D: usize>(primitive: FloatTensor<Self>) -> Tensor<D> {
        Tensor::from_dispatch(primitive)
    }
    fn int<const D: usize>(primitive: IntTensor<Self>) -> Tensor<D, Int> {
        Tensor::from_dispatch(primitive)
    }
    fn float_primitive<const D: usize>(tensor: Tensor<D>) -> FloatTensor<Self> {
        tensor.into_dispatch()
    }
    fn int_primitive<const D: usize>(tensor: Tensor<D, Int>) -> IntTensor<Self> {
        tensor.into_dispatch()
    }
}

/// What a tensor that never left its backend can't fail at.
#[cfg(any(feature = "flex", feature = "ndarray", feature = "cube"))]
const STAYS: &str = "the reference keeps its tensors on their backend";

/// The same for a backend behind [`Dispatch`]. One blanket implementation would overlap with that of `Dispatch` itself.
#[cfg(any(feature = "flex", feature = "ndarray", feature = "cube"))]
macro_rules! primitive {
    ($backend:ty) => {
        impl Primitive for $backend {
            fn float<const D: usize>(primitive: FloatTensor<Self>) -> Tensor<D> {
                Tensor::<D>::from_primitive::<Self>(primitive)
            }
            fn int<const D: usize>(primitive: IntTensor<Self>) -> Tensor<D, Int> {
                Tensor::<D, Int>::from_primitive::<Self>(primitive)
            }
            fn float_primitive<const D: usize>(tensor: Tensor<D>) -> FloatTensor<Self> {
                tensor.try_into_primitive::<Self>().expect(STAYS)
            }
            fn int_primitive<const D: usize>(tensor: Tensor<D, Int>) -> IntTensor<Self> {
                tensor.try_into_primitive::<Self>().expect(STAYS)
            }
        }
    };
}

#[cfg(feature = "flex")]
primitive!(burn::backend::Flex);

#[cfg(feature = "cube")]
primitive!(burn_cubecl::CubeBackend);

#[cfg(feature = "ndarray")]
#[allow(deprecated)]
mod ndarray {
    use super::*;
    primitive!(burn::backend::NdArray);
}

/// A cache's buffers as plain tensors.
pub(crate) fn lift<B: Primitive>(cache: CacheBuffers<B>) -> CacheTensors {
    let sketch = match cache.sketch {
        SketchBuffers::None => SketchTensors::None,
        SketchBuffers::Full(kt) => SketchTensors::Full(B::float(kt)),
        SketchBuffers::Codes {
            bits,
            codes,
            lo,
            step,
        } => SketchTensors::Codes {
            bits,
            codes: B::int(codes),
            lo: B::float(lo),
            step: B::float(step),
        },
    };
    CacheTensors {
        k: B::float(cache.k),
        v: B::float(cache.v),
        v_sum: B::float(cache.v_sum),
        spans: B::int(cache.spans),
        sketch,
    }
}

/// A cache's plain tensors as the backend's buffers.
pub(crate) fn lower<B: Primitive>(cache: CacheTensors) -> CacheBuffers<B> {
    let sketch = match cache.sketch {
        SketchTensors::None => SketchBuffers::None,
        SketchTensors::Full(kt) => SketchBuffers::Full(B::float_primitive(kt)),
        SketchTensors::Codes {
            bits,
            codes,
            lo,
            step,
        } => SketchBuffers::Codes {
            bits,
            codes: B::int_primitive(codes),
            lo: B::float_primitive(lo),
            step: B::float_primitive(step),
        },
    };
    CacheBuffers {
        k: B::float_primitive(cache.k),
        v: B::float_primitive(cache.v),
        v_sum: B::float_primitive(cache.v_sum),
        spans: B::int_primitive(cache.spans),
        sketch,
    }
}
