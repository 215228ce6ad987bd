//! The launches of [`SparqBackend::argmax`](crate::ops::SparqBackend::argmax).

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::kernels::argmax::{PART, largest_of_parts_kernel, largest_of_rows_kernel};
use super::launch::{Launcher, grid};

/// Units of the cube of a part.
const PART_UNITS: u32 = 256;
/// Elements that are worth a part, and the most parts of a row.
const ELEMENTS_OF_PART: usize = 4096;
const MOST_PARTS: u32 = 64;

impl Launcher {
    /// Finds the largest element of each row of a contiguous x [rows, width]; returns [2, rows].
    pub fn argmax(&self, x: &CubeTensor, dtype: DType) -> CubeTensor {
        let [rows, width] = x.shape().dims::<2>();
        let (part_units, row_units) = (self.info.units(PART_UNITS), self.info.units(MOST_PARTS));
        let parts = width.div_ceil(ELEMENTS_OF_PART);
        let parts = parts.clamp(1, row_units as usize);
        let found = self.empty([rows, parts, PART], DType::U32);
        let out = self.empty([2, rows], dtype);
        // SAFETY: the kernels check the number of the cube and read elements of their row only.
        unsafe {
            largest_of_parts_kernel::launch_unchecked(
                &self.client,
                grid(rows * parts),
                CubeDim::new_1d(part_units),
                x.required_address_type(),
                x.clone().into_buffer_arg(),
                found.clone().into_buffer_arg(),
                rows as u32,
                width as u32,
                parts as u32,
                part_units as usize,
            );
            largest_of_rows_kernel::launch_unchecked(
                &self.client,
                grid(rows),
                CubeDim::new_1d(row_units),
                found.into_buffer_arg(),
                out.clone().into_buffer_arg(),
                rows as u32,
                parts as u32,
                row_units as usize,
                dtype_to_storage_type(dtype),
            );
        }
        out
    }
}
