//! The K rows and V rows of a cache as arguments of kernels.

use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::blueprint::Sizes;
use super::kernels::dequantize_rows::dequantize_rows_kernel;
use super::launch::{Launcher, grid};
use super::parts::online_softmax::KvRowsLaunch;
use super::parts::row_codes::{PER_WORD, RowScalesLaunch};
use crate::ops::{CacheBuffers, RowBuffers};

/// Units of the cubes that convert codes to floats.
const UNITS: u32 = 256;

/// K or V of a cache.
pub(super) type Rows = RowBuffers<CubeBackend>;

impl Rows {
    /// The floats, or the words of codes.
    pub(super) fn elements(&self) -> &CubeTensor {
        match self {
            RowBuffers::Float(rows) => rows,
            RowBuffers::Int8 { codes, .. } => codes,
        }
    }

    pub(super) fn is_coded(&self) -> bool {
        matches!(self, RowBuffers::Int8 { .. })
    }

    /// The sizes of a cache; `heads` is the number of query heads.
    pub(super) fn sizes(&self, heads: usize) -> Sizes {
        let sizes = Sizes::new(heads, self.elements());
        match self.is_coded() {
            true => Sizes {
                head_dim: sizes.head_dim * PER_WORD,
                ..sizes
            },
            false => sizes,
        }
    }
}

impl Launcher {
    /// The scales of K and V; not in use for floats.
    pub(super) fn row_scales(&self, cache: &CacheBuffers<CubeBackend>) -> RowScalesLaunch {
        let scales = [&cache.k, &cache.v].map(|rows| match rows {
            RowBuffers::Float(_) => self.unused(DType::F32),
            RowBuffers::Int8 { scale, .. } => scale.clone(),
        });
        let [keys, values] = scales.map(CubeTensor::into_buffer_arg);
        RowScalesLaunch::new(keys, values)
    }

    /// Returns rows as they are, or the first `len` positions of codes in floats of `dtype`.
    pub(super) fn in_floats(&self, rows: Rows, len: usize, dtype: DType) -> CubeTensor {
        let sizes = rows.sizes(1);
        let (codes, scale) = match rows {
            RowBuffers::Float(rows) => return rows,
            RowBuffers::Int8 { codes, scale } => (codes, scale),
        };
        let shape = [sizes.batch, sizes.kv_heads, len, sizes.head_dim];
        let out = self.empty(shape, dtype);
        let words = shape.iter().product::<usize>() / PER_WORD;
        let units = self.info.units(UNITS);
        // SAFETY: the kernel checks the number of each row, and reads positions below the capacity.
        unsafe {
            dequantize_rows_kernel::launch_unchecked(
                &self.client,
                grid(words.div_ceil(units as usize).max(1)),
                CubeDim::new_1d(units),
                codes
                    .required_address_type()
                    .max(out.required_address_type()),
                PER_WORD,
                codes.into_buffer_arg(),
                scale.into_buffer_arg(),
                out.clone().into_buffer_arg(),
                (sizes.batch_heads() * len) as u32,
                len as u32,
                sizes.capacity as u32,
                sizes.head_dim / PER_WORD,
                dtype_to_storage_type(dtype),
            );
        }
        out
    }
}

/// K and V as vectors.
pub(super) fn kv_rows<E: Numeric, N: Size>(
    cache: &CacheBuffers<CubeBackend>,
) -> KvRowsLaunch<E, N> {
    KvRowsLaunch::new(
        cache.k.elements().clone().into_buffer_arg(),
        cache.v.elements().clone().into_buffer_arg(),
    )
}
