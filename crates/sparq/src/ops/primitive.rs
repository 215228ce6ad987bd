//! Conversions between plain tensors and a backend's primitives. They move handles.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch};
use burn::tensor::{Int, Tensor};

use crate::ops::{
    CacheBuffers, CacheTensors, RowBuffers, RowTensors, SketchBuffers, SketchTensors,
};

/// A backend whose primitives convert to plain tensors.
#[doc(hidden)]
#[allow(missing_docs)]
pub trait Primitive: Backend {
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

/// The reason why a conversion to a primitive never fails.
#[cfg(any(feature = "flex", feature = "ndarray", feature = "cube"))]
const SAME_BACKEND: &str = "the reference keeps tensors on their backend";

/// Implements [`Primitive`] for a backend behind [`Dispatch`].
///
/// A blanket implementation would overlap with the one of `Dispatch` itself.
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
                tensor.try_into_primitive::<Self>().expect(SAME_BACKEND)
            }
            fn int_primitive<const D: usize>(tensor: Tensor<D, Int>) -> IntTensor<Self> {
                tensor.try_into_primitive::<Self>().expect(SAME_BACKEND)
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

/// Returns a cache's buffers as plain tensors.
pub(crate) fn lift<B: Primitive>(cache: CacheBuffers<B>) -> CacheTensors {
    let sketch = match cache.sketch {
        SketchBuffers::None => SketchTensors::None,
        SketchBuffers::Full(kt) => SketchTensors::Full(B::float(kt)),
        SketchBuffers::Codes {
            bits,
            codes,
            zero_point,
            scale,
        } => SketchTensors::Codes {
            bits,
            codes: B::int(codes),
            zero_point: B::float(zero_point),
            scale: B::float(scale),
        },
    };
    CacheTensors {
        k: lift_rows(cache.k),
        v: lift_rows(cache.v),
        v_sum: B::float(cache.v_sum),
        spans: B::int(cache.spans),
        sketch,
        softcap: cache.softcap,
    }
}

/// Returns a cache's plain tensors as the backend's buffers.
pub(crate) fn lower<B: Primitive>(cache: CacheTensors) -> CacheBuffers<B> {
    let sketch = match cache.sketch {
        SketchTensors::None => SketchBuffers::None,
        SketchTensors::Full(kt) => SketchBuffers::Full(B::float_primitive(kt)),
        SketchTensors::Codes {
            bits,
            codes,
            zero_point,
            scale,
        } => SketchBuffers::Codes {
            bits,
            codes: B::int_primitive(codes),
            zero_point: B::float_primitive(zero_point),
            scale: B::float_primitive(scale),
        },
    };
    CacheBuffers {
        k: lower_rows(cache.k),
        v: lower_rows(cache.v),
        v_sum: B::float_primitive(cache.v_sum),
        spans: B::int_primitive(cache.spans),
        sketch,
        softcap: cache.softcap,
    }
}

/// Returns rows as plain tensors.
pub(crate) fn lift_rows<B: Primitive>(rows: RowBuffers<B>) -> RowTensors {
    match rows {
        RowBuffers::Float(rows) => RowTensors::Float(B::float(rows)),
        RowBuffers::Int8 { codes, scale } => RowTensors::Int8 {
            codes: B::int(codes),
            scale: B::float(scale),
        },
    }
}

/// Returns rows of plain tensors as the backend's buffers.
pub(crate) fn lower_rows<B: Primitive>(rows: RowTensors) -> RowBuffers<B> {
    match rows {
        RowTensors::Float(rows) => RowBuffers::Float(B::float_primitive(rows)),
        RowTensors::Int8 { codes, scale } => RowBuffers::Int8 {
            codes: B::int_primitive(codes),
            scale: B::float_primitive(scale),
        },
    }
}
